"""Where a run starts: with new weights, those of another pipeline, or from a checkpoint."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ddpm_hf.checkpoints.fetch import fetch_checkpoint
from ddpm_hf.checkpoints.format import (
    PROGRESS,
    STATE,
    Progress,
    find_damage,
    find_latest,
    list_checkpoints,
    step_of,
    tensor_shapes,
)
from ddpm_hf.checkpoints.run_folder import RESUMABLE, RunFolder
from ddpm_hf.config import Config, ModelConfig
from ddpm_hf.config.reader import explain
from ddpm_hf.data.sources import is_commit
from ddpm_hf.runtime.distributed import assert_same_across_ranks
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.sanitize import sanitize_config
from ddpm_hf.runtime.values import diff, merge
from ddpm_hf.training.fine_tuning import Pretrained, follow

logger = logging.getLogger(__name__)

FIXED = (
    "seed",
    "dataset",
    "model_config",
    "training.batch_size",
    "training.optimizer",
    "training.freeze",
    "loss_config.timestep_sampling",
)
"""Options that must not change in a resumed run: the weights or the order of images would belong to neither run."""

FREE = ("cache_dir", "in_memory", "streaming", "strict", "validation_split")
"""Options of the dataset that may change all the same: they do not affect the training images."""

FIXED_WITH_DISCRIMINATOR = ("loss_config.adversarial.hidden_channels", "loss_config.adversarial.num_levels")
"""Options that must not change either once there is a discriminator."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: its folder; None for a new run.
        progress: of the checkpoint.
        pretrained: the network that a new run begins with; None for new weights.
    """

    checkpoint: Path | None = None
    progress: Progress = field(default_factory=Progress)
    pretrained: Pretrained | None = None


def with_its_weights(model: Path | None) -> str:
    """How to begin a new run where one cannot be resumed."""
    return f"begin a new run with its weights: output_dir=ANOTHER_FOLDER model_config.pretrained={model}"


def find_start(run: RunFolder, resume: str | None) -> Start:
    """Find the checkpoint that a run is resumed from; every process calls this together.

    Args:
        run: folder of the run; it need not exist yet.
        resume: "latest", the folder of a checkpoint, or of a run for its newest one, "hub:USER/REPO[@REV]" for one on
            the Hub; "auto" for latest if the folder holds a run, and a new run otherwise; None for a new run.

    Returns:
        The checkpoint and its progress.

    Raises:
        UserError: if a new run would overwrite another one, if the checkpoint is missing or damaged, or if the
            processes would start at different steps.
    """
    start, failure = Start(), None
    try:
        start = _find_start(run, resume)
    except UserError as error:  # raised after the comparison, since it may be that of some processes only
        failure = error
    step = None if failure else start.progress.step
    assert_same_across_ranks({"the step of the checkpoint in output_dir": step})
    if failure is not None:
        raise failure
    return start


def _find_start(run: RunFolder, resume: str | None) -> Start:
    if resume is None or (resume == "auto" and not run.holds_a_run):
        run.check_free()
        return Start()
    if resume.startswith("hub:"):
        resume = str(fetch_checkpoint(resume))
    if resume in ("auto", "latest"):
        run.check_begun()
        latest = find_latest(run.checkpoints)
        if latest is None:
            logger.warning("%s has no complete checkpoint yet: starting from the beginning", run.path)
            return Start()
        return _read_start(latest)
    checkpoint = Path(resume)
    for root in (checkpoint, RunFolder(checkpoint).checkpoints):  # its newest one stands for a run
        checkpoint = find_latest(root) or checkpoint
    damage = find_damage(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if damage is not None:
        raise UserError(f"--resume {resume}: {damage}; allowed: {RESUMABLE}")
    start = _read_start(checkpoint)
    if checkpoint.resolve().parent != run.checkpoints.resolve():
        run.check_free()
        return start
    step = start.progress.step
    if later := [each.name for each in list_checkpoints(run.checkpoints) if step_of(each) > step]:
        logger.warning(
            "%s is resumed from step %d: its later checkpoints, %s, will be removed with the next one that it writes",
            run.path,
            step,
            ", ".join(later),
        )
    return start


def _read_start(checkpoint: Path) -> Start:
    for file in sorted(checkpoint.glob("*/*.safetensors")):
        tensor_shapes(file)  # raises if the file is not valid
    return Start(checkpoint, Progress.read(checkpoint))


def resume_config(config: Config, start: Start, num_processes: int) -> Config:
    """The configuration of a resumed run: the given one, with the commit and value range of the checkpoint's dataset.

    Warns about options and a number of processes that have changed.

    Args:
        config: as given.
        start: with a checkpoint.
        num_processes: of the resumed run.

    Raises:
        UserError: if an option has changed that must not, or has another type in the checkpoint.
    """
    _check_types(start)
    before = merge(Config().to_dict(), start.progress.config)
    commit, same_name = before["dataset"]["revision"], before["dataset"]["name"] == config.dataset.name
    if same_name and is_commit(commit) and not is_commit(config.dataset.revision):
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"revision": commit})})
    chosen = before["dataset"]["value_range"]
    if same_name and chosen != "auto" and config.dataset.value_range == "auto":
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"value_range": tuple(chosen)})})
    given, known = config.model.pretrained, before["model_config"]["pretrained"]
    if given is not None and known is not None and given in (known, known.partition("@")[0]):
        model = follow(config.model, ModelConfig.model_validate(before["model_config"]), set())
        config = config.model_copy(update={"model": model})
    _check_options(start, before, config)
    if start.progress.num_processes != num_processes:
        logger.warning(
            "The number of processes is %d, and was %d in %s: images, timesteps and noise stay the same; the results "
            "differ by rounding%s.",
            num_processes,
            start.progress.num_processes,
            start.checkpoint,
            " and by the dropout masks" if config.model.dropout else "",
        )
    return config


def _check_types(start: Start) -> None:
    """Raise if an option of the checkpoint cannot be one; another version may have other keys and rules, though."""
    try:
        Config.model_validate(start.progress.config)
    except ValidationError as error:
        for path, text, is_conflict in explain(error):
            if not is_conflict and not text.startswith("unknown key"):
                file = start.checkpoint / STATE / PROGRESS if start.checkpoint else PROGRESS
                raise UserError(f"{file}: config.{'.'.join(map(str, path))}: {text}") from None


def _check_options(start: Start, before: dict[str, Any], config: Config) -> None:
    """Report the options that have changed since a checkpoint; raise for those that must not."""
    fixed = (*FIXED, *FIXED_WITH_DISCRIMINATOR) if before["loss_config"]["adversarial"]["weight"] else FIXED
    differences = diff(sanitize_config(before), sanitize_config(config.to_dict()))
    changes = {name: f"{name}: {old!r} → {new!r}" for name, (old, new) in differences.items()}
    free = {f"dataset.{name}" for name in FREE}
    refused = [text for name, text in changes.items() if name.startswith(fixed) and name not in free]
    if refused:
        smaller = ""
        if any(text.startswith("training.batch_size") for text in refused):
            smaller = "; larger training.gradient_accumulation_steps need less memory for the same batch"
        raise UserError(
            f"{start.checkpoint} belongs to a run with another configuration: {'; '.join(refused)}; set that back, or "
            f"{with_its_weights(start.checkpoint)}{smaller}"
        )
    if changes:
        logger.warning("The configuration has changed since %s: %s", start.checkpoint, "; ".join(changes.values()))
