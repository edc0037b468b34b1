"""Find and load the model that a person names: a run folder, a saved pipeline, or a repository on the Hub."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_hf.checkpoints.format import INDEX, SCHEDULER_CONFIG, UNET_CONFIG, find_latest
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.runtime.cli import waiting
from ddpm_hf.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from ddpm_hf.pipelines.ddpm import DDPMPipeline

ALLOWED = "a run folder, a saved pipeline, or an id on the Hub (user/name[@REV])"


def newest_pipeline(folder: Path, option: str = "--model") -> Path:
    """The saved pipeline in a folder, or else the newest complete checkpoint of the run in it.

    Args:
        folder: of a saved pipeline or a run.
        option: the option that named it, for the message.

    Raises:
        UserError: if there is neither, naming the run folders in it.
    """
    pipeline = folder if (folder / INDEX).is_file() else find_latest(RunFolder(folder).checkpoints)
    if pipeline is None:
        content = f"holds neither a pipeline ({INDEX}) nor a complete checkpoint of a run"
        hint = f"; run folders in it: {', '.join(runs)}" if (runs := _runs(folder)) else ""
        raise UserError(f"{option}: {folder} {content if folder.is_dir() else 'does not exist'}{hint}")
    return pipeline


def find_folder(model: str | Path) -> Path | None:
    """The folder with the pipeline of a model; None for an id on the Hub.

    Args:
        model: folder of a saved pipeline, or of a run (whose newest checkpoint is used while it is not finished), or an
            id on the Hub.

    Raises:
        UserError: if it is none of these.
    """
    if repo_id_of(str(model)) != str(model):  # an address
        return None
    path = Path(model).expanduser()
    if path.is_dir():
        return newest_pipeline(path)
    if path.exists():
        raise UserError(f"--model: {path} is a file; allowed: {ALLOWED}")
    if runs := _runs(path.parent) if path.parent != Path() else []:
        raise UserError(f"--model: there is no folder {model}; run folders there: {', '.join(runs)}")
    if path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise UserError(f"--model: there is no folder {model}; allowed: {ALLOWED}")
    if path.parent.is_dir() or path.parts[0] == "runs":  # not a user of the Hub
        raise UserError(f"--model: there is no folder {model}; if it is an id on the Hub, write hub:{model}")
    return None


def pipeline_folder(model: str | Path) -> Path:
    """The folder with the pipeline of a model, downloaded if it is one on the Hub; no PyTorch is loaded.

    Args:
        model: as in `load_pipeline`.

    Raises:
        UserError: if there is no such folder or repository, or no pipeline in it.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the model.
    """
    folder = find_folder(model)
    if folder is not None:
        return folder
    from ddpm_hf.checkpoints.fetch import fetch_pipeline  # the Hub's client takes a moment to import

    with waiting(f"asking the Hub for {model}"):
        return fetch_pipeline(str(model))


def check_options(folder: Path, class_labels: Sequence[int] | None, guidance_scale: float = 1.0) -> int:
    """Check options of the command line against a saved pipeline, before PyTorch is loaded.

    Args:
        folder: of the pipeline.
        class_labels: as given by --class_labels.
        guidance_scale: as given by --guidance_scale.

    Returns:
        The model's time steps, T.

    Raises:
        UserError: if the model has no such class, or no guidance is possible.
    """
    files = []
    for name in (UNET_CONFIG, SCHEDULER_CONFIG):
        try:
            files.append(dict(json.loads((folder / name).read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            raise UserError(f"--model: {folder / name} is missing or damaged; get the model anew") from None
    network, scheduler = files
    num_labels = network.get("num_class_embeds") or 0  # the last of them stands for no class
    if class_labels and not num_labels:
        given = " ".join(map(str, class_labels))
        raise UserError(f"--class_labels: given {given}; allowed: none, since the model is unconditional")
    for label in class_labels or ():
        if not 0 <= label < num_labels - 1:
            raise UserError(
                f"--class_labels: given {label}; allowed: 0 to {num_labels - 2}, or leave it out for images of no class"
            )
    if guidance_scale != 1 and not class_labels:
        raise UserError(f"--guidance_scale: given {guidance_scale:g}; allowed: 1, or with --class_labels")
    return int(scheduler.get("num_train_timesteps", 1000))


def run_of(folder: str | None, config: str) -> str:
    """The run folder of a YAML file.

    Args:
        folder: its output_dir.
        config: its name, for the message.

    Raises:
        UserError: if the run has not begun.
    """
    if folder is None or not Path(folder).is_dir():
        raise UserError(f"--config: the run of {config} has not begun, there is no folder {folder}; train it first")
    return folder


def load_pipeline(model: str | Path) -> "DDPMPipeline":
    """Load a pipeline onto the GPU, if there is one.

    Args:
        model: folder of a saved pipeline, or of a run (whose newest checkpoint is used while it is not finished), or an
            id on the Hub, as user/name or user/name@REVISION.

    Raises:
        UserError: if there is no such folder or repository, or no pipeline in it.
        HubUnreachableError: if the Hub did not answer and the cache does not hold the model.
    """
    folder = pipeline_folder(model)

    # these load torch, which takes seconds; programs report a wrong --model before
    import torch
    from diffusers.utils import logging as diffusers_logging

    # it loads torch, too
    from ddpm_hf.pipelines.ddpm import DDPMPipeline

    diffusers_logging.disable_progress_bar()
    try:
        pipeline = DDPMPipeline.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--model: {model} cannot be loaded: {reason}") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def weights_hash(network: "nn.Module") -> str:
    """The first 16 hex digits of a SHA-256 of a network's weights, which distinguishes models of the same name."""
    import torch  # here, since programs import this module for find_folder before they load torch

    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _runs(folder: Path) -> list[str]:
    """The folders in a folder that hold a model."""
    if not folder.is_dir():
        return []
    return sorted(
        str(path) for path in folder.iterdir() if (path / INDEX).exists() or RunFolder(path).checkpoints.is_dir()
    )
