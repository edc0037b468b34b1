"""Where a run begins: at the beginning, or at one of its checkpoints."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ddpm_hf.checkpoints.fetch import fetch_checkpoint
from ddpm_hf.checkpoints.format import Progress, find_damage, find_latest, list_checkpoints, step_of
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config import Config
from ddpm_hf.data.sources import COMMIT
from ddpm_hf.hub.sanitize import sanitize_config
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.nested import diff, merge

logger = logging.getLogger(__name__)

FIXED = (
    "seed",
    "dataset",
    "model_config",
    "training.batch_size",
    "training.optimizer",
    "loss_config.timestep_sampling",
)
"""What may not change on the way: the weights or the order of images would not belong to either run."""

FREE = ("cache_dir", "in_memory", "streaming", "strict", "validation_split")
"""Options of the dataset that may change all the same: they leave the training images as they are."""

FIXED_IN_GAME = ("loss_config.adversarial.hidden_channels", "loss_config.adversarial.num_levels")
"""Nor may these, once there is an adversary."""


def find_start(run: RunFolder, resume: str | None) -> Path | None:
    """Find the checkpoint that a run goes on from.

    Args:
        run: where the run lies, or will lie.
        resume: "latest", the folder of a checkpoint, "hub:USER/REPO[@REV]" for one on the Hub; "auto" for latest where
            there is a run, and a new one where there is none; None for a new run.

    Returns:
        The checkpoint, or None for the beginning.

    Raises:
        UserError: if a new run would overwrite another; if the checkpoint is missing or damaged.
    """
    if resume is None or (resume == "auto" and not run.holds_a_run):
        run.check_free()
        return None
    if resume.startswith("hub:"):
        resume = str(fetch_checkpoint(resume))
    if resume in ("auto", "latest"):
        run.check_begun()
        checkpoint = find_latest(run.checkpoints)
        if checkpoint is None:
            logger.warning("%s has no complete checkpoint yet: starting at the beginning", run.path)
        return checkpoint
    checkpoint = Path(resume)
    damage = find_damage(checkpoint) if checkpoint.is_dir() else "there is no such folder"
    if damage is not None:
        raise UserError(f"--resume {resume}: {damage}; allowed: latest, auto, or the folder of a complete checkpoint")
    if checkpoint.resolve().parent != run.checkpoints.resolve():
        run.check_free()
        return checkpoint
    step = Progress.read(checkpoint).step
    if later := [each.name for each in list_checkpoints(run.checkpoints) if step_of(each) > step]:
        logger.warning(
            "%s goes back to step %d: its later checkpoints, %s, are removed with the next one that it writes",
            run.path,
            step,
            ", ".join(later),
        )
    return checkpoint


def find_common_start(run: RunFolder, resume: str | None, accelerator: Accelerator) -> Path | None:
    """`find_start`, and see to it that all processes begin at one step; to be called on each of them.

    Raises:
        UserError: as `find_start`; or if they would begin at different steps.
    """
    failure, start, step = None, None, 0
    try:
        start = find_start(run, resume)
        step = Progress.read(start).step if start is not None else 0
    except UserError as error:  # which may be that of some processes only
        failure, step = error, -1
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).unique().tolist()
    if len(steps) > 1:
        found = ", ".join("none" if each < 0 else str(each) for each in steps)
        raise UserError(
            f"output_dir: the processes find different checkpoints in {run.path}, of the steps {found}; allowed: one "
            "folder that all machines see"
        ) from failure
    if failure is not None:
        raise failure
    return start


def tell_of_processes(checkpoint: Path, num_processes: int, config: Config) -> None:
    """Say what it means for a run to go on with another number of processes."""
    before = Progress.read(checkpoint).num_processes
    if before != num_processes:
        logger.warning(
            "the number of processes is %d, and was %d in %s: images, timesteps and noise stay the same, and what "
            "follows differs by rounding%s",
            num_processes,
            before,
            checkpoint,
            ", and by what dropout leaves out" if config.model.dropout else "",
        )


def go_on_with(config: Config, checkpoint: Path) -> Config:
    """The configuration that a run goes on with: as given, but on the commit of the dataset that it began with.

    Raises:
        UserError: if the configuration has changed so that the run cannot go on.
    """
    before = merge(Config().to_dict(), Progress.read(checkpoint).config)
    commit, same_name = before["dataset"]["revision"], before["dataset"]["name"] == config.dataset.name
    if same_name and _is_commit(commit) and not _is_commit(config.dataset.revision):
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"revision": commit})})
    _compare(checkpoint, before, config)
    return config


def _compare(checkpoint: Path, before: dict[str, Any], config: Config) -> None:
    """List what has changed since a checkpoint; refuse what may not."""
    fixed = (*FIXED, *FIXED_IN_GAME) if before["loss_config"]["adversarial"]["weight"] else FIXED
    differences = diff(sanitize_config(before), sanitize_config(config.to_dict()))
    changes = {name: f"{name}: {old!r} → {new!r}" for name, (old, new) in differences.items()}
    free = {f"dataset.{name}" for name in FREE}
    refused = [text for name, text in changes.items() if name.startswith(fixed) and name not in free]
    if refused:
        raise UserError(f"{checkpoint} belongs to a run with another configuration: {'; '.join(refused)}")
    if changes:
        logger.warning("the configuration has changed since %s: %s", checkpoint, "; ".join(changes.values()))


def _is_commit(revision: str | None) -> bool:
    return COMMIT.fullmatch(revision or "") is not None
