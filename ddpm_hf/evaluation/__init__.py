"""How good a model is: features, distances, likelihood, and the report."""

from ddpm_hf.evaluation.evaluate import evaluate
from ddpm_hf.evaluation.in_training import prepare_quick_look, quick_look

__all__ = ["evaluate", "prepare_quick_look", "quick_look"]
