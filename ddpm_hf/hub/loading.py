"""Find a pipeline by the name that a person gives."""

from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging

from ddpm_hf.checkpoints import find_latest
from ddpm_hf.errors import UserError
from ddpm_hf.hub.download import fetch_pipeline
from ddpm_hf.pipelines.ddpm import DDPMPipeline

INDEX = "model_index.json"


def load_pipeline(model: str | Path) -> DDPMPipeline:
    """Load a pipeline onto the GPU, if there is one.

    Args:
        model: the folder of a saved pipeline or of a run (whose newest checkpoint is taken while it is not finished),
            or an id on the Hub, as user/name or user/name@REVISION.

    Raises:
        UserError: if there is no such folder or repository, or no pipeline in it.
    """
    folder_or_id = _find(model)
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = DDPMPipeline.from_pretrained(folder_or_id)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--model: {model} cannot be loaded: {reason}") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def _find(model: str | Path) -> str:
    path = Path(model).expanduser()
    if (path / INDEX).exists():
        return str(path)
    if path.is_dir():
        checkpoint = find_latest(path / "checkpoints")
        if checkpoint is None:
            raise UserError(f"--model: {path} holds neither a pipeline ({INDEX}) nor a complete checkpoint of a run")
        return str(checkpoint)
    if path.is_absolute() or str(model).startswith((".", "~")) or str(model).count("/") != 1:
        raise UserError(f"--model: there is no folder {model}, and it is no id on the Hub (user/name[@REV])")
    return str(fetch_pipeline(str(model)))
