"""Checkpoint folders that are complete or do not exist.

A checkpoint is written aside, hashed, synced to disk and renamed. Whoever finds a folder named step-N finds all of it;
a folder that was damaged later does not match its hashes and is passed over.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from ddpm_hf.runtime.files import sync

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def write_checkpoint(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    find_best: Callable[[list[Path]], Path | None] = lambda checkpoints: None,
) -> Path:
    """Write the checkpoint of a step, then remove all but the newest ones and the best one.

    Those of later steps are removed, too: they are damaged, or of a run that was taken back to an earlier step, and do
    not belong to what follows.

    Args:
        root: the folder of all checkpoints.
        step: updates done.
        write: fills the folder that it is given.
        keep: checkpoints that stay, this one included; at least 1.
        find_best: names one of all checkpoints, which stays besides if it is not among the newest.

    Returns:
        The folder of the checkpoint.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".tmp-*"):
        shutil.rmtree(leftover)
    staged, final = root / f".tmp-step-{step}", root / f"step-{step}"
    staged.mkdir()
    write(staged)
    files = {}
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        file.chmod(0o644)
        sync(file)
        files[file.relative_to(staged).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=2))
    for path in (manifest, *(folder for folder in staged.rglob("*") if folder.is_dir()), staged):
        sync(path)
    if final.exists():  # a damaged checkpoint of the same step, which the run had passed over
        _remove(final)
    staged.rename(final)
    sync(root)
    checkpoints = list_checkpoints(root)
    ours = [checkpoint for checkpoint in checkpoints if step_of(checkpoint) <= step]
    stay = {*ours[:keep], find_best(ours)}
    for old in checkpoints:
        if old not in stay:
            _remove(old)
    return final


def list_checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, newest first, whatever their state."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def find_damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint, or None if every byte is as it was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            file = checkpoint / name
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def find_latest(root: Path) -> Path | None:
    """The newest complete checkpoint; newer damaged ones are named in a warning and passed over."""
    for checkpoint in list_checkpoints(root):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("passing over the damaged checkpoint %s: %s", checkpoint, damage)
    return None


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; renamed first, so that a half-deleted one is never found."""
    doomed = checkpoint.with_name(f".tmp-removed-{checkpoint.name}")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
