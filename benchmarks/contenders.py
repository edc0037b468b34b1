"""Who trains against whom: our TrainStep, and the training step of diffusers' script, on the same network and images.

What versus_diffusers.py and digits_goal.py share. Libraries are imported where they are used, since a contender's time
to its first step begins with its process.
"""

import argparse
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from PIL.Image import Image

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
    """Our side: TrainStep, as the Trainer calls it.

    Args:
        config: of the run.
        is_deterministic: whether a recorded update's kernels are, as the Trainer's.
    """

    def __init__(self, config: Any, is_deterministic: bool = True) -> None:
        from ddpm_hf.training import captured
        from ddpm_hf.training.run_logger import RunningMeans
        from ddpm_hf.training.state import TrainState
        from ddpm_hf.training.trainer import Trainer
        from ddpm_hf.training.update import TrainStep

        trainer = Trainer(config)
        self.config = trainer.config
        self.state = TrainState(trainer.config, trainer.accelerator, compiled=trainer.plan.compiled)
        self.train_step = TrainStep(self.state, trainer.plan.images, trainer.num_steps)
        any_kernels = patch.object(captured, "deterministic_kernels", lambda device, strict: nullcontext())
        with nullcontext() if is_deterministic else any_kernels:
            self.train_step.run = captured.choose_run(self.train_step, 0)
        self.means = RunningMeans(trainer.accelerator, trainer.config.model.time_steps)
        self.step = 0

    def update(self) -> float:
        """One update; returns the seconds spent waiting for data."""
        output = self.train_step.update(self.step)
        self.means.add(output)
        self.step += 1
        return float(output.settings["data_seconds"])

    def save(self, folder: Path) -> Path:
        from ddpm_hf.checkpoints.format import Progress, write_checkpoint

        progress = Progress(step=self.step, config=self.config.to_dict())
        files = self.state.gather()
        return write_checkpoint(folder, self.step, lambda at: self.state.save(at, progress, files), keep=1)

    def load(self, folder: Path) -> None:
        from ddpm_hf.checkpoints.format import OPTIMIZER, STATE, find_damage
        from ddpm_hf.training.state import load_optimizer_state

        assert find_damage(folder) is None
        self.state._load_weights(folder, self.state.network)
        load_optimizer_state(self.state.optimizer.optimizer, folder / STATE / OPTIMIZER)


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

    from ddpm_hf.runtime.distributed import use_all_cores

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
