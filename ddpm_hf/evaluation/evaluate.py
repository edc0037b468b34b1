"""An evaluation from its plan to its report."""

import json
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import torch
from accelerate import PartialState

from ddpm_hf._version import __version__
from ddpm_hf.config import BenchmarkConfig, Config
from ddpm_hf.evaluation.extractors import load_extractor
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.feature_store import FeatureTable, cached_tensors
from ddpm_hf.evaluation.features import draw_samples, extract_reference
from ddpm_hf.evaluation.metrics import cached_values, score_samples
from ddpm_hf.evaluation.metrics.distances import nearest
from ddpm_hf.evaluation.metrics.held_out import (
    HeldOut,
    bits_per_dim,
    measure_baselines,
    measure_reconstructions,
    reconstruct,
    reconstruction_methods,
)
from ddpm_hf.evaluation.plan import (
    SETTINGS,
    EvaluationPlan,
    Problems,
    check_features,
    check_packages,
    load_splits,
    make_plan,
    other_contents,
    sampling_of,
)
from ddpm_hf.evaluation.rendering import NUM_NEIGHBORS_SHOWN, NUM_PAIRS, draw_pictures, write_report
from ddpm_hf.evaluation.report import Metric, MetricValue, Report
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.runtime.distributed import assert_same_across_ranks
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.signals import StopRequest
from ddpm_hf.schedulers import build_scheduler

ENOUGH_SAMPLES = 10_000

LIBRARIES = ("torch", "diffusers", "accelerate", "transformers", "torchmetrics", "torch-fidelity", "numpy")


def evaluate(
    model: str | Path,
    config: Config,
    *,
    output: Path | None = None,
    pipeline: DDPMPipeline | None = None,
    extractor: FeatureExtractor | None = None,
    label: str | None = None,
    pictures: bool = True,
    stop: StopRequest | None = None,
    is_in_training: bool = False,
) -> Report | None:
    """Measure a model as `config.benchmark` says, and write the report.

    All processes call this together. What an earlier call finished in the same folder is not computed again.

    Args:
        model: a run folder, a saved pipeline, or an id on the Hub.
        config: whose dataset, model and benchmark sections say what is measured, and whose seed samples follow from.
        output: folder of the evaluation; None makes one in `evaluation/` below the model's.
        pipeline: of the model, if it is loaded already.
        extractor: of features, instead of `benchmark.features`.
        label: what the report is, if not a full evaluation; it becomes a warning.
        pictures: whether the report has pictures.
        stop: polled at every denoising step and every batch; work that is finished when a stop is requested is not done
            again when the same evaluation is run again.
        is_in_training: the weights change, and what the folder holds of other weights is deleted.

    Returns:
        In the main process the report, which is also written to report.md, report.html and, unless
        `benchmark.save_metrics` is false, metrics.json. Its `metrics` map keys, such as "frechet_distance", to values
        with `value`, `std` and `problem`, beside the same of real images. None in the other processes.

    Raises:
        UserError: naming everything that does not fit, before a sample is drawn.
        Stopped: in all processes, soon after a stop was requested in one of them.
    """
    return run(make_plan(model, config, output, pipeline, extractor, is_in_training), label, pictures, stop)


def prepare_in_training_evaluation(config: Config, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Load the feature extractor, and check before the first update that later evaluations will work.

    Args:
        config: of the run.
        device: of the extractor.

    Raises:
        UserError: naming everything that does not fit.
    """
    reduced, problems = _reduced(config, config.training.num_evaluation_samples), Problems()
    extractor = problems.attempt(lambda: load_extractor(reduced.benchmark, device))
    splits = problems.attempt(lambda: load_splits(reduced, _run_folder(config)))
    problems += check_packages(reduced.benchmark)
    problems.attempt(lambda: sampling_of(build_scheduler(config.model), reduced))
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
    names the step.

    Args:
        pipeline: of the weights to measure.
        config: of the run.
        step: updates done.
        num_samples: to draw, at least 2.
        extractor: of features, from `prepare_in_training_evaluation`; None loads it.
        stop: as in `evaluate`.

    Returns:
        The values of the metrics by key, in the main process; None in the others.

    Raises:
        Stopped: as in `evaluate`.
    """
    report = evaluate(
        _run_folder(config),
        _reduced(config, num_samples),
        output=_run_folder(config) / "evaluation" / f"step-{step}",
        pipeline=pipeline,
        extractor=extractor,
        label=f"in-training evaluation at step {step:,}",
        pictures=False,
        stop=stop,
        is_in_training=True,  # a run that resumed from an earlier checkpoint reaches the step with other weights
    )
    if report is None:
        return None
    return {key: each.value for key, each in report.metrics.items() if each.value is not None}


def run(
    plan: EvaluationPlan, label: str | None = None, pictures: bool = True, stop: StopRequest | None = None
) -> Report | None:
    """Draw the samples of a plan, compute the metrics, and write the report; see `evaluate`."""
    state, started, benchmark = PartialState(), time.perf_counter(), plan.benchmark
    # All processes have checked the folder once they meet here. Weights in training may differ by rounding.
    weights = None if plan.is_in_training else plan.settings["weights"]
    assert_same_across_ranks({**plan.settings, "weights": weights, "the folder": str(plan.folder)})
    if state.is_main_process:
        if plan.is_in_training and other_contents(plan.folder, plan.settings):
            shutil.rmtree(plan.folder)
        write_text_atomic(plan.folder / SETTINGS, json.dumps(plan.settings, indent=2) + "\n")
    state.wait_for_everyone()

    references = {}
    for split, images in plan.splits.items():
        key, device = plan.references[split], plan.pipeline.device
        references[split] = extract_reference(key, images, plan.extractor, device, stop)

    samples, num_drawn, sampling_started = {}, 0, time.perf_counter()
    for seed in plan.report.sampling.seeds:
        sampling = replace(plan.sampling, seed=seed)
        table, num_own = draw_samples(plan.pipeline, sampling, plan.extractor, plan.folder, benchmark, stop)
        samples[seed], num_drawn = table, num_drawn + num_own

    report = None
    with (stop or StopRequest()).together():
        if state.is_main_process:
            seconds = {"samples": time.perf_counter() - sampling_started, "drawn_by_main_process": num_drawn}
            report = _measure(plan, references, samples, label, pictures)
            report = replace(report, seconds=seconds | {"total": time.perf_counter() - started})
            write_report(plan.folder, report, benchmark.save_metrics)
    return report


def _measure(
    plan: EvaluationPlan,
    references: dict[str, FeatureTable],
    samples: dict[int, FeatureTable],
    label: str | None,
    pictures: bool,
) -> Report:
    """Compute everything that follows the samples, in the main process."""
    benchmark, wanted, pipeline = plan.benchmark, plan.benchmark.metrics, plan.pipeline
    seed, steps, batch_size = plan.sampling.seed, plan.sampling.num_inference_steps, benchmark.batch_size
    report = score_samples(plan, references, samples)

    is_conditional = plan.sampling.class_labels is not None
    held_out = HeldOut.choose(plan.splits[plan.held_out_split], benchmark.num_held_out, is_conditional)
    methods, reconstructed = [], []
    if wanted.ssim or wanted.psnr:
        methods = reconstruction_methods(pipeline, len(held_out.images), benchmark.reconstruction_levels, steps)
        images = cached_tensors(
            plan.folder / "reconstructions.safetensors",
            lambda: reconstruct(pipeline, held_out, methods, seed, batch_size),
        )
        reconstructed = [images[str(number)] for number in range(len(methods))]
    if wanted.bits_per_dim:
        num_timesteps = benchmark.likelihood_timesteps
        settings = {"num_timesteps": num_timesteps, "num_images": len(held_out.images)}
        bits = cached_values(
            plan.folder / "scores" / "likelihood.json",
            settings,
            lambda: {"bits_per_dim": bits_per_dim(pipeline, held_out, num_timesteps, seed, batch_size)},
        )["bits_per_dim"]
        report.metrics["bits_per_dim"] = Metric(
            **vars(bits),
            name="bits/dim (bound)",
            better="lower",
            std_over=None if bits.std is None else "images",
            real_vs_real=MetricValue(None, None, "not known: see Baselines"),
        )
    training = plan.splits[plan.training_split].images
    captions = {}
    if pictures:
        neighbors = None
        if wanted.memorization and len(training) > 1:
            shown = samples[seed].select(range(min(NUM_PAIRS, benchmark.n_samples)))
            count = min(NUM_NEIGHBORS_SHOWN, len(training))
            neighbors = nearest(shown, references[plan.training_split], count, plan.metric_device)
        captions = draw_pictures(plan, held_out, methods, reconstructed, neighbors)
    others = training[held_out.others] if plan.held_out_split == plan.training_split else training
    report = replace(
        report,
        label=label,
        reconstructions=measure_reconstructions(pipeline, held_out, methods, reconstructed, seed, wanted),
        baselines=measure_baselines(held_out, others, wanted, report.held_out_kind),
        pictures=captions,
        versions=_versions(),
    )
    return replace(report, warnings=list(_warnings(report, benchmark.allow_few_samples)))


def _run_folder(config: Config) -> Path:
    return Path(config.output_dir or "runs/run")


def _reduced(config: Config, num_samples: int) -> Config:
    """The configuration with metrics of samples only, and fewer samples."""
    update = {"n_samples": num_samples, "num_seeds": 1, "save_samples": False}
    return config.model_copy(update={"benchmark": samples_only(config.benchmark).model_copy(update=update)})


def samples_only(benchmark: BenchmarkConfig) -> BenchmarkConfig:
    """The same section without metrics of held-out images."""
    metrics = benchmark.metrics.model_copy(update={"ssim": False, "psnr": False, "bits_per_dim": False})
    return benchmark.model_copy(update={"metrics": metrics})


def _warnings(report: Report, allow_few_samples: bool) -> Iterator[str]:
    """What must not be read into the values."""
    num_samples, num_features, features = report.sampling.n_samples, report.features.num_features, report.features
    if report.label:
        yield f"Not a full evaluation: {report.label}."
    if num_samples < ENOUGH_SAMPLES:
        yield (
            f"{num_samples:,} samples, fewer than {ENOUGH_SAMPLES:,}: a Fréchet distance is too high by an amount that "
            "depends on the count. Compare with evaluations of the same count, and with the real images."
        )
    if features.name != "inception":
        yield (
            f"The features are those of {features.label}: no metric here is an FID, a KID or an Inception score, and "
            "none compares with the literature's."
        )
    if report.held_out.are_training_images and (report.reconstructions or "bits_per_dim" in report.metrics):
        yield (
            "No held-out images were named (benchmark.held_out_split, dataset.validation_split), or they are part of "
            "the training images: reconstructions and bits/dim are those of images that the model has seen."
        )
    least = min(num_samples, report.reference.num_images)
    if allow_few_samples and "frechet_distance" in report.metrics and least <= num_features:
        yield (
            f"A Fréchet distance from {least:,} images in {num_features:,} dimensions rests on singular covariances: "
            "take it for no more than a sign of life."
        )
    for metric in report.metrics.values():
        if metric.problem:
            yield f"{metric.name}: {metric.problem}."


def _versions() -> dict[str, str]:
    versions = {"ddpm_hf": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return versions | {"device": device}
