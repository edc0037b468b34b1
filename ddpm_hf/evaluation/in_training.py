"""Evaluations of a model that is still being trained, on fewer samples than its own evaluation will draw."""

from collections.abc import Callable
from pathlib import Path

import torch

from ddpm_hf.config import Config
from ddpm_hf.evaluation.checks import Problems, check_features, check_packages, find_drawing
from ddpm_hf.evaluation.evaluate import evaluate
from ddpm_hf.evaluation.features import FeatureExtractor, load_extractor
from ddpm_hf.evaluation.splits import load_splits
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import build_scheduler


def prepare_quick_look(config: Config, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Load what looks at the images, and check before the first update that the later quick looks can be had.

    Args:
        config: of the run.
        device: where the network is going to be.

    Raises:
        UserError: naming everything that does not fit.
    """
    quick = _quick(config, config.training.num_evaluation_samples)
    problems = Problems()
    extractor = problems.attempt(lambda: load_extractor(quick.benchmark, device))
    splits = problems.attempt(lambda: load_splits(quick, _run(config)))
    problems += check_packages(quick.benchmark)
    problems.attempt(lambda: find_drawing(build_scheduler(config.model), quick))
    if extractor is not None:
        problems += check_features(extractor, quick, splits, "training.num_evaluation_samples")
    if problems or extractor is None:
        raise problems.error()
    return extractor


def quick_look(
    pipeline: DDPMPipeline,
    config: Config,
    step: int,
    num_samples: int,
    extractor: FeatureExtractor | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float] | None:
    """Measure a model that is still being trained, on fewer samples than its evaluation will draw.

    All processes call this together. No pictures, no pairs, no likelihood: what needs samples only. The report lies
    in `evaluation/step-N` of the run folder and says of itself that it is a quick look.

    Args:
        pipeline: around the weights to measure.
        config: of the run.
        step: updates done.
        num_samples: to draw, at least 2.
        extractor: what looks at the images, kept from the last call; None loads it.
        should_stop: as in `evaluate`.

    Returns:
        The figures by name in the main process; None in the others.

    Raises:
        Abandoned: as in `evaluate`.
    """
    report = evaluate(
        _run(config),
        _quick(config, num_samples),
        output=_run(config) / "evaluation" / f"step-{step}",
        pipeline=pipeline,
        extractor=extractor,
        label=f"quick look at step {step:,} of training",
        pictures=False,
        should_stop=should_stop,
        renew=True,  # a run that was taken back comes to the step again, with other weights
    )
    if report is None:
        return None
    return {name: each["value"] for name, each in report["metrics"].items() if each["value"] is not None}


def _run(config: Config) -> Path:
    return Path(config.output_dir or "runs/run")


def _quick(config: Config, num_samples: int) -> Config:
    """The configuration of a quick look: what needs samples only, and fewer of them."""
    metrics = config.benchmark.metrics.model_copy(update={"ssim": False, "psnr": False, "bits_per_dim": False})
    benchmark = config.benchmark.model_copy(
        update={"n_samples": num_samples, "num_seeds": 1, "metrics": metrics, "save_samples": False}
    )
    return config.model_copy(update={"benchmark": benchmark})
