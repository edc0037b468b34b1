"""Train denoising diffusion models, prove how good they are, and share them on the Hugging Face Hub.

The names below are imported when they are first used: `import ddpm_hf` alone loads neither torch nor diffusers.
docs/api.md describes each.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ddpm_hf._version import __version__

if TYPE_CHECKING:
    from ddpm_hf.checkpoints.find import load_pipeline
    from ddpm_hf.config import Config, load_config
    from ddpm_hf.evaluation.evaluate import evaluate
    from ddpm_hf.hub import push_run
    from ddpm_hf.losses import DiffusionLoss
    from ddpm_hf.models import DDPMUNet
    from ddpm_hf.pipelines import DDPMPipeline
    from ddpm_hf.runtime.errors import UserError
    from ddpm_hf.schedulers import DDPMScheduler
    from ddpm_hf.training.trainer import Trainer

_HOMES = {
    "Config": "ddpm_hf.config",
    "DDPMPipeline": "ddpm_hf.pipelines",
    "DDPMScheduler": "ddpm_hf.schedulers",
    "DDPMUNet": "ddpm_hf.models",
    "DiffusionLoss": "ddpm_hf.losses",
    "Trainer": "ddpm_hf.training.trainer",
    "UserError": "ddpm_hf.runtime.errors",
    "evaluate": "ddpm_hf.evaluation.evaluate",
    "load_config": "ddpm_hf.config",
    "load_pipeline": "ddpm_hf.checkpoints.find",
    "push_run": "ddpm_hf.hub",
}

__all__ = [
    "Config",
    "DDPMPipeline",
    "DDPMScheduler",
    "DDPMUNet",
    "DiffusionLoss",
    "Trainer",
    "UserError",
    "__version__",
    "evaluate",
    "load_config",
    "load_pipeline",
    "push_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
