"""Everything that can fail is tried before the first step: the plan of a run, and what it will cost."""

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import nn

from ddpm_hf.checkpoints.format import Progress
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet, load_image_sets
from ddpm_hf.data.sources import pin_dataset
from ddpm_hf.hub.sanitize import sanitize_config
from ddpm_hf.models import build_network
from ddpm_hf.pipelines.ddpm import DEFAULT_NUM_STEPS
from ddpm_hf.pipelines.pictures import learning_rate_curve, schedule_curves
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps
from ddpm_hf.runtime.distributed import assert_same_across_ranks, from_main_process
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.schedulers import build_scheduler, terminal_signal_warning
from ddpm_hf.training.costs import device_bytes, disk_bytes, gigabytes, memory_bytes
from ddpm_hf.training.learning_rate import learning_rate
from ddpm_hf.training.objective import load_perceptual
from ddpm_hf.training.resume import find_common_start, go_on_with, tell_of_processes

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss

logger = logging.getLogger(__name__)

NUM_COMPARED = 100
"""Images by which processes find that they have the same ones."""


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check.

    Attributes:
        config: its configuration, the dataset's commit included.
        run: the folder that it writes to.
        found: what lies in that folder.
        start: the checkpoint that it goes on from; None for the beginning.
        images: the training images.
        held_out: those that the loss is measured on; None where it is not.
        num_steps: updates of the whole run.
        perceptual: the perceptual loss, if the configuration asks for one.
    """

    config: Config
    run: RunFolder
    found: tuple[str, ...]
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
    found = run.found()
    start = find_common_start(run, resume, accelerator)
    if start is not None:
        tell_of_processes(start, accelerator.num_processes, config)
        config = go_on_with(config, start)
    # the Hub may answer one process so and another one otherwise
    dataset = from_main_process(partial(pin_dataset, config.dataset))
    config = config.model_copy(update={"dataset": dataset})
    training, parts = config.training, accelerator.num_processes * config.training.gradient_accumulation_steps
    if training.batch_size % parts:
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: a multiple of {parts}, which is the number of "
            f"processes ({accelerator.num_processes}) times training.gradient_accumulation_steps"
        )
    if warning := terminal_signal_warning(build_scheduler(config.model)):
        logger.warning(warning)
    _check_previews(config)
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
    if start is not None and (before := Progress.read(start).num_images) not in (None, len(images)):
        raise UserError(
            f"{start} belongs to a run on {before:,} images; {config.dataset.name!r} now has {len(images):,}, whose "
            "order is another"
        )
    if accelerator.is_main_process:
        _check_disk(config, run)
    assert_same_across_ranks(_identity(config, images, accelerator))
    num_steps = training.num_steps or -(-training.num_epochs * len(images) // training.batch_size)
    held_out = held_out if training.validate_every else None
    return Plan(config, run, found, start, images, held_out, num_steps, load_perceptual(config))


def _identity(config: Config, images: ImageSet, accelerator: Accelerator) -> dict[str, Any]:
    """What all processes of a run must have in common; where files lie may differ between machines."""
    options = sanitize_config(config.to_dict())
    options["dataset"] = {name: value for name, value in options["dataset"].items() if name != "cache_dir"}
    looked_at = images.images[:: max(1, len(images) // NUM_COMPARED)]
    return {
        **options,
        "the number of images": len(images),
        "images by their hash": hashlib.sha256(looked_at.contiguous().numpy().tobytes()).hexdigest()[:16],
        "the precision": accelerator.mixed_precision,
    }


def _check_previews(config: Config) -> None:
    """Refuse a sampler, or a number of steps, that cannot draw with the model's noise schedule."""
    training, scheduler = config.training, build_scheduler(config.model)
    try:
        if training.preview_sampler is not None:
            scheduler = make_sampler(training.preview_sampler, scheduler)
        set_num_steps(scheduler, training.preview_inference_steps or min(DEFAULT_NUM_STEPS, config.model.time_steps))
    except ValueError as error:
        raise UserError(f"training.preview_sampler, training.preview_inference_steps: {error}") from error


def _network(config: Config) -> tuple[nn.Module, int]:
    """The network without its weights, and how many it has."""
    with torch.device("meta"):
        network = build_network(config.model)
    return network, sum(parameter.numel() for parameter in network.parameters())


def _check_disk(config: Config, run: RunFolder) -> None:
    """Say that a disk is too small for the run; it may yet be made larger."""
    needed, free = disk_bytes(_network(config)[1], config) - run.kept_bytes(), run.free_bytes()
    if needed > free:
        logger.warning(
            "the checkpoints of this run will take about %s more, and %s are free for %s; fewer "
            "training.checkpoints_to_keep take less",
            gigabytes(needed),
            gigabytes(free),
            run.path,
        )


def describe(plan: Plan, accelerator: Accelerator) -> str:
    """What a run will do and cost, for a person to read."""
    config, images, steps = plan.config, plan.images, plan.num_steps
    network, num_parameters = _network(config)
    epochs = steps * config.training.batch_size / len(images)
    start = f"{plan.start}" if plan.start else "the beginning"
    device = f"{accelerator.num_processes} on {accelerator.device.type}"
    held_out = f", {len(plan.held_out):,} held out" if plan.held_out is not None else ""
    skipped = f", {len(images.skipped):,} that cannot be read" if images.skipped else ""
    classes = f", of {len(images.class_names)} classes" if images.class_names else ""
    saves_memory = accelerator.mixed_precision != "no" or config.training.gradient_checkpointing
    bound = "below" if saves_memory else "about"  # counted in float32 with every activation kept
    levels = len(config.model.channel_multipliers)
    smallest = config.model.image_size // 2 ** (levels - 1)
    lines = {
        "network": f"{num_parameters:,} parameters, {levels} levels, the deepest at {smallest}x{smallest} pixels",
        "data": f"{len(images):,} images of {config.dataset.name!r} in an epoch{classes}{held_out}{skipped}",
        "steps": f"{steps:,} of {config.training.batch_size} images, {epochs:,.1f} epochs, from {start}",
        "schedule": f"{build_scheduler(config.model).terminal_signal:.2%} of the image is left at its end",
        "processes": f"{device}, precision {accelerator.mixed_precision}",
        "memory": f"{bound} {gigabytes(memory_bytes(network, config, images, accelerator))} per process, of "
        f"{gigabytes(device_bytes(accelerator.device))}",
        "disk": f"about {gigabytes(disk_bytes(num_parameters, config))}, with {gigabytes(plan.run.free_bytes())} free",
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
