"""Find a pipeline by the name that a person gives."""

from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging

from ddpm_hf.checkpoints.download import fetch_pipeline
from ddpm_hf.checkpoints.find import find_folder
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.runtime.errors import UserError


def load_pipeline(model: str | Path) -> DDPMPipeline:
    """Load a pipeline onto the GPU, if there is one.

    Args:
        model: the folder of a saved pipeline or of a run (whose newest checkpoint is taken while it is not finished),
            or an id on the Hub, as user/name or user/name@REVISION.

    Raises:
        UserError: if there is no such folder or repository, or no pipeline in it.
    """
    folder = find_folder(model) or fetch_pipeline(str(model))
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = DDPMPipeline.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--model: {model} cannot be loaded: {reason}") from error
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
