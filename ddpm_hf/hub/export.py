"""The files of a run that are pushed: an allow-list, and without anything that belongs to one machine."""

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from ddpm_hf.checkpoints.fetch import CONFIG
from ddpm_hf.checkpoints.find import check_pipeline
from ddpm_hf.checkpoints.format import (
    INDEX,
    MANIFEST,
    PROGRESS,
    SCHEDULER_CONFIG,
    STATE,
    STATE_FILES,
    UNET,
    UNET_CONFIG,
    WEIGHTS,
    Content,
    Progress,
    make_manifest,
    read_manifest,
)
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.card import make_card
from ddpm_hf.hub.model_info import gather_model_info, read_config
from ddpm_hf.hub.upload import CARD, Package
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import read_bounded
from ddpm_hf.runtime.sanitize import sanitize, sanitize_config
from ddpm_hf.runtime.values import MAX_BYTES, dump_yaml, parse_json

NEEDED = (INDEX, UNET_CONFIG, f"{UNET}/{WEIGHTS}*.safetensors", SCHEDULER_CONFIG)
SHARDS = f"{UNET}/{WEIGHTS}.safetensors.index.json"
"""The files of a saved pipeline; SHARDS is there if the weights are in several files."""


def pipeline_package(run: Path, settings: HubConfig, repo_id: str, pipeline: Path) -> Package:
    """The files that a user of the model needs, and its card.

    Args:
        run: the run folder.
        settings: what to include, branch and license.
        repo_id: user/name, for the card.
        pipeline: the run folder if it holds the finished pipeline, or one of its checkpoints.

    Raises:
        UserError: if there is no pipeline, or a file holds a token.
    """
    folder, is_finished = RunFolder(run), pipeline == run
    files = _pipeline_files(pipeline)
    check_pipeline(pipeline, weights=True)
    if "samples" in settings.include:
        files |= _pictures(folder, is_finished)
    if "config" in settings.include and (config := read_config(run)):
        files[CONFIG] = dump_yaml(config).encode()
    if "metrics" in settings.include and is_finished and folder.report.is_file():
        files[folder.report.name] = _sanitized_json(folder.report)
    info = gather_model_info(run, pipeline, repo_id, files, settings.revision, settings.license)
    message = "Upload the pipeline" if is_finished else f"Upload the pipeline after {info.step:,} updates"

    def make_more(old: str | None) -> dict[str, bytes]:
        return {CARD: make_card(info, old).encode()}

    return Package(files, message, make_more, _is_weights, _known_hashes(pipeline, files))


def checkpoint_package(checkpoint: Path) -> Package:
    """The files of a checkpoint for `--resume hub:…`: the pipeline, all training state, and a manifest of both.

    Raises:
        UserError: if the checkpoint is not complete, or a file holds a token.
    """
    files = _pipeline_files(checkpoint)
    state = {f"{STATE}/{name}": checkpoint / STATE / name for name in STATE_FILES}
    files |= {path: file for path, file in state.items() if file.is_file()}
    progress = Progress.read(checkpoint)
    files[f"{STATE}/{PROGRESS}"] = replace(progress, config=sanitize_config(progress.config)).to_json().encode()
    hashes = _known_hashes(checkpoint, files)
    files[MANIFEST] = make_manifest(files, hashes).encode()
    message = f"Checkpoint after {progress.step:,} updates"
    return Package(files, message, is_ours=lambda path: _is_weights(path) or path in state, hashes=hashes)


def _pipeline_files(folder: Path) -> dict[str, Content]:
    found = {
        file.relative_to(folder).as_posix(): file
        for pattern in (*NEEDED, SHARDS)
        for file in sorted(folder.glob(pattern))
        if file.is_file()
    }
    missing = [pattern for pattern in NEEDED if not any(fnmatchcase(path, pattern) for path in found)]
    if missing:
        raise UserError(f"{folder} holds no complete pipeline: {', '.join(missing)} missing; give the folder of a run")
    return {path: _sanitized_json(file) if path.endswith(".json") else file for path, file in found.items()}


def _known_hashes(checkpoint: Path, files: dict[str, Content]) -> dict[str, str]:
    """The hashes of files that are pushed as they are, from the manifest, so that weights need not be read for them."""
    known = read_manifest(checkpoint) if (checkpoint / MANIFEST).is_file() else {}
    return {path: digest for path, (_, digest) in known.items() if isinstance(files.get(path), Path)}


def _sanitized_json(file: Path) -> bytes:
    """A JSON file without paths of this machine; unchanged if it has none."""
    raw = read_bounded(file, MAX_BYTES)
    found = parse_json(raw, str(file))
    clean = sanitize(found)
    return raw if clean == found else (json.dumps(clean, indent=2) + "\n").encode()


def _pictures(folder: RunFolder, is_finished: bool) -> dict[str, Content]:
    """The pictures of a finished run, or the newest preview of an unfinished one."""
    if is_finished:
        return {file.name: file for file in (folder.samples, folder.denoising) if file.is_file()}
    previews = [file for file in folder.previews.glob("step-*.png") if file.stem.removeprefix("step-").isdigit()]
    newest = max(previews, key=lambda file: int(file.stem.removeprefix("step-")), default=None)
    return {} if newest is None else {folder.samples.name: newest}


def _is_weights(path: str) -> bool:
    return fnmatchcase(path, f"{UNET}/{WEIGHTS}*.safetensors") or path == SHARDS
