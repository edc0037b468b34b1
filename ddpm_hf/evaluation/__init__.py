"""Evaluation of a model: features of samples, metrics, and the report."""

from ddpm_hf.evaluation.evaluate import evaluate, evaluate_in_training, prepare_in_training_evaluation
from ddpm_hf.evaluation.report import MetricValue, Report

__all__ = ["MetricValue", "Report", "evaluate", "evaluate_in_training", "prepare_in_training_evaluation"]
