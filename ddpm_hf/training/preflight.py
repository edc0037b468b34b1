"""Everything that can fail is tried before the first step: the plan of a run, and what it will cost."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet, load_image_sets
from ddpm_hf.errors import UserError
from ddpm_hf.hub import pin_dataset
from ddpm_hf.models import build_network
from ddpm_hf.plotting import learning_rate_curve, schedule_curves
from ddpm_hf.schedulers import build_scheduler, terminal_signal_warning
from ddpm_hf.training.learning_rate import learning_rate
from ddpm_hf.training.objective import load_perceptual
from ddpm_hf.training.resume import find_start, go_on_with
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.state import STATE, load_progress

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check.

    Attributes:
        config: its configuration, the dataset's commit included.
        run: the folder that it writes to.
        start: the checkpoint that it goes on from; None for the beginning.
        images: the training images.
        held_out: those that the loss is measured on; None where it is not.
        num_steps: updates of the whole run.
        perceptual: the perceptual loss, if the configuration asks for one.
    """

    config: Config
    run: RunFolder
    start: Path | None
    images: ImageSet
    held_out: ImageSet | None
    num_steps: int
    perceptual: "PerceptualLoss | None"


def make_plan(config: Config, resume: str | None, accelerator: Accelerator) -> Plan:
    """Check a configuration against the run folder, the data and the machine; nothing is written.

    Raises:
        UserError: naming what does not fit.
    """
    run = RunFolder(config.output_dir or "runs/run")
    start = find_start(run, resume)
    if start is not None:
        config = go_on_with(config, start)
    config = config.model_copy(update={"dataset": pin_dataset(config.dataset)})
    training, parts = config.training, accelerator.num_processes * config.training.gradient_accumulation_steps
    if training.batch_size % parts:
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: a multiple of {parts}, which is the number of "
            f"processes ({accelerator.num_processes}) times training.gradient_accumulation_steps"
        )
    if warning := terminal_signal_warning(build_scheduler(config.model)):
        logger.warning(warning)
    images, held_out = load_image_sets(config.dataset, config.model, config.seed, accelerator.is_main_process)
    if training.batch_size > len(images):
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: at most {len(images)}, the number of images "
            f"in {config.dataset.name!r}"
        )
    if training.validate_every and held_out is None:
        raise UserError(
            f"training.validate_every: given {training.validate_every}; allowed: null, or images to measure on: set "
            "dataset.validation_split or dataset.validation_fraction"
        )
    if start is not None and (before := load_progress(start / STATE).num_images) not in (None, len(images)):
        raise UserError(
            f"{start} belongs to a run on {before:,} images; {config.dataset.name!r} now has {len(images):,}, whose "
            "order is another"
        )
    num_steps = training.num_steps or -(-training.num_epochs * len(images) // training.batch_size)
    held_out = held_out if training.validate_every else None
    return Plan(config, run, start, images, held_out, num_steps, load_perceptual(config))


def describe(plan: Plan, accelerator: Accelerator) -> str:
    """What a run will do and cost, for a person to read."""
    config, images, steps = plan.config, plan.images, plan.num_steps
    with torch.device("meta"):
        network = build_network(config.model)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    epochs = steps * config.training.batch_size / len(images)
    start = f"{plan.start}" if plan.start else "the beginning"
    device = f"{accelerator.num_processes} on {accelerator.device.type}"
    held_out = f", {len(plan.held_out):,} held out" if plan.held_out is not None else ""
    levels = len(config.model.channel_multipliers)
    smallest = config.model.image_size // 2 ** (levels - 1)
    lines = {
        "network": f"{num_parameters:,} parameters, {levels} levels, the deepest at {smallest}x{smallest} pixels",
        "data": f"{len(images):,} images of {config.dataset.name!r} in an epoch{held_out}",
        "steps": f"{steps:,} of {config.training.batch_size} images, {epochs:,.1f} epochs, from {start}",
        "schedule": f"{build_scheduler(config.model).terminal_signal:.2%} of the image is left at its end",
        "processes": f"{device}, precision {accelerator.mixed_precision}",
        "memory": f"about {_gigabytes(_memory(network, config, images, accelerator))} per process",
        "disk": f"about {_gigabytes(_disk(num_parameters, config))} of {_gigabytes(plan.run.free_bytes())} free",
        "output": f"{plan.run.path}/",
    }
    if config.hub.repo_id is not None:
        lines["hub"] = f"{config.hub.repo_id}, which can be written to"
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items())


def draw_plan(plan: Plan) -> list[Path]:
    """Draw the learning rate and the noise schedule of a run that is only planned; returns the pictures."""
    training, folder = plan.config.training, plan.run.dry_run
    folder.mkdir(parents=True, exist_ok=True)
    peak, shape = training.learning_rate, training.scheduler
    rates = [learning_rate(step, plan.num_steps, peak, shape) for step in range(plan.num_steps)]
    pictures = [folder / "learning_rate.png", folder / "schedule.png"]
    learning_rate_curve(rates, pictures[0])
    schedule_curves(build_scheduler(plan.config.model).process.tables["alpha_bar"], pictures[1])
    return pictures


def _memory(network: nn.Module, config: Config, images: ImageSet, accelerator: Accelerator) -> int:
    """Bytes of a process: weights, gradients, Adam's moments, averages, activations of a part, its copy of the data."""
    share = config.training.batch_size // accelerator.num_processes // config.training.gradient_accumulation_steps
    averages = 1 + len(config.training.ema_extra_decays)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    fixed = (4 + averages) * weights
    if accelerator.is_fsdp2:  # averages are besides put together to be looked at
        fixed = fixed // accelerator.num_processes + averages * weights
    copied = images.images.nbytes if config.dataset.in_memory else 0  # else mapped from a file, for all processes
    return fixed + share * _activations(network, config) + copied


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
    """Bytes of the kept checkpoints (weights, their averages, two moments), one being written, and the pipeline."""
    training = config.training
    averages = 1 + len(training.ema_extra_decays)
    kept = training.checkpoints_to_keep + 1 + (training.keep_best_by is not None)
    return 4 * num_parameters * ((3 + averages) * kept + averages)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
