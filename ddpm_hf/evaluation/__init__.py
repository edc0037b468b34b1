"""How good a model is: features, distances, likelihood, and the report."""

from ddpm_hf.evaluation.evaluate import evaluate, quick_look

__all__ = ["evaluate", "quick_look"]
