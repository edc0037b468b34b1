"""The format of a checkpoint: the names of its files, its progress, and atomic, verified folders.

A checkpoint is staged in a temporary folder, hashed, synced to disk and renamed. A folder named step-N is therefore
complete. A folder that was damaged later no longer matches its manifest, and is skipped.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Field
from safetensors import SafetensorError, safe_open

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import check_regular, fsync, fsync_tree, remove, stays_inside
from ddpm_hf.runtime.values import as_type, read_json, read_json_mapping, shown

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
UNET, SCHEDULER = "unet", "scheduler"
NETWORK_FILE, SCHEDULER_FILE = "config.json", "scheduler_config.json"
UNET_CONFIG, SCHEDULER_CONFIG = f"{UNET}/{NETWORK_FILE}", f"{SCHEDULER}/{SCHEDULER_FILE}"
WEIGHTS = "diffusion_pytorch_model"
"""A saved pipeline, in diffusers' names; the averaged weights are in unet/WEIGHTS.safetensors."""

STATE = "training_state"
"""The folder of a checkpoint with everything that only a resumed run needs."""
NETWORK, OPTIMIZER = "network.safetensors", "optimizer.safetensors"
TIMESTEP_SAMPLER = "timestep_sampler.safetensors"
DISCRIMINATOR, DISCRIMINATOR_OPTIMIZER = "adversary.safetensors", "adversary_optimizer.safetensors"
PROGRESS = "progress.json"
STATE_FILES = (NETWORK, OPTIMIZER, TIMESTEP_SAMPLER, DISCRIMINATOR, DISCRIMINATOR_OPTIMIZER, PROGRESS)
"""The files in STATE."""

REQUIRED = (
    INDEX,
    UNET_CONFIG,
    SCHEDULER_CONFIG,
    *(f"{STATE}/{name}" for name in (NETWORK, OPTIMIZER, TIMESTEP_SAMPLER, PROGRESS)),
)
"""The files that every checkpoint has, beside weights in UNET."""

MANIFEST = "manifest.json"
"""The size and SHA-256 of every other file of a checkpoint."""

Content = Path | bytes
"""A file on disk, or the bytes of one."""

RENAMED = {"owed": "pending", "num_parts": "num_accumulation_steps"}
"""Keys of progress.json that the first version wrote, and the fields that they are now."""


@dataclass(frozen=True)
class _ManifestEntry:
    size: Annotated[int, Ge(0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Manifest:
    files: dict[str, _ManifestEntry]


@dataclass(frozen=True)
class Progress:
    """The position of a run, stored in progress.json.

    Attributes:
        step: updates done.
        seconds: time spent on them.
        sums: running sums for the next line of metrics.jsonl.
        scaler: state of the gradient scaler of fp16; empty without one.
        num_images: size of the training set, on which the order of the images depends.
        num_accumulation_steps: micro-batches per update in each process.
        num_processes: number of processes.
        num_skipped: updates skipped because the loss or a gradient was not finite.
        pending: previews and evaluations of this step that a signal interrupted.
        score: metric that the best checkpoint minimizes; None if it was not measured at this step.
        config: the run's configuration as plain values.
    """

    step: Annotated[int, Ge(0)] = 0
    seconds: Annotated[float, Ge(0)] = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    num_images: Annotated[int, Ge(1)] | None = None
    num_accumulation_steps: Annotated[int, Ge(1)] = 1
    num_processes: Annotated[int, Ge(1)] = 1
    num_skipped: Annotated[int, Ge(0)] = 0
    pending: list[str] = field(default_factory=list)
    score: float | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def write(self, checkpoint: Path) -> None:
        """Write progress.json into a checkpoint folder, whose STATE folder exists."""
        (checkpoint / STATE / PROGRESS).write_text(self.to_json())

    def to_json(self) -> str:
        """The text of progress.json."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def read(cls, checkpoint: Path) -> "Progress":
        """Read progress.json of a checkpoint folder.

        Raises:
            UserError: if the file is missing, has keys that this version does not know, or values of other types.
        """
        try:
            file = checkpoint / STATE / PROGRESS
            values = {RENAMED.get(key, key): value for key, value in read_json_mapping(file).items()}
            if unknown := values.keys() - cls.__dataclass_fields__:
                raise UserError(f"{file} has keys of another version: {', '.join(map(shown, sorted(unknown)))}")
            return as_type(cls, values, str(file))
        except (OSError, UserError) as error:
            raise UserError(f"{checkpoint} is not a checkpoint that this version can resume from: {error}") from error


def write_checkpoint(root: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Write the checkpoint of a step, then remove old checkpoints.

    The newest ones and the one with the best score stay. Checkpoints of later steps are removed, too: they are
    damaged, or belong to a run that was resumed from an earlier step. What cannot be removed is named once and stays;
    it never keeps the new checkpoint from being written.

    Args:
        root: folder of all checkpoints.
        step: updates done.
        write: writes the files into the folder that it is given.
        keep: number of newest checkpoints that stay, this one included; at least 1.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if it cannot be written; nothing is left of it then.
        SafetensorError: likewise, by which safetensors reports a full disk.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".tmp-*"):
        remove(leftover)
    staged, final = root / f".tmp-step-{step}-{secrets.token_hex(4)}", root / f"step-{step}"
    try:
        staged.mkdir()
        write(staged)
        for file in _files_in(staged):
            with contextlib.suppress(OSError):  # not every file system has modes
                file.chmod(0o644)  # safetensors leaves mode 0600, which other users of a shared folder cannot read
        write_manifest(staged)
        fsync_tree(staged)
        # a damaged checkpoint of the same step, which was skipped when the run was resumed; step-06 is step 6, too
        while os.path.lexists(final) and not _remove(final):
            final = root / final.name.replace("-", "-0", 1)
        staged.rename(final)
    except BaseException:
        remove(staged)
        raise
    with contextlib.suppress(OSError):  # the checkpoint is in place, whatever becomes of the others
        fsync(root)
        prune(root, keep, step)
    return final


def prune(root: Path, keep: int, step: int | None = None) -> int:
    """Remove checkpoints but the newest ones and the one with the best score.

    Args:
        root: folder of all checkpoints.
        keep: number of newest checkpoints that stay.
        step: those of later steps are removed, too; None: there are none.

    Returns:
        The number of checkpoints removed.
    """
    checkpoints = list_checkpoints(root)
    own = [checkpoint for checkpoint in checkpoints if step is None or step_of(checkpoint) <= step]
    kept = {*own[:keep], find_best(own)}
    return sum(_remove(old) for old in checkpoints if old not in kept)


def sha256(content: Content) -> str:
    """SHA-256 in hex."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def size_of(content: Content) -> int:
    """Number of bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def make_manifest(files: Mapping[str, Content], known: Mapping[str, str] | None = None) -> str:
    """The text of a manifest.

    Args:
        files: by path in the checkpoint.
        known: SHA-256 of files that need not be hashed again, by path.
    """
    hashed = {
        path: {"size": size_of(content), "sha256": (known or {}).get(path) or sha256(content)}
        for path, content in sorted(files.items())
    }
    return json.dumps({"files": hashed}, indent=2)


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files in a folder into it."""
    manifest = make_manifest({file.relative_to(folder).as_posix(): file for file in _files_in(folder)})
    (folder / MANIFEST).write_text(manifest)


def read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of the files of a checkpoint, by path.

    Raises:
        FileNotFoundError: if there is no manifest.
        UserError: if it cannot be read, or names a file outside of its folder.
    """
    file = checkpoint / MANIFEST
    manifest = as_type(_Manifest, read_json(file), str(file))
    if leaving := [name for name in manifest.files if not stays_inside(name)]:
        raise UserError(f"{file} names {shown(leaving[0])}, which is no plain path in its folder")
    return {name: (entry.size, entry.sha256) for name, entry in manifest.files.items()}


def list_checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders, newest first, damaged ones included."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path), len(path.name)), reverse=True)  # step-06 is after step-6


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("step-"))


def find_damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its manifest.

    Returns:
        What is missing or has changed; None if it is complete, and every byte as it was written.
    """
    try:
        files = read_manifest(checkpoint)
    except (OSError, UserError) as error:
        return f"{MANIFEST} is missing" if isinstance(error, FileNotFoundError) else str(error)
    if missing := [name for name in REQUIRED if name not in files]:
        return f"{MANIFEST} names no {', no '.join(missing)}"
    if not any(fnmatchcase(name, f"{UNET}/{WEIGHTS}*.safetensors") for name in files):
        return f"{MANIFEST} names no weights in {UNET}"
    return _find_changed(checkpoint, files)


def find_changed_pipeline(folder: Path) -> str | None:
    """Compare a saved pipeline with its manifest, if it has one; the training state beside it is not looked at.

    Returns:
        What has changed; None if every byte is as it was written.
    """
    if not (folder / MANIFEST).exists():
        return None
    files = read_manifest(folder).items()
    return _find_changed(folder, {name: entry for name, entry in files if not name.startswith(f"{STATE}/")})


def _find_changed(folder: Path, files: Mapping[str, tuple[int, str]]) -> str | None:
    """Compare files with their sizes and SHA-256; returns what is wrong with the first that differs."""
    try:
        for name, (size, digest) in files.items():
            file = folder / name
            check_regular(file)
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if sha256(file) != digest:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, UserError) as error:
        return str(error)
    return None


def find_latest(root: Path) -> Path | None:
    """The newest complete checkpoint; a warning names each newer one that is damaged."""
    for checkpoint in list_checkpoints(root):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("skipping the damaged checkpoint %s: %s", checkpoint, damage)
    return None


def find_best(checkpoints: list[Path]) -> Path | None:
    """The checkpoint with the lowest score, the newest among equals; None if no score was measured."""
    scored = [(score, checkpoint) for checkpoint in checkpoints if (score := _score(checkpoint)) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """The shapes of the tensors in a safetensors file, by name.

    Opening the file validates its header: the tensors have to cover the file exactly once.

    Raises:
        UserError: if the file is not regular, or not valid safetensors.
    """
    check_regular(file)
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file.name} is not a valid safetensors file ({error}); it is not loaded") from None


def count_parameters(unet: Path) -> int:
    """The number of a network's parameters in its safetensors, without those of further averages, which are variants.

    Raises:
        UserError: if a file is not valid safetensors.
    """
    files = [*unet.glob(f"{WEIGHTS}.safetensors"), *unet.glob(f"{WEIGHTS}-*.safetensors")]
    return sum(math.prod(shape) for file in files for shape in tensor_shapes(file).values())


def _score(checkpoint: Path) -> float | None:
    try:
        return Progress.read(checkpoint).score
    except UserError:  # a damaged checkpoint has no score
        return None


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _remove(checkpoint: Path) -> bool:
    """Delete a checkpoint; returns whether its name is free."""
    return remove(checkpoint, checkpoint.with_name(f".tmp-removed-{checkpoint.name}-{secrets.token_hex(4)}"))
