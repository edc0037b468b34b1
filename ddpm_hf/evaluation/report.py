"""What a report says: the figures, everything that they depend on, and what must not be read into them."""

import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from ddpm_hf._version import __version__
from ddpm_hf.evaluation.plan import Plan
from ddpm_hf.evaluation.scoring import NAMES, Figure, name_of
from ddpm_hf.evaluation.splits import run_config

FORMAT = 2
"""Of metrics.json; a reader may rely on it. Since 2 it has the figures of as many samples as there are real images."""

ENOUGH_SAMPLES = 10_000

UNKNOWN = Figure(None, None, "not known: see Without any model")
"""The bits/dim of real images."""

LIBRARIES = ("torch", "diffusers", "accelerate", "transformers", "torchmetrics", "torch-fidelity", "numpy")


@dataclass(frozen=True)
class Compared:
    """The figures of samples beside those of real images.

    Attributes:
        samples: of all samples, and of held-out images.
        real: of real images in the place of samples.
        as_many: of as many samples against the same images as the real ones; None where `samples` is that already.
        text: which real images these were.
        num_real: how many were in the place of samples.
    """

    samples: dict[str, Figure]
    real: dict[str, Figure]
    as_many: dict[str, Figure] | None
    text: str
    num_real: int


def build_report(
    plan: Plan,
    compared: Compared,
    reconstructions: list[dict[str, Any]],
    baselines: list[dict[str, Any]],
    num_held_out: int,
    pictures: dict[str, str],
    label: str | None,
) -> dict[str, Any]:
    """Gather what an evaluation found, and everything that its figures depend on.

    Args:
        plan: of the evaluation.
        compared: the figures.
        reconstructions: rows of SSIM and PSNR.
        baselines: rows of what held-out images come to without a model.
        num_held_out: images that were reconstructed.
        pictures: caption of each picture, by its file.
        label: what the report says of itself.

    Returns:
        Plain values, as they go to metrics.json.
    """
    benchmark, extractor, drawing = plan.benchmark, plan.extractor, plan.drawing
    metrics = {}
    as_many = compared.as_many or {}
    for name, figure in compared.samples.items():
        shown, better = ("bits/dim (bound)", "lower") if name == "bits_per_dim" else (
            name_of(name, extractor.name, extractor.label), NAMES[name][1]
        )  # fmt: skip
        metrics[name] = {
            "name": shown,
            "better": better,
            **asdict(figure),
            "deviation_over": _deviation_over(name, benchmark.num_seeds) if figure.deviation is not None else None,
            "real_vs_real": asdict(compared.real.get(name, UNKNOWN)),
            "as_many_samples": asdict(as_many[name]) if name in as_many else None,
        }
    held_out_is_training = plan.held_out_split == plan.training_split
    report = {
        "format": FORMAT,
        "label": label,
        "model": {"name": plan.model, "weights": plan.settings["weights"], "ema": _ema(plan.model)},
        "sampling": {
            "n_samples": benchmark.n_samples,
            "seeds": [drawing.seed + repeat for repeat in range(benchmark.num_seeds)],
            "sampler": plan.sampler_name,
            "num_inference_steps": drawing.num_inference_steps,
            "network_evaluations": plan.network_evaluations,
            "batch_size": benchmark.batch_size,
            "classes": "none" if drawing.num_classes is None else f"each of {drawing.num_classes} in turn",
            "images": "8 bits, rounded",
        },
        "features": {
            "name": extractor.name,
            "label": extractor.label,
            "description": extractor.description,
            "fingerprint": extractor.fingerprint,
            "resize": extractor.resize,
            "num_features": extractor.num_features,
        },
        "reference": plan.settings["reference"],
        "held_out": {
            "split": plan.held_out_split,
            "num_images": num_held_out,
            "are_training_images": held_out_is_training,
            "fingerprint": plan.settings["held_out"]["fingerprint"],
            "likelihood_timesteps": benchmark.likelihood_timesteps,
        },
        "real_vs_real": compared.text,
        "as_many_samples": None if compared.as_many is None else compared.num_real,
        "metrics": metrics,
        "reconstructions": reconstructions,
        "baselines": baselines,
        "pictures": pictures,
        "warnings": [],
        "versions": _versions(),
    }
    report["warnings"] = list(_warnings(plan, report))
    return report


def _warnings(plan: Plan, report: dict[str, Any]) -> Iterable[str]:
    benchmark, features = plan.benchmark, report["features"]
    if report["label"]:
        yield f"This is a {report['label']}, not an evaluation."
    if benchmark.n_samples < ENOUGH_SAMPLES:
        yield (
            f"{benchmark.n_samples:,} samples, fewer than {ENOUGH_SAMPLES:,}: a Fréchet distance is too high by an "
            "amount that depends on the count. Compare with evaluations of the same count, and with the real images."
        )
    if features["name"] != "inception":
        yield (
            f"The features are those of {features['label']}: no figure here is an FID, a KID or an Inception score, "
            "and none compares with the literature's."
        )
    if report["held_out"]["are_training_images"] and (report["reconstructions"] or benchmark.metrics.bits_per_dim):
        yield (
            "No held-out images were named (benchmark.held_out_split, dataset.validation_split): reconstructions and "
            "bits/dim are those of training images, which the model has seen."
        )
    if benchmark.allow_few_samples and benchmark.metrics.fid:
        least = min(benchmark.n_samples, report["reference"]["num_images"])
        if least <= features["num_features"]:
            yield (
                f"A Fréchet distance from {least:,} images in {features['num_features']:,} dimensions rests on "
                "singular covariances: take it for no more than a sign of life."
            )
    for each in report["metrics"].values():
        if each["problem"]:
            yield f"{each['name']}: {each['problem']}."


def _deviation_over(name: str, num_seeds: int) -> str:
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
