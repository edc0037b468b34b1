"""What of a run folder is pushed: an allow-list, cleaned of what belongs to one machine."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from ddpm_hf.checkpoints.find import newest_pipeline
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
)
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.card import make_card
from ddpm_hf.hub.facts import CONFIG, METRICS, gather_facts, read_config
from ddpm_hf.hub.upload import CARD, Package
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hashes import Content, sha256, size_of
from ddpm_hf.runtime.sanitize import portable, portable_config, refuse_tokens

PIPELINE_FILES = (
    INDEX,
    UNET_CONFIG,
    f"{UNET}/{WEIGHTS}*.safetensors",
    f"{UNET}/{WEIGHTS}.safetensors.index.json",
    SCHEDULER_CONFIG,
)
"""Of a saved pipeline, what is pushed."""

NEEDED = (INDEX, UNET_CONFIG, f"{UNET}/{WEIGHTS}*.safetensors", SCHEDULER_CONFIG)


def pipeline_package(run: Path, settings: HubConfig, repo_id: str, pipeline: Path | None = None) -> Package:
    """What is pushed of a run for others to use.

    Args:
        run: the run folder.
        settings: what to include, branch and license.
        repo_id: user/name, for the card.
        pipeline: a checkpoint instead of the finished pipeline.

    Raises:
        UserError: if there is no pipeline, or a file holds a token.
    """
    pipeline = pipeline or run
    files = _pipeline_files(pipeline)
    if "samples" in settings.include:
        files |= _pictures(run, pipeline)
    if "config" in settings.include and (config := read_config(run)):
        files[CONFIG] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()
    if "metrics" in settings.include and pipeline == run and (run / METRICS).is_file():
        files[METRICS] = _clean_json(run / METRICS)
    refuse_tokens(files.items())
    facts = gather_facts(run, pipeline, repo_id, settings.revision, files, settings.license)

    def card(old: str | None) -> str:
        written = make_card(facts, old)
        refuse_tokens([(CARD, written.encode())])
        return written

    message = "Upload the pipeline" if pipeline == run else f"Upload the pipeline after {facts.step:,} updates"
    return Package(files, message, card, is_ours=_is_pushed_weights)


def checkpoint_package(checkpoint: Path) -> Package:
    """What is pushed of a checkpoint for `--resume hub:…`: the pipeline, all training state, and a manifest of both.

    Raises:
        UserError: if the checkpoint is not complete, or a file holds a token.
    """
    files = _pipeline_files(checkpoint)
    for name in STATE_FILES:
        if (checkpoint / STATE / name).is_file():
            files[f"{STATE}/{name}"] = checkpoint / STATE / name
    path = f"{STATE}/{PROGRESS}"
    if path not in files:
        raise UserError(f"{checkpoint} is no checkpoint: {path} is missing")
    progress = json.loads((checkpoint / path).read_text(encoding="utf-8"))
    progress["config"] = portable_config(progress.get("config") or {})
    files[path] = json.dumps(progress, indent=2).encode()
    hashes = {path: {"size": size_of(content), "sha256": sha256(content)} for path, content in sorted(files.items())}
    files[MANIFEST] = json.dumps({"files": hashes}, indent=2).encode()
    refuse_tokens(files.items())
    return Package(files, f"Checkpoint after {progress['step']:,} updates", is_ours=_is_pushed_state)


def find_pipeline(run: Path) -> Path:
    """The finished pipeline of a run folder, or else its newest complete checkpoint.

    Raises:
        UserError: if it has neither.
    """
    if not run.is_dir():
        raise UserError(f"RUN_FOLDER: {run} does not exist; give the output_dir of a run")
    pipeline = newest_pipeline(run)
    if pipeline is None:
        raise UserError(
            f"RUN_FOLDER: {run} holds neither a pipeline ({INDEX}) nor a complete checkpoint; "
            "give the output_dir of a run"
        )
    return pipeline


def _pipeline_files(folder: Path) -> dict[str, Content]:
    found = _matching(folder, PIPELINE_FILES)
    missing = [pattern for pattern in NEEDED if not any(fnmatchcase(path, pattern) for path in found)]
    if missing:
        raise UserError(f"{folder} holds no complete pipeline: {', '.join(missing)} missing; give the folder of a run")
    return {path: _clean_json(file) if path.endswith(".json") else file for path, file in found.items()}


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file for file in files}


def _clean_json(file: Path) -> bytes:
    """A JSON file without paths of this machine; as it is, if it has none."""
    raw = file.read_bytes()
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}); it is damaged, or not of this run") from None
    clean = portable(found)
    return raw if clean == found else (json.dumps(clean, indent=2) + "\n").encode()


def _pictures(run: Path, pipeline: Path) -> dict[str, Content]:
    """The pictures of the finished run; of one that goes on, the newest preview."""
    folder = RunFolder(run)
    if pipeline == run:
        return {file.name: file for file in (folder.samples, folder.denoising) if file.is_file()}
    previews = [file for file in folder.previews.glob("step-*.png") if file.stem[len("step-") :].isdigit()]
    newest = max(previews, key=lambda file: int(file.stem[len("step-") :]), default=None)
    return {} if newest is None else {folder.samples.name: newest}


def _is_pushed_weights(path: str) -> bool:
    return fnmatchcase(path, PIPELINE_FILES[2]) or path == PIPELINE_FILES[3]


def _is_pushed_state(path: str) -> bool:
    return _is_pushed_weights(path) or path in [f"{STATE}/{name}" for name in STATE_FILES]
