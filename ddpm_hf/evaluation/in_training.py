"""Evaluations of a model in training, on fewer samples than a full evaluation."""

from pathlib import Path

import torch

from ddpm_hf.config import Config
from ddpm_hf.evaluation.checks import Problems, check_features, check_packages, find_drawing
from ddpm_hf.evaluation.evaluate import evaluate
from ddpm_hf.evaluation.features import FeatureExtractor, load_extractor
from ddpm_hf.evaluation.splits import load_splits
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.runtime.signals import StopRequest
from ddpm_hf.schedulers import build_scheduler


def prepare_in_training_evaluation(config: Config, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Load the feature extractor, and check before the first update that later evaluations will work.

    Args:
        config: of the run.
        device: of the extractor.

    Raises:
        UserError: naming everything that does not fit.
    """
    reduced = _reduced(config, config.training.num_evaluation_samples)
    problems = Problems()
    extractor = problems.attempt(lambda: load_extractor(reduced.benchmark, device))
    splits = problems.attempt(lambda: load_splits(reduced, _run(config)))
    problems += check_packages(reduced.benchmark)
    problems.attempt(lambda: find_drawing(build_scheduler(config.model), reduced))
    if extractor is not None:
        problems += check_features(extractor, reduced, splits, "training.num_evaluation_samples")
    if problems or extractor is None:
        raise problems.error()
    return extractor


def evaluate_in_training(
    pipeline: DDPMPipeline,
    config: Config,
    step: int,
    num_samples: int,
    extractor: FeatureExtractor | None = None,
    stop: StopRequest | None = None,
) -> dict[str, float] | None:
    """Measure a model in training by the metrics that need samples only: no reconstructions, likelihood or pictures.

    All processes call this together. The report is written to `evaluation/step-N` of the run folder, and its label
    says at which step of training it was made.

    Args:
        pipeline: of the weights to measure.
        config: of the run.
        step: updates done.
        num_samples: to draw, at least 2.
        extractor: of features, kept from `prepare_in_training_evaluation`; None loads it.
        stop: as in `evaluate`.

    Returns:
        The values of the metrics by key, in the main process; None in the others.

    Raises:
        Stopped: as in `evaluate`.
    """
    report = evaluate(
        _run(config),
        _reduced(config, num_samples),
        output=_run(config) / "evaluation" / f"step-{step}",
        pipeline=pipeline,
        extractor=extractor,
        label=f"in-training evaluation at step {step:,}",
        pictures=False,
        stop=stop,
        renew=True,  # a run that resumed from an earlier checkpoint reaches the step again, with other weights
    )
    if report is None:
        return None
    return {name: each.value for name, each in report.metrics.items() if each.value is not None}


def _run(config: Config) -> Path:
    return Path(config.output_dir or "runs/run")


def _reduced(config: Config, num_samples: int) -> Config:
    """The configuration with metrics of samples only, and fewer samples."""
    metrics = config.benchmark.metrics.model_copy(update={"ssim": False, "psnr": False, "bits_per_dim": False})
    benchmark = config.benchmark.model_copy(
        update={"n_samples": num_samples, "num_seeds": 1, "metrics": metrics, "save_samples": False}
    )
    return config.model_copy(update={"benchmark": benchmark})
