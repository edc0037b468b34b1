"""Put a report together from what an evaluation measured."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from ddpm_hf._version import __version__
from ddpm_hf.evaluation.plan import Plan
from ddpm_hf.evaluation.report import (
    Baseline,
    FeaturesSection,
    HeldOutSection,
    Metric,
    MetricValue,
    ModelSection,
    Reconstruction,
    ReferenceSection,
    Report,
    SamplingSection,
)
from ddpm_hf.evaluation.scoring import NAMES, name_of
from ddpm_hf.evaluation.splits import run_config

ENOUGH_SAMPLES = 10_000

LIBRARIES = ("torch", "diffusers", "accelerate", "transformers", "torchmetrics", "torch-fidelity", "numpy")

UNKNOWN = MetricValue(None, None, "not known: see Baselines")
"""The bits/dim of real images."""


@dataclass(frozen=True)
class Scores:
    """The metrics of samples beside those of real images.

    Attributes:
        samples: of all samples, and of held-out images.
        real: of real images in the place of samples.
        matched: of as many samples against the same images as the real ones; None where `samples` is that already.
        text: which real images these were.
        num_real: how many were in the place of samples.
    """

    samples: dict[str, MetricValue]
    real: dict[str, MetricValue]
    matched: dict[str, MetricValue] | None
    text: str
    num_real: int


def build_report(
    plan: Plan,
    scores: Scores,
    reconstructions: list[Reconstruction],
    baselines: list[Baseline],
    num_held_out: int,
    pictures: dict[str, str],
    label: str | None,
) -> Report:
    """Gather what an evaluation measured, and everything that its values depend on.

    Args:
        plan: of the evaluation.
        scores: the metrics.
        reconstructions: SSIM and PSNR by method.
        baselines: metrics of held-out images without a model.
        num_held_out: images that were reconstructed.
        pictures: caption of each picture, by its file.
        label: what the report is, if not a full evaluation.
    """
    benchmark, extractor, drawing = plan.benchmark, plan.extractor, plan.drawing
    metrics = {}
    for name, value in scores.samples.items():
        is_bits = name == "bits_per_dim"
        metrics[name] = Metric(
            value=value.value,
            std=value.std,
            problem=value.problem,
            name="bits/dim (bound)" if is_bits else name_of(name, extractor.name, extractor.label),
            better="lower" if is_bits else NAMES[name][1],
            std_over=None if value.std is None else _std_over(name, benchmark.num_seeds),
            real_vs_real=scores.real.get(name, UNKNOWN),
            matched=(scores.matched or {}).get(name),
        )
    reference = ReferenceSection(**plan.settings["reference"])
    are_training_images = plan.held_out_split == plan.training_split
    return Report(
        label=label,
        model=ModelSection(name=plan.model, weights=plan.settings["weights"], ema=_ema(plan.model)),
        sampling=SamplingSection(
            n_samples=benchmark.n_samples,
            seeds=[drawing.seed + repeat for repeat in range(benchmark.num_seeds)],
            sampler=plan.sampler_name,
            num_inference_steps=drawing.num_inference_steps,
            network_evaluations=plan.network_evaluations,
            batch_size=benchmark.batch_size,
            classes="none" if drawing.class_labels is None else f"each of {len(drawing.class_labels)} in turn",
        ),
        features=FeaturesSection(
            name=extractor.name,
            label=extractor.label,
            description=extractor.description,
            fingerprint=extractor.fingerprint,
            resize=extractor.resize,
            num_features=extractor.num_features,
        ),
        reference=reference,
        held_out=HeldOutSection(
            split=plan.held_out_split,
            num_images=num_held_out,
            are_training_images=are_training_images,
            fingerprint=plan.settings["held_out"]["fingerprint"],
            likelihood_timesteps=benchmark.likelihood_timesteps,
        ),
        real_vs_real=scores.text,
        num_matched=None if scores.matched is None else scores.num_real,
        metrics=metrics,
        reconstructions=reconstructions,
        baselines=baselines,
        pictures=pictures,
        warnings=list(_warnings(plan, label, reference.num_images, are_training_images, metrics)),
        versions=_versions(),
    )


def _warnings(
    plan: Plan, label: str | None, num_reference: int, are_training_images: bool, metrics: dict[str, Metric]
) -> Iterator[str]:
    """What must not be read into the values."""
    benchmark, extractor = plan.benchmark, plan.extractor
    wanted = benchmark.metrics
    if label:
        yield f"Not a full evaluation: {label}."
    if benchmark.n_samples < ENOUGH_SAMPLES:
        yield (
            f"{benchmark.n_samples:,} samples, fewer than {ENOUGH_SAMPLES:,}: a Fréchet distance is too high by an "
            "amount that depends on the count. Compare with evaluations of the same count, and with the real images."
        )
    if extractor.name != "inception":
        yield (
            f"The features are those of {extractor.label}: no metric here is an FID, a KID or an Inception score, "
            "and none compares with the literature's."
        )
    if are_training_images and (wanted.ssim or wanted.psnr or wanted.bits_per_dim):
        yield (
            "No held-out images were named (benchmark.held_out_split, dataset.validation_split): reconstructions and "
            "bits/dim are those of training images, which the model has seen."
        )
    least = min(benchmark.n_samples, num_reference)
    if benchmark.allow_few_samples and wanted.fid and least <= extractor.num_features:
        yield (
            f"A Fréchet distance from {least:,} images in {extractor.num_features:,} dimensions rests on singular "
            "covariances: take it for no more than a sign of life."
        )
    for metric in metrics.values():
        if metric.problem:
            yield f"{metric.name}: {metric.problem}."


def _std_over(name: str, num_seeds: int) -> str:
    if name == "bits_per_dim":
        return "images"
    if num_seeds > 1:
        return f"{num_seeds} seeds"
    return "10 splits" if name == "classifier_score" else "100 subsets"


def _ema(model: str) -> str:
    """Whether the weights are averaged, as far as the folder of the model tells."""
    try:
        decay = float(run_config(model)["training"]["ema_decay"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return "not recorded: the weights as they were saved"
    return f"yes, decay {decay}: a run saves the averaged weights for use"


def _versions() -> dict[str, str]:
    versions = {"ddpm_hf": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return versions | {"device": device}
