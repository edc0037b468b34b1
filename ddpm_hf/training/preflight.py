"""Checks before the first step: the plan of a run, the memory and disk that it needs, the commands that follow it."""

import filecmp
import hashlib
import logging
import os
import re
import shlex
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_hf.checkpoints.format import INDEX, UNET, WEIGHTS
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.data import ImageSet, load_image_sets
from ddpm_hf.data.sources import pin_dataset
from ddpm_hf.models import build_network
from ddpm_hf.pipelines.ddpm import DEFAULT_NUM_STEPS
from ddpm_hf.pipelines.pictures import learning_rate_curve, schedule_curves
from ddpm_hf.pipelines.samplers import make_sampler, set_num_steps
from ddpm_hf.runtime.cli import launcher
from ddpm_hf.runtime.distributed import assert_same_across_ranks, from_main_process
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.sanitize import sanitize_config
from ddpm_hf.schedulers import build_scheduler, terminal_signal_warning
from ddpm_hf.training.compilation import WARM_UP_SECONDS, is_compiled, seconds_saved
from ddpm_hf.training.fine_tuning import find_source, freeze, load_pretrained
from ddpm_hf.training.learning_rate import learning_rate
from ddpm_hf.training.objective import load_perceptual
from ddpm_hf.training.resume import Start, find_start, resume_config, with_its_weights

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss

logger = logging.getLogger(__name__)

NUM_HASHED = 100
"""Images by whose hash processes check that they have the same data."""

MAX_CLASSES_SHOWN = 10
"""Classes, at most, that a printed command names."""


@dataclass(frozen=True)
class RunPlan:
    """A run that has passed every check.

    Attributes:
        config: of the run, with the commit of the dataset.
        run: folder of the run.
        found: content of that folder, by which another run is detected.
        start: the checkpoint that it is resumed from.
        images: the training images.
        held_out: images for the validation loss; None without validation.
        num_steps: updates of the whole run.
        perceptual: the perceptual loss, if the configuration uses one.
        compiled: whether the network is compiled.
        is_finished: whether all steps are done, and the run folder holds the pipeline and the pictures of the last one.
    """

    config: Config
    run: RunFolder
    found: tuple[str, ...]
    start: Start
    images: ImageSet
    held_out: ImageSet | None
    num_steps: int
    perceptual: "PerceptualLoss | None"
    compiled: bool
    is_finished: bool


def make_plan(config: Config, resume: str | None, accelerator: Accelerator) -> RunPlan:
    """Check a configuration against the run folder, the data and the machine; nothing is written.

    Every process calls this together.

    Raises:
        UserError: naming what does not fit.
    """
    run = RunFolder(config.output_dir or "runs/run")
    found, start = run.found(), find_start(run, resume)
    if start.checkpoint is not None:
        config = resume_config(config, start, accelerator.num_processes)
    elif config.model.pretrained is not None:
        source = from_main_process(partial(find_source, config.model.pretrained))
        if not accelerator.is_main_process:  # it may lie elsewhere on another machine
            source = find_source(source.name)
        pretrained = load_pretrained(config.model, source)
        start, config = replace(start, pretrained=pretrained), config.model_copy(update={"model": pretrained.model})
    # Only the main process asks the Hub, whose answers may differ from one moment to the next.
    config = config.model_copy(update={"dataset": from_main_process(partial(pin_dataset, config.dataset))})
    if warning := terminal_signal_warning(build_scheduler(config.model)):
        logger.warning(warning)
    _check_batch_size(config, accelerator)
    _check_previews(config)
    images, held_out = load_image_sets(config.dataset, config.model, config.seed, accelerator.is_main_process)
    config = record_value_range(config, images, start)
    _check_images(config, start, images)
    if accelerator.is_main_process:
        _check_disk(config, run)
    assert_same_across_ranks(_identity(config, images, accelerator))
    training = config.training
    num_steps = training.num_steps or -(-training.num_epochs * len(images) // training.batch_size)
    held_out = held_out if training.validate_every else None
    if start.progress.step > num_steps:
        raise UserError(
            f"training.num_steps: given {num_steps:,}; {start.checkpoint} is of step {start.progress.step:,}; allowed: "
            f"at least as many, and more to go on with the run; or "
            f"{with_its_weights(start.checkpoint)}"
        )
    compiled = is_compiled(config, accelerator, num_steps)
    is_finished = from_main_process(partial(_is_finished, run, start, num_steps))  # others may not see its folder
    perceptual = load_perceptual(config)
    return RunPlan(config, run, found, start, images, held_out, num_steps, perceptual, compiled, is_finished)


def _is_finished(run: RunFolder, start: Start, num_steps: int) -> bool:
    """Whether nothing of a run is left to do; its pipeline may be that of another step than the checkpoint's."""
    checkpoint, files = start.checkpoint, (run.samples, run.denoising, run.path / INDEX)
    if checkpoint is None or start.progress.step < num_steps or start.progress.pending:
        return False
    published, last = (folder / UNET / f"{WEIGHTS}.safetensors" for folder in (run.path, checkpoint))
    have_files = all(file.exists() for file in (*files, published, last))
    return have_files and filecmp.cmp(published, last, shallow=False)


def describe(plan: RunPlan, accelerator: Accelerator) -> str:
    """What a run will do and need, for a person to read."""
    config, images, steps = plan.config, plan.images, plan.num_steps
    network, num_parameters = _network(config)
    epochs = steps * config.training.batch_size / len(images)
    start = plan.start.checkpoint or "the beginning"
    held_out = f", {len(plan.held_out):,} held out" if plan.held_out is not None else ""
    skipped = f", {len(images.skipped):,} that cannot be read" if images.skipped else ""
    classes = f", of {len(images.class_names)} classes" if images.class_names else ""
    saves_memory = accelerator.mixed_precision != "no" or config.training.gradient_checkpointing
    bound = "below" if saves_memory else "about"  # it is counted in float32, with every activation kept
    levels = len(config.model.channel_multipliers)
    height, width = (side // 2 ** (levels - 1) for side in config.model.sides)
    frozen = sum(each.numel() for each in network.parameters() if not each.requires_grad)
    trained = f" ({num_parameters - frozen:,} of them trained)" if frozen else ""
    lines = {
        "network": f"{num_parameters:,} parameters{trained}, {levels} levels, the deepest at {height}x{width} pixels",
        "data": f"{len(images):,} images of {config.dataset.name!r} in an epoch{classes}{held_out}{skipped}",
        "steps": f"{steps:,} of {config.training.batch_size} images, {epochs:,.1f} epochs, from {start}",
        "schedule": f"{build_scheduler(config.model).terminal_signal:.2%} of the image is left at its end",
        "processes": f"{accelerator.num_processes} on {accelerator.device.type}, precision "
        f"{accelerator.mixed_precision}",
        "speed": _speed(plan, accelerator),
        "memory": f"{bound} {_gigabytes(_memory_bytes(network, config, images, accelerator))} per process, of "
        f"{_gigabytes(_device_bytes(accelerator.device))}",
        "disk": f"about {_gigabytes(disk_bytes(num_parameters, config))}, with {_gigabytes(plan.run.free_bytes())} "
        "free",
        "output": f"{plan.run.path}/",
    }
    if config.model.pretrained is not None:
        changes = plan.start.pretrained.changes if plan.start.pretrained else ()
        lines["pretrained"] = "; ".join((f"{config.model.pretrained}, its network and schedule", *changes))
    if config.hub.repo_id is not None:
        lines["hub"] = f"{config.hub.repo_id}, which can be written to"
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items())


def _speed(plan: RunPlan, accelerator: Accelerator) -> str:
    """How updates run, with the reason for compiling them or not."""
    if accelerator.device.type != "cuda":
        return "compiled" if plan.compiled else "eager"
    saved = seconds_saved(plan.config, plan.num_steps, accelerator.num_processes)
    return (
        f"a CUDA graph, {'compiled' if plan.compiled else 'not compiled'}: compiling takes about {WARM_UP_SECONDS} s "
        f"and saves about {saved:,.0f} s of this run"
    )


def commands(plan: RunPlan) -> str:
    """The commands that a person may want after a run, a line each; they work as they stand for its kind.

    Args:
        plan: of the run, whose folder holds the finished pipeline.
    """
    config, run, num_steps = plan.config, plan.run, plan.num_steps
    folder, file = shlex.quote(str(run.path)), shlex.quote(str(run.config))
    T, num_classes = config.model.time_steps, config.model.num_classes
    steps = f", num_inference_steps={T}" if T < DEFAULT_NUM_STEPS else ""  # stock pipelines refuse more than T
    if num_classes is None:
        package, name, drawn, classes = "diffusers", "DiffusionPipeline", "batch_size=4", ""
    else:  # stock pipelines pass no class to the network
        shown = range(min(num_classes, MAX_CLASSES_SHOWN))
        package, name, drawn = "ddpm_hf", "DDPMPipeline", f"class_labels={list(shown)}"
        classes = f" --class_labels {' '.join(map(str, shown))}"
    code = f"from {package} import {name} as P; P.from_pretrained({str(run.path)!r})({drawn}{steps}).images[0].show()"
    lines = {
        "sample": f"python pipelines/generate.py --model {folder} --num_samples 16{classes}",
        "resume": f"{launcher()} training/train.py --config {file} --resume latest training.num_steps={2 * num_steps}",
        "score": _score_command(config.benchmark, len(plan.images), file),
        "open": f"python -c {_quoted(code)}",
    }
    return "\n".join(f"  {name + ':':<8}{line}" for name, line in lines.items())


def _score_command(benchmark: BenchmarkConfig, num_images: int, file: str) -> str:
    """A command that scores the run; it first installs packages that are missing, and asks for no metric in vain."""
    # imported here, since it takes part of a second, and a run that is stopped needs none of it
    from ddpm_hf.evaluation.extractors import NUM_FEATURES, install_command

    command = f"{launcher()} training/train.py --config {file} --eval_only --benchmark"
    fewest, metrics = min(benchmark.n_samples, num_images), benchmark.metrics
    has_few = benchmark.reference_split is None and fewest <= NUM_FEATURES.get(benchmark.features, 0)
    if metrics.fid and has_few and not benchmark.allow_few_samples:
        command += " benchmark.metrics.fid=false"
    install = install_command(benchmark)
    return f"{install} && {command}" if install else command


def _quoted(code: str) -> str:
    """Quote code for a shell: readably in double quotes, where nothing in it has a meaning to the shell."""
    return shlex.quote(code) if re.search(r'["$`\\!]', code) else f'"{code}"'


def draw_plan(plan: RunPlan) -> list[Path]:
    """Plot the learning rate and the noise schedule of a run that is only planned; returns the files."""
    training, folder = plan.config.training, plan.run.dry_run
    folder.mkdir(parents=True, exist_ok=True)
    peak, shape = training.learning_rate, training.scheduler
    rates = [learning_rate(step, plan.num_steps, peak, shape) for step in range(plan.num_steps)]
    pictures = [folder / "learning_rate.png", folder / "schedule.png"]
    learning_rate_curve(rates, pictures[0])
    schedule_curves(build_scheduler(plan.config.model).process.tables["alpha_bar"], pictures[1])
    return pictures


def disk_bytes(num_parameters: int, config: Config) -> int:
    """Bytes of all kept checkpoints (weights, averages, optimizer state), one being written, and the pipeline."""
    training = config.training
    num_averages = 1 + len(training.ema_extra_decays)
    num_checkpoints = training.checkpoints_to_keep + 1 + (training.keep_best_by is not None)
    return 4 * num_parameters * ((3 + num_averages) * num_checkpoints + num_averages)


def _check_previews(config: Config) -> None:
    """Raise for a sampler, or a number of steps, that cannot sample with the model's noise schedule."""
    training, scheduler = config.training, build_scheduler(config.model)
    try:
        if training.preview_sampler is not None:
            scheduler = make_sampler(training.preview_sampler, scheduler)
        set_num_steps(scheduler, training.preview_inference_steps or min(DEFAULT_NUM_STEPS, config.model.time_steps))
    except ValueError as error:
        raise UserError(f"training.preview_sampler, training.preview_inference_steps: {error}") from error


def _check_batch_size(config: Config, accelerator: Accelerator) -> None:
    """Raise for a batch that cannot be divided among processes and micro-batches."""
    training = config.training
    divisor = accelerator.num_processes * training.gradient_accumulation_steps
    if training.batch_size % divisor:
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: a multiple of {divisor}, which is the number "
            f"of processes ({accelerator.num_processes}) times training.gradient_accumulation_steps"
        )


def record_value_range(config: Config, images: ImageSet, start: Start) -> Config:
    """Replace `dataset.value_range: auto` by the range that was chosen, so that a resumed run keeps it."""
    if images.value_range is None or config.dataset.value_range != "auto":
        return config
    if start.checkpoint is not None and "value_range" not in start.progress.config["dataset"]:
        logger.warning(
            "%s is of version 0.1.0, which scaled images of 16 bits by 1/257 and floats one by one; "
            "dataset.value_range has %g become black and %g white from here on",
            start.checkpoint,
            *images.value_range,
        )
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"value_range": images.value_range})})


def _check_images(config: Config, start: Start, images: ImageSet) -> None:
    """Raise for numbers of images that do not fit the configuration or the checkpoint."""
    training, before = config.training, start.progress.num_images
    if training.batch_size > len(images):
        raise UserError(
            f"training.batch_size: given {training.batch_size}; allowed: at most {len(images)}, the number of images "
            f"in {config.dataset.name!r}"
        )
    if before not in (None, len(images)):
        raise UserError(
            f"{start.checkpoint} belongs to a run on {before:,} images; {config.dataset.name!r} now has "
            f"{len(images):,}, in another order; put back what was removed and take out what was added, or "
            f"{with_its_weights(start.checkpoint)}"
        )


def _check_disk(config: Config, run: RunFolder) -> None:
    """Warn if the disk is too small for the run."""
    needed, free = disk_bytes(_network(config)[1], config) - run.kept_bytes(), run.free_bytes()
    if needed > free:
        logger.warning(
            "The checkpoints of this run need about %s more, and %s are free for %s. Fewer "
            "training.checkpoints_to_keep need less.",
            _gigabytes(needed),
            _gigabytes(free),
            run.path,
        )


def _identity(config: Config, images: ImageSet, accelerator: Accelerator) -> dict[str, Any]:
    """The settings that all processes of a run must share; the locations of files may differ between machines."""
    options = sanitize_config(config.to_dict())
    options["dataset"] = {name: value for name, value in options["dataset"].items() if name != "cache_dir"}
    hashed = images.images[:: max(1, len(images) // NUM_HASHED)]
    return {
        **options,
        "the number of images": len(images),
        "the hash of the images": hashlib.sha256(hashed.contiguous().numpy().tobytes()).hexdigest()[:16],
        "the precision": accelerator.mixed_precision,
    }


def _network(config: Config) -> tuple[nn.Module, int]:
    """The network without memory for its weights, and the number of its parameters."""
    with torch.device("meta"):
        network = build_network(config.model)
    freeze(network, config.training.freeze)
    return network, sum(parameter.numel() for parameter in network.parameters())


def _memory_bytes(network: nn.Module, config: Config, images: ImageSet, accelerator: Accelerator) -> int:
    """Bytes of a process: weights, gradients, optimizer state, averages, activations of a micro-batch, its images."""
    share = config.training.batch_size // accelerator.num_processes // config.training.gradient_accumulation_steps
    num_averages = 1 + len(config.training.ema_extra_decays)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    fixed = (4 + num_averages) * weights
    if accelerator.is_fsdp2:  # averages are also gathered in every process
        fixed = fixed // accelerator.num_processes + num_averages * weights
    own_images = images.images.nbytes if config.dataset.in_memory else 0  # else all processes map one file
    return fixed + share * _activation_bytes(network, config) + own_images


def _activation_bytes(network: nn.Module, config: Config) -> int:
    """Bytes that one image's forward pass saves for the backward pass, counted on the meta device."""
    sides, channels = config.model.sides, config.model.image_channels
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    labels = None if config.model.num_classes is None else torch.zeros(2, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        image, timestep = torch.empty(2, channels, *sides, device="meta"), torch.zeros(2, device="meta")
        output = network.train()(image, timestep, labels).sample
        del output
    return sum(saved.values()) // 2


def _device_bytes(device: torch.device) -> int:
    """The memory of the GPU or, without one, of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
