"""Training: the loop, and all that keeps a run safe."""

from ddpm_hf.training.trainer import Trainer

__all__ = ["Trainer"]
