"""Our training against that of diffusers' own script, in one run: python benchmarks/versus_diffusers.py --save

Contenders train the same network (by default the 35.7M-parameter one of DDPM on 32x32 images) on the same images with
the same batch and seed, each in a process of its own, in turns. *script* is the training step of
diffusers' examples/unconditional_image_generation/train_unconditional.py, written anew from what it documents: images
decoded and normalised by a DataLoader in every epoch, UNet2DModel under accelerate, AdamW, a cosine learning rate,
save_state. *script, best flags* adds its --use_ema, --mixed_precision=bf16 and two --dataloader_num_workers. *ours* is
our Learner with its default configuration (mixed_precision auto, EMA always on).

A figure is the median over the rounds; a ratio the median over the pairs. Peak memory is of the whole process. The
time to the first step begins with the process; saving and loading a checkpoint ends when it is usable.
With --device cuda: batch 128 and 512 in bf16, the share of the chip's matrix rate, and torch.profiler's table.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

RESULTS = Path(__file__).parent / "results"
STARTED = time.time()

NETWORKS = {
    # of DDPM on CIFAR-10
    "cifar10": ["channel_multipliers=[1,2,2,2]", "num_res_blocks=2", "attention_levels=[1]", "image_size=32"],
    "tiny": [
        "channel_multipliers=[1,2]",
        "num_res_blocks=1",
        "attention_levels=[]",
        "hidden_channels=32",
        "image_size=16",
    ],
}
CONTENDERS: dict[str, dict[str, Any]] = {
    "script": {"kind": "script"},
    "script, bf16": {"kind": "script", "precision": "bf16"},
    "script, best flags": {"kind": "script", "precision": "bf16", "ema": True, "workers": 2},
    "ours": {"kind": "ours"},
    "ours, fp32": {"kind": "ours", "options": ["training.mixed_precision=no"]},
    "ours, bf16": {"kind": "ours", "options": ["training.mixed_precision=bf16"]},
    "ours, compiled": {"kind": "ours", "options": ["training.compile=true"]},
    "ours, channels last": {"kind": "ours", "options": ["training.channels_last=true"]},
    "ours, checkpointing": {"kind": "ours", "options": ["training.gradient_checkpointing=true"]},
}
PAIRS = [
    ("script", "ours, fp32", "equal dtype, fp32", 1.25),
    ("script, bf16", "ours, bf16", "equal dtype, bf16", 1.25),
    ("script", "ours", "defaults against defaults", 2.5),
    ("script, best flags", "ours", "its best flags against our defaults", None),
    ("ours, bf16", "ours, compiled", "compiled against eager", None),
    ("ours, bf16", "ours, channels last", "channels last against not", None),
    ("ours, bf16", "ours, checkpointing", "gradient checkpointing against not", None),
]
NUM_IMAGES = 2000


def make_images(folder: Path, side: int) -> None:
    """Write images with some structure: both sides decode the same PNGs."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    coarse = (Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(NUM_IMAGES))
    write_images([image.resize((side, side), Image.Resampling.BICUBIC) for image in coarse], folder)


def write_images(images: Iterable["Image"], folder: Path) -> None:
    """Write images as PNGs in a parquet file."""
    import io

    import datasets

    rows = []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    data = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    data.to_parquet(str(folder / "images.parquet"))


def read_images(folder: Path, mode: str = "RGB") -> Any:
    """The images of a folder as the script reads them: decoded anew whenever one is asked for.

    Returns:
        A dataset whose rows have an image of [-1, 1] as "input".
    """
    import datasets
    import numpy as np
    import torch

    def decode(rows: dict[str, list]) -> dict[str, list]:
        arrays = [np.asarray(image.convert(mode), dtype=np.float32) for image in rows["image"]]
        scaled = [torch.from_numpy(array / 127.5 - 1) for array in arrays]
        return {"input": [each[None] if mode == "L" else each.permute(2, 0, 1) for each in scaled]}

    source = datasets.load_dataset(
        "parquet", data_files=str(folder / "images.parquet"), split="train", cache_dir=str(folder / "hf")
    )
    source.set_transform(decode)
    return source


def our_config(arguments: argparse.Namespace, options: list[str]) -> Any:
    """The configuration of our side; the other side takes its network from it."""
    from ddpm_hf.config import load_config

    file = Path(arguments.data) / "config.yaml"
    file.write_text("dataset: {}\n")
    network = [f"model_config.{option}" for option in NETWORKS[arguments.network]]
    own = [f"dataset.name={arguments.data}", f"dataset.cache_dir={arguments.data}/cache", "training.num_steps=100000"]
    batch = [f"training.batch_size={arguments.batch}", f"output_dir={arguments.data}/run-{os.getpid()}"]
    return load_config(file, [*network, *own, *batch, *options])


class Ours:
    """Our side: a Learner, as the Trainer drives it."""

    def __init__(self, arguments: argparse.Namespace, options: list[str]) -> None:
        from ddpm_hf.training.learner import Learner
        from ddpm_hf.training.metrics import Meter
        from ddpm_hf.training.trainer import Trainer

        trainer = Trainer(our_config(arguments, options))
        self.config = trainer.config
        self.learner = Learner(trainer.config, trainer.plan.images, trainer.num_steps, trainer.accelerator)
        self.meter = Meter(trainer.accelerator, trainer.config.model.time_steps)
        self.step = 0

    def update(self) -> float:
        """One update; returns the seconds spent waiting for data."""
        update = self.learner.update(self.step)
        self.meter.add(update)
        self.step += 1
        return float(update.figures["data_seconds"])

    def save(self, folder: Path) -> Path:
        from ddpm_hf.checkpoints import write_checkpoint
        from ddpm_hf.training.state import Progress

        progress = Progress(step=self.step, config=self.config.to_dict())
        gathered = self.learner.gather()
        return write_checkpoint(folder, self.step, lambda at: self.learner.save(at, progress, *gathered), keep=1)

    def load(self, folder: Path) -> None:
        from ddpm_hf.checkpoints import find_damage
        from ddpm_hf.training.state import OPTIMIZER, STATE, load_moments

        assert find_damage(folder) is None
        self.learner._load(folder, self.learner.accelerator.unwrap_model(self.learner.network))
        load_moments(self.learner.optimizer.optimizer, folder / STATE / OPTIMIZER)


def stock_network(model: Any) -> Any:
    """Diffusers' own network in the sizes of a `model_config` section."""
    import torch
    from diffusers import UNet2DModel

    from ddpm_hf.models import build_network

    with torch.device("meta"):
        shape = {key: value for key, value in build_network(model).config.items() if key != "initialization"}
    return UNet2DModel.from_config(shape)


class Script:
    """The other side: the training step of train_unconditional.py, by default with its defaults.

    Args:
        network: a UNet2DModel.
        images: a dataset whose rows have an image of [-1, 1] as "input".
        batch_size: images per update.
        scheduler: options of DDPMScheduler.
        optimizer: options of AdamW.
        warm_up: updates in which the learning rate rises.
        ema: options of EMAModel; None for no average.
        precision: accelerate's mixed_precision.
        workers: processes that load data.
        device: "cpu" or "cuda".

    Attributes:
        num_steps: updates of the whole run, over which the learning rate falls; it may be corrected on the way.
    """

    def __init__(
        self,
        network: Any,
        images: Any,
        batch_size: int = 16,
        scheduler: Mapping[str, Any] = MappingProxyType({}),
        optimizer: Mapping[str, Any] = MappingProxyType({}),
        warm_up: int = 500,
        ema: Mapping[str, Any] | None = None,
        precision: str = "no",
        workers: int = 0,
        device: str = "cpu",
    ) -> None:
        import torch
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.training_utils import EMAModel

        self.accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
        self.ema = None if ema is None else EMAModel(network.parameters(), **ema)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.scheduler: Any = DDPMScheduler(num_train_timesteps=1000, **{"beta_schedule": "linear", **scheduler})
        settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6, "eps": 1e-8, **optimizer}
        adam = torch.optim.AdamW(network.parameters(), **settings)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        loader = torch.utils.data.DataLoader(
            images, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True
        )
        self.num_steps = 100_000

        def share(step: int) -> float:  # of the learning rate: "cosine" of diffusers' get_scheduler
            if step < warm_up:
                return step / warm_up
            return 0.5 * (1 + math.cos(math.pi * min((step - warm_up) / max(self.num_steps - warm_up, 1), 1)))

        rates = torch.optim.lr_scheduler.LambdaLR(adam, share)
        self.network, self.optimizer, self.loader, self.rates = self.accelerator.prepare(network, adam, loader, rates)
        self.batches = self._endless()

    def _endless(self) -> Any:
        while True:
            yield from self.loader

    def update(self) -> float:
        """One update; returns the seconds spent waiting for data."""
        import torch
        import torch.nn.functional as F

        started = time.perf_counter()
        clean = next(self.batches)["input"].to(self.dtype)
        waited = time.perf_counter() - started
        noise = torch.randn(clean.shape, dtype=self.dtype, device=clean.device)
        timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        with self.accelerator.accumulate(self.network):
            output = self.network(noisy, timesteps).sample
            loss = F.mse_loss(output.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.network.parameters())
        loss.detach().item()  # it is shown in the bar and logged at every step
        return waited

    def save(self, folder: Path) -> Path:
        self.accelerator.save_state(str(folder))
        if self.ema is not None:
            import torch

            torch.save(self.ema.state_dict(), folder / "ema.pt")
        return folder

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))

    def pipeline(self) -> Any:
        """What the script saves at the end: of the averaged weights, if there are any. They replace the others."""
        from diffusers import DDPMPipeline

        network = self.accelerator.unwrap_model(self.network)
        if self.ema is not None:
            self.ema.copy_to(network.parameters())
        return DDPMPipeline(network.eval(), self.scheduler)


def make_script(arguments: argparse.Namespace, precision: str = "no", ema: bool = False, workers: int = 0) -> Script:
    """The script on the network and the images of this comparison."""
    import torch

    from ddpm_hf.training.precision import use_all_cores

    use_all_cores()
    torch.manual_seed(0)
    return Script(
        stock_network(our_config(arguments, []).model),
        read_images(Path(arguments.data)),
        arguments.batch,
        ema={"decay": 0.9999, "use_ema_warmup": True} if ema else None,
        precision=precision,
        workers=workers,
        device=arguments.device,
    )


def contend(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one contender for some steps, in this process."""
    import torch

    settings = dict(CONTENDERS[arguments.contender])
    kind = settings.pop("kind")
    subject = Ours(arguments, settings.get("options", [])) if kind == "ours" else make_script(arguments, **settings)

    def synchronize() -> None:
        if arguments.device == "cuda":
            torch.cuda.synchronize()

    subject.update()
    synchronize()
    first = time.time() - STARTED
    for _ in range(arguments.warm_up):
        subject.update()
    synchronize()
    seconds, waited = [], 0.0
    for _ in range(arguments.steps):
        started = time.perf_counter()
        waited += subject.update()
        synchronize()
        seconds.append(time.perf_counter() - started)
    if arguments.profile:
        write_profile(arguments, subject.update)
    if arguments.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryDirectory() as folder:
        save, checkpoint = clock(lambda: subject.save(Path(folder) / "checkpoint"))
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
        load, _ = clock(lambda: subject.load(checkpoint))
    return {
        "images_per_second": arguments.batch / statistics.median(seconds),
        "data_share": waited / sum(seconds),
        "first_step": first,
        "peak_memory": peak,
        "save": save,
        "load": load,
        "checkpoint_bytes": size,
    }


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes, and what it returns."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def write_profile(arguments: argparse.Namespace, update: Callable[[], float]) -> None:
    """Write which operators an update spends its time in."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if arguments.device == "cuda" else [])]
    with profile(activities=kinds) as record:
        update()
    key = "self_cuda_time_total" if arguments.device == "cuda" else "self_cpu_time_total"
    name = arguments.contender.replace(", ", "_").replace(" ", "_")
    table = record.key_averages().table(sort_by=key, row_limit=25)
    (RESULTS / f"profile_{arguments.device}_{name}_{arguments.batch}.txt").write_text(table)


def matrix_rate(device: str) -> float:
    """Multiplications and additions per second of large bf16 matrix products, measured here and now."""
    import torch

    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def run_contender(arguments: argparse.Namespace, contender: str) -> dict[str, Any]:
    """Let a contender train in a process of its own."""
    command = [sys.executable, __file__, "--contender", contender, "--data", arguments.data]
    for name in ("network", "batch", "steps", "warm_up", "device"):
        command += [f"--{name}", str(getattr(arguments, name))]
    if arguments.profile:
        command.append("--profile")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All pairs, in turns; which goes first changes from round to round."""
    import accelerate
    import diffusers
    import torch

    chosen = [pair for pair in PAIRS if arguments.pairs is None or any(text in pair[2] for text in arguments.pairs)]
    contenders = list(dict.fromkeys(name for pair in chosen for name in pair[:2]))
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for index in range(arguments.rounds):
        for name in contenders if index % 2 else reversed(contenders):
            rounds[name].append(run_contender(arguments, name))
            print(f"round {index + 1}: {name}: {rounds[name][-1]['images_per_second']:.2f} img/s", file=sys.stderr)
    figures = {name: {key: statistics.median(each[key] for each in of) for key in of[0]} for name, of in rounds.items()}
    pairs = []
    for theirs, ours, what, goal in chosen:
        ratios = [
            mine["images_per_second"] / other["images_per_second"]
            for mine, other in zip(rounds[ours], rounds[theirs], strict=True)
        ]
        pairs.append(
            {
                "what": what,
                "theirs": theirs,
                "ours": ours,
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
                "goal": goal,
                "memory": figures[ours]["peak_memory"] / figures[theirs]["peak_memory"],
            }
        )
    machine = (
        torch.cuda.get_device_name() if arguments.device == "cuda" else f"{platform.machine()} {os.cpu_count()} cores"
    )
    return {
        "machine": machine,
        "network": arguments.network,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "matrix_rate_tflops": matrix_rate(arguments.device) / 1e12,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
        },
        "date": datetime.now(timezone.utc).date().isoformat(),
        "contenders": figures,
        "pairs": pairs,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Write the results as Markdown."""
    lines = ["# Training against diffusers' script", "", " ".join((__doc__ or "").split("\n\n")[1].split()), ""]
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        lines += [
            f"## {result['network']}, batch {result['batch']}, {result['machine']}",
            "",
            f"{result['date']}; {versions}; {result['rounds']} rounds of {result['steps']} steps; bf16 matrix products "
            f"reach {result['matrix_rate_tflops']:.2f} TFLOP/s here.",
            "",
            "| comparison | ratio of images/s (lowest to highest) | goal | ratio of peak memory |",
            "|---|--:|--:|--:|",
        ]
        for pair in result["pairs"]:
            goal = "" if pair["goal"] is None else f"{pair['goal']}"
            lines.append(
                f"| {pair['what']}: *{pair['ours']}* / *{pair['theirs']}* | {pair['ratio']:.2f} ({pair['low']:.2f} to "
                f"{pair['high']:.2f}) | {goal} | {pair['memory']:.2f} |"
            )
        lines += [
            "",
            "| contender | images/s | peak memory, MB | to first step, s | waiting for data | save, s | load, s "
            "| checkpoint, MB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for name, figures in result["contenders"].items():
            lines.append(
                f"| {name} | {figures['images_per_second']:.2f} | {figures['peak_memory'] / 1e6:,.0f} "
                f"| {figures['first_step']:.1f} | {figures['data_share']:.2%} | {figures['save']:.2f} "
                f"| {figures['load']:.2f} | {figures['checkpoint_bytes'] / 1e6:,.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def save(result: dict[str, Any]) -> None:
    """Join the result to those on disk; one of the same machine, network and batch replaces its elder."""
    path = RESULTS / "versus_diffusers.json"
    kept = {tuple(each[key] for key in ("machine", "network", "batch")): each for each in _read(path)}
    kept[result["machine"], result["network"], result["batch"]] = result
    results = [kept[key] for key in sorted(kept)]
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results))


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="cifar10")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="measured updates per round")
    parser.add_argument("--warm_up", type=int, default=2, help="updates before them, besides the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--pairs", nargs="+", metavar="TEXT", help="comparisons whose name has one of these texts in it"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="write torch.profiler's table of each contender")
    parser.add_argument("--save", action="store_true", help="keep the results in benchmarks/results/versus_diffusers.*")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contend(arguments)))
        return
    from ddpm_hf.config import ModelConfig

    with tempfile.TemporaryDirectory() as folder:
        arguments.data = folder
        side = 16 if arguments.network == "tiny" else ModelConfig().image_size
        make_images(Path(folder), side)
        result = compare(arguments)
    print(table([result]))
    if arguments.save:
        save(result)


if __name__ == "__main__":
    main()
