"""Everything that can fail is tried before the first step: the plan of a run, and what it will cost."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet, load_image_set
from ddpm_hf.errors import UserError
from ddpm_hf.models import build_network
from ddpm_hf.schedulers import build_scheduler, terminal_signal_warning
from ddpm_hf.training.objective import load_perceptual
from ddpm_hf.training.resume import find_start
from ddpm_hf.training.run_folder import RunFolder

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check.

    Attributes:
        config: its configuration.
        run: the folder that it writes to.
        start: the checkpoint that it goes on from; None for the beginning.
        images: the training images.
        num_steps: updates of the whole run.
        perceptual: the perceptual loss, if the configuration asks for one.
    """

    config: Config
    run: RunFolder
    start: Path | None
    images: ImageSet
    num_steps: int
    perceptual: "PerceptualLoss | None"


def make_plan(config: Config, resume: str | None, accelerator: Accelerator) -> Plan:
    """Check a configuration against the run folder, the data and the machine; nothing is written.

    Raises:
        UserError: naming what does not fit.
    """
    run = RunFolder(config.output_dir or "runs/run")
    start = find_start(run, config, resume)
    training, parts = config.training, accelerator.num_processes * config.training.gradient_accumulation_steps
    if training.batch_size % parts:
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: a multiple of {parts}, which is the number of "
            f"processes ({accelerator.num_processes}) times training.gradient_accumulation_steps"
        )
    if warning := terminal_signal_warning(build_scheduler(config.model)):
        logger.warning(warning)
    images = load_image_set(config.dataset, config.model, progress=accelerator.is_main_process)
    if training.batch_size > len(images):
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: at most {len(images)}, the number of images "
            f"in {config.dataset.name!r}"
        )
    num_steps = training.num_steps or -(-training.num_epochs * len(images) // training.batch_size)
    return Plan(config, run, start, images, num_steps, load_perceptual(config))


def describe(plan: Plan, accelerator: Accelerator) -> str:
    """What a run will do and cost, for a person to read."""
    config, images, steps = plan.config, plan.images, plan.num_steps
    with torch.device("meta"):
        network = build_network(config.model)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    epochs = steps * config.training.batch_size / len(images)
    start = f"{plan.start}" if plan.start else "the beginning"
    device = f"{accelerator.num_processes} on {accelerator.device.type}"
    lines = {
        "parameters": f"{num_parameters:,}",
        "data": f"{len(images):,} images of {config.dataset.name!r} in an epoch",
        "steps": f"{steps:,} of {config.training.batch_size} images, {epochs:,.1f} epochs, from {start}",
        "processes": f"{device}, precision {accelerator.mixed_precision}",
        "memory": f"about {_gigabytes(_memory(network, config, images, accelerator.num_processes))} per process",
        "disk": f"about {_gigabytes(_disk(num_parameters, config))} of {_gigabytes(plan.run.free_bytes())} free",
        "output": f"{plan.run.path}/",
    }
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items())


def _memory(network: nn.Module, config: Config, images: ImageSet, num_processes: int) -> int:
    """Bytes of a process: weights, gradients, Adam's moments, average, activations of a part, and the data."""
    share = config.training.batch_size // num_processes // config.training.gradient_accumulation_steps
    fixed = 5 * sum(parameter.nbytes for parameter in network.parameters())
    return fixed + share * _activations(network, config) + images.images.nbytes


def _activations(network: nn.Module, config: Config) -> int:
    """Bytes that one image's forward pass keeps for the backward pass, counted without computing anything."""
    size, channels = config.model.image_size, config.model.image_channels
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    labels = None if config.model.num_classes is None else torch.zeros(2, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        image, timestep = torch.empty(2, channels, size, size, device="meta"), torch.zeros(2, device="meta")
        output = network.train()(image, timestep, labels).sample
        del output
    return sum(kept.values()) // 2


def _disk(num_parameters: int, config: Config) -> int:
    """Bytes of the kept checkpoints (weights, their average, two moments), one being written, and the pipeline."""
    return 4 * num_parameters * (4 * (config.training.checkpoints_to_keep + 1) + 1)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
