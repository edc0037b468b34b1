"""What a GPU trains and samples, ours against stock in one run, in minutes: python benchmarks/gpu.py [--budget 210]

An update is forward pass, loss, backward pass, clipping, Adam, and the average of the weights. *Stock* is diffusers'
UNet2DModel, run eagerly with fused AdamW; its images lie on the GPU, and no value is read back. *Recorded* is our
TrainStep as the Trainer runs it, its data included, without compilation; *compiled* is the same with
training.compile=true; *any kernels* is recorded with kernels that need not be deterministic. Both sides use the
precision that the recipe chooses: bfloat16 autocast, and float32 for digits. Sampling draws images by the pipelines'
public interface: *a call* by itself, and one *within sampling()*, as programs draw many batches.

Contenders take turns in one process, with as many calls in a turn as fit in half a second. A figure is the median over
the turns, a ratio the median over the pairs of turns. Memory is what PyTorch reserves for one contender, at its peak,
and beside it the ratio to stock's. *Of the chip* is the multiplications and additions that the stock network needs for
an update, per second, of those of large bfloat16 matrix products in the same run.

What matters most comes first, and what the budget does not suffice for is named. Results are written after every part,
so that a run that is cut short keeps them. `make cuda-check` runs the tests before this.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from contenders import Ours, make_images, stock_network
from rates import matrix_rate, processor
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.config import Config, load_config
from ddpm_hf.models import build_network
from ddpm_hf.models.fast import graphs
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import build_scheduler
from ddpm_hf.training.captured import CapturedUpdate
from ddpm_hf.training.compilation import WARM_UP_SECONDS

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
STARTED = time.monotonic()

Part = tuple[str, int, tuple[str, ...]]
Turns = dict[str, list[tuple[float, float]]]
"""Seconds of a call in each turn, and the share of the turn that its calls say they waited."""

PARTS: tuple[Part, ...] = (
    ("cifar10", 128, ("recorded", "any kernels")),
    *(("sampling", count, ("bfloat16",)) for count in (1, 16, 128)),
    ("cifar10", 16, ("recorded",)),
    ("digits", 64, ("recorded",)),
    ("cifar10", 128, ("compiled",)),
    *(("sampling", count, ("float32",)) for count in (1, 16, 128)),
    ("cifar10", 512, ("recorded",)),
    ("ddpm_config", 128, ("recorded",)),
    ("celeba64", 128, ("recorded",)),
    ("digits", 64, ("compiled",)),
    ("cifar10", 16, ("compiled",)),
    ("celeba64", 128, ("compiled",)),
    ("cifar10", 512, ("compiled",)),
    ("ddpm_config", 128, ("compiled",)),
)
"""Recipe, batch size, and who is measured beside stock, in order of importance; with `sampling` it is the dtype."""
SECONDS = {"recorded": 15, "compiled": WARM_UP_SECONDS + 15, "sampling": 10}
"""Expected of a part until one of its kind was measured. A part does not begin with less than that left."""
PRECISIONS = {"no": "float32", "bf16": "bfloat16"}
TINY = ["hidden_channels=8", "channel_multipliers=[1,2]", "attention_levels=[]", "num_res_blocks=1", "norm_groups=4"]

GOALS = (
    ("cifar10, batch 128: recorded", "times_stock", ">=", 1.7),
    ("cifar10, batch 128: compiled", "times_stock", ">=", 2.8),
    ("cifar10, batch 128: compiled", "memory_of_stock", "<=", 0.55),
    ("cifar10, batch 16: recorded", "times_stock", ">=", 3),
    ("digits, batch 64: recorded", "times_stock", ">=", 8),
    *(
        (f"sampling, batch {count}, {dtype}: {how}", "times_stock", ">=", bound)
        for count, bound in ((1, 5), (16, 4), (128, 1.6))
        for dtype in ("bfloat16", "float32")
        for how in ("a call", "within sampling()")
    ),
    ("cifar10, batch 128: recorded", "waiting", "<", 0.01),
    ("cifar10, batch 128: compiled", "waiting", "<", 0.01),
    ("cifar10, batch 128: recorded", "cost_of_determinism", "<", 0.02),
)
"""What is to be reached on an H100 or H200: row, figure and bound."""


class Stock:
    """An eager update of UNet2DModel on images that lie on the device.

    Args:
        config: of our side.
        precision: of our side, as accelerate names it.
        device: where it is trained.
    """

    def __init__(self, config: Config, precision: str, device: str) -> None:
        with torch.device(device):
            self.network = stock_network(config.model).train()
        self.parameters = list(self.network.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-4, fused=True)
        self.scheduler: Any = diffusers.DDPMScheduler(num_train_timesteps=config.model.time_steps)
        self.autocast = partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bf16")
        side, batch = config.model.image_size, config.training.batch_size
        self.images = torch.rand(batch, config.model.image_channels, side, side, device=device) * 2 - 1

    def update(self) -> float:
        """One update; returns the seconds spent waiting for data, of which there are none."""
        noise = torch.randn_like(self.images)
        timesteps = torch.randint(0, len(self.scheduler.betas), (len(noise),), device=noise.device)
        noisy = self.scheduler.add_noise(self.images, noise, timesteps)
        with self.autocast():
            prediction = self.network(noisy, timesteps).sample
        F.mse_loss(prediction.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1e-4)
        return 0.0


def make_config(name: str, batch: int, compiled: bool, work: Path, tiny: bool) -> Config:
    """Read a recipe, on images made here; digits come with scikit-learn."""
    options = [f"training.batch_size={batch}", f"training.compile={str(compiled).lower()}"]
    options += [f"output_dir={work / 'run'}", f"dataset.cache_dir={work / 'cache'}"]
    if tiny:
        options += [f"model_config.{option}" for option in (*TINY, "image_size=8")]
    file = REPOSITORY / f"configs/{name}.yaml"
    if name == "digits":
        return load_config(file, options)
    side = load_config(file, options).model.image_size
    folder = work / f"images-{side}"
    if not folder.exists():
        folder.mkdir()
        make_images(folder, side)
    return load_config(file, [*options, f"dataset.name={folder}", "dataset.image_column=image"])


def measure_updates(part: Part, arguments: argparse.Namespace, work: Path, rate: float) -> dict[str, Any]:
    """Measure stock and others in turns, in updates of one recipe at one batch size; returns rows."""
    recipe, batch, names = part
    AcceleratorState._reset_state(reset_partial_state=True)
    config = make_config(recipe, batch, "compiled" in names, work, arguments.tiny)
    subjects: dict[str, Any] = {}
    memory: dict[str, int] = {}
    ready: dict[str, float] = {}
    makers: dict[str, Callable[[], Any]] = {who: partial(Ours, config, who != "any kernels") for who in names}
    # last: the gaps that others leave in the allocator's memory, which do not count, are filled by stock then
    makers["stock"] = lambda: Stock(config, subjects[names[0]].state.accelerator.mixed_precision, arguments.device)
    for who, make in makers.items():
        started, reserved = time.perf_counter(), start_memory(arguments.device)
        subjects[who] = make()
        for _ in range(3):
            subjects[who].update()
        memory[who] = peak_memory(arguments.device) - reserved
        ready[who] = time.perf_counter() - started
    turns = alternate({who: subject.update for who, subject in subjects.items()}, arguments, arguments.pairs)
    model = config.model
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        image = torch.empty(1, model.image_channels, model.image_size, model.image_size)
        stock_network(model)(image, torch.zeros(1)).sample.sum().backward()
    flops = counter.get_total_flops() * batch
    rows = {}
    for who in names:
        row = compare(turns, who, batch)
        row["ran"] = way_of(subjects[who])
        row["precision"] = PRECISIONS[subjects[who].state.accelerator.mixed_precision]
        row["of_chip"] = flops / row["seconds"] / rate
        row["ready_seconds"] = ready[who]
        if arguments.device == "cuda":
            row |= {"memory": memory[who], "memory_of_stock": memory[who] / memory["stock"]}
        if who == "recorded" and "any kernels" in names:
            row["cost_of_determinism"] = ratios(turns, who, "any kernels")[0] - 1
        rows[f"{recipe}, batch {batch}: {who}"] = row
    return rows


def way_of(ours: Ours) -> str:
    """How the updates in fact run: something may have been given up with a warning."""
    way = "recorded" if isinstance(ours.train_step.run, CapturedUpdate) else "eager"
    return f"{way}, compiled" if ours.state.compiled else way


def measure_sampling(count: int, dtype: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure stock's pipeline and ours in turns; returns rows."""
    model = make_config("cifar10", 1, False, work, arguments.tiny).model
    with torch.device(arguments.device):
        networks = [build_network(model), build_network(model), stock_network(model).eval()]
    pipelines: dict[str, Any] = {
        "a call": DDPMPipeline(networks[0], build_scheduler(model)),
        "within sampling()": DDPMPipeline(networks[1], build_scheduler(model)),
        "stock": diffusers.DDPMPipeline(networks[2], diffusers.DDPMScheduler(num_train_timesteps=model.time_steps)),
    }
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    within, steps = pipelines["within sampling()"], arguments.sampling_steps
    draws = {
        who: partial(pipeline, count, num_inference_steps=steps, output_type="np")
        for who, pipeline in pipelines.items()
    }
    is_bfloat16 = dtype == "bfloat16"
    with torch.autocast(arguments.device, torch.bfloat16, enabled=is_bfloat16), within.sampling():
        turns = alternate(draws, arguments, min(arguments.pairs, 3))
    return {f"sampling, batch {count}, {dtype}: {who}": compare(turns, who, count) for who in turns if who != "stock"}


def alternate(calls: dict[str, Callable[[], Any]], arguments: argparse.Namespace, pairs: int) -> Turns:
    """Time calls in turns; which goes first changes from turn to turn."""

    def turn(call: Callable[[], Any], count: int) -> tuple[float, float]:
        started, waited = time.perf_counter(), 0.0
        for _ in range(count):
            result = call()
            waited += result if isinstance(result, float) else 0.0
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        return seconds / count, waited / seconds

    turns: Turns = {who: [] for who in calls}
    counts = {who: max(1, round(arguments.turn / turn(call, 1)[0])) for who, call in calls.items()}
    for index in range(pairs):
        for who in calls if index % 2 else reversed(calls):
            turns[who].append(turn(calls[who], counts[who]))
    return turns


def ratios(turns: Turns, slow: str, fast: str) -> list[float]:
    """How many times as long as another a contender takes: median over the pairs, lowest and highest."""
    each = [of_slow / of_fast for (of_slow, _), (of_fast, _) in zip(turns[slow], turns[fast], strict=True)]
    return [statistics.median(each), min(each), max(each)]


def compare(turns: Turns, who: str, num_images: int) -> dict[str, Any]:
    """The figures of a contender beside those of stock."""
    seconds, stock_seconds = (statistics.median(each for each, _ in turns[name]) for name in (who, "stock"))
    times_stock, low, high = ratios(turns, "stock", who)
    return {
        "seconds": seconds,
        "stock_seconds": stock_seconds,
        "images_per_second": num_images / seconds,
        "times_stock": times_stock,
        "low": low,
        "high": high,
        "waiting": statistics.mean(waiting for _, waiting in turns[who]),
    }


def start_memory(device: str) -> int:
    """Free what is not used; returns the bytes that stay reserved."""
    gc.collect()
    if device == "cpu":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def peak_memory(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_reserved()


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = ["# On a GPU: ours against stock", "", *(__doc__ or "").split("\n\n", 1)[1].strip().splitlines(), ""]
    lines += [f"{results['date']}; {results['machine']}; {versions}; {results['pairs']} pairs of turns. Large bfloat16"]
    lines += [f"matrix products reach {results['matrix_rate'] / 1e12:.3g} TFLOP/s here.", ""]
    lines += ["## Goals", "", "| | figure | goal | measured | |", "|---|---|--:|--:|---|"]
    rows = {**results["updates"], **results["sampling"]}
    for name, figure, sign, bound in GOALS:
        value = rows.get(name, {}).get(figure)
        form = "{:.2f}" if "stock" in figure else "{:.2%}"
        measured, met = "", "not measured"
        if value is not None:
            is_met = {">=": value >= bound, "<=": value <= bound, "<": value < bound}[sign]
            measured, met = form.format(value), "met" if is_met else "missed"
        lines.append(f"| {name} | {figure.replace('_', ' ')} | {sign} {form.format(bound)} | {measured} | {met} |")
    lines += [
        "",
        "## Updates",
        "",
        "| | precision | ran | ms | stock, ms | times stock (lowest to highest) | images/s |",
    ]
    lines[-1] += " of the chip | memory, GB (of stock's) | waiting for data | s until ready |"
    lines += ["|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name, row in results["updates"].items():
        memory = f"{row['memory'] / 1e9:.2f} ({row['memory_of_stock']:.2f})" if "memory" in row else ""
        lines.append(
            f"| {name} | {row['precision']} | {row['ran']} | {row['seconds'] * 1e3:.2f} "
            f"| {row['stock_seconds'] * 1e3:.2f} | {row['times_stock']:.2f} ({row['low']:.2f} to {row['high']:.2f}) "
            f"| {row['images_per_second']:,.0f} | {row['of_chip']:.1%} | {memory} | {row['waiting']:.2%} "
            f"| {row['ready_seconds']:.1f} |"
        )
    lines += ["", f"## Sampling in {results['sampling_steps']} steps", ""]
    lines += ["| | s | stock, s | times stock (lowest to highest) | images/s |", "|---|--:|--:|--:|--:|"]
    for name, row in results["sampling"].items():
        lines.append(
            f"| {name} | {row['seconds']:.3f} | {row['stock_seconds']:.3f} "
            f"| {row['times_stock']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['images_per_second']:.2f} |"
        )
    if results["left_out"]:
        lines += ["", "## Not measured", "", *(f"- {name}: {why}" for name, why in results["left_out"].items())]
    return "\n".join([*lines, ""])


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure what the budget suffices for, and write the results after each part."""
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "no GPU"
    modules = {"torch": torch, "diffusers": diffusers, "accelerate": accelerate}
    results: dict[str, Any] = {
        "machine": f"{gpu}, {processor()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | {name: each.__version__ for name, each in modules.items()},
        "date": datetime.now(timezone.utc).date().isoformat(),
        "pairs": arguments.pairs,
        "sampling_steps": arguments.sampling_steps,
        "matrix_rate": matrix_rate(arguments.device),
        "updates": {},
        "sampling": {},
        "left_out": {},
    }

    expected: dict[str, float] = {}
    for part in PARTS:
        name, batch, names = part
        kind = "sampling" if name == "sampling" else "compiled" if "compiled" in names else "recorded"
        title, started = f"{name}, batch {batch}: {', '.join(names)}", time.monotonic()
        left = arguments.budget - (started - STARTED)
        print(f"{started - STARTED:5.0f} s: {title}", file=sys.stderr, flush=True)
        if left < expected.get(kind, SECONDS[kind]):
            results["left_out"][title] = f"the budget of {arguments.budget:g} s is spent but for {max(left, 0):.0f}"
        else:
            try:
                if kind == "sampling":
                    results["sampling"] |= measure_sampling(batch, names[0], arguments, work)
                else:
                    results["updates"] |= measure_updates(part, arguments, work, results["matrix_rate"])
            except Exception as error:  # of whatever kind: the other parts are measured nevertheless
                traceback.print_exc()
                results["left_out"][title] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            torch.compiler.reset()  # compiled code of networks that are gone counts against torch's limit
            expected.setdefault(kind, time.monotonic() - started)
        write(results, arguments.output)
    return results


def write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "gpu.md").write_text(report(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=210, help="seconds that the run may take (210)")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn (0.5)")
    parser.add_argument("--sampling_steps", type=int, default=50, help="denoising steps (50)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of gpu.md and gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries out this program")
    parser.add_argument("--tiny", action="store_true", help="small networks and batches, to try out this program")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This measures a GPU, and PyTorch finds none here; --device cpu --tiny tries the program out.")
    if (arguments.device == "cpu" or arguments.tiny) and arguments.output == RESULTS:
        parser.error("a trial writes no results of a GPU: name another folder by --output")
    if arguments.device == "cpu":
        graphs.RECORDERS.setdefault("cpu", graphs.rerun)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    print(report(results))
    failed = [name for name, why in results["left_out"].items() if why.startswith("failed")]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
