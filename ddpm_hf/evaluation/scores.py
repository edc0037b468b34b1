"""Metrics of samples beside those of real images in their place."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ddpm_hf._version import __version__
from ddpm_hf.evaluation.metrics import NAMES, FeatureSet, cached_values, metric_name, over_seeds, score_set
from ddpm_hf.evaluation.plan import EvaluationPlan
from ddpm_hf.evaluation.report import Metric, MetricValue
from ddpm_hf.runtime.randomness import generator_at

UNKNOWN = MetricValue(None, None, "not known: see Baselines")
"""The bits/dim of real images."""


@dataclass(frozen=True)
class Scores:
    """Metrics of samples, and of real images in their place.

    Attributes:
        samples: of all samples against the reference.
        real: of real images in the place of samples.
        matched: of as many samples as those real images, against the same images; None if `samples` is that already.
        text: which real images these are.
        num_real: how many are in the place of samples.
    """

    samples: dict[str, MetricValue]
    real: dict[str, MetricValue]
    matched: dict[str, MetricValue] | None
    text: str
    num_real: int

    def metrics(self, plan: EvaluationPlan) -> dict[str, Metric]:
        """Each metric with its name and the same of real images, for the report."""
        return {
            key: Metric(
                value=value.value,
                std=value.std,
                problem=value.problem,
                name="bits/dim (bound)" if key == "bits_per_dim" else metric_name(key, plan.extractor),
                better="lower" if key == "bits_per_dim" else NAMES[key][1],
                std_over=None if value.std is None else _std_over(key, plan.benchmark.num_seeds),
                real_vs_real=self.real.get(key, UNKNOWN),
                matched=(self.matched or {}).get(key),
            )
            for key, value in self.samples.items()
        }


def score_samples(plan: EvaluationPlan, references: dict[str, FeatureSet], samples: dict[int, FeatureSet]) -> Scores:
    """Compute the metrics of the samples of each seed, and those of real images in their place.

    Args:
        plan: of the evaluation.
        references: features of the real images of each split.
        samples: features of the samples of each seed.
    """
    benchmark, folder = plan.benchmark, plan.folder / "scores"
    reference, training = references[plan.reference_split], references[plan.training_split]
    asked = {
        "metrics": benchmark.metrics.model_dump(),
        "allow_few_samples": benchmark.allow_few_samples,
        "n": benchmark.n_samples,
        "version": __version__,
    }

    def score(
        file: Path, settings: object, candidates: FeatureSet, real: FeatureSet, train: FeatureSet
    ) -> dict[str, MetricValue]:
        few, device, wanted = benchmark.allow_few_samples, metric_device(plan), benchmark.metrics
        return cached_values(
            file, settings, lambda: score_set(candidates, real, train, wanted, plan.extractor, device, few)
        )

    scored = [score(folder / f"seed-{seed}.json", asked, each, reference, training) for seed, each in samples.items()]
    candidates, others, train, text = _real_in_place_of_samples(plan, references)
    # Real images are the same for every model, so their metrics are cached beside their features.
    asked = asked | {"sets": {split: asdict(each) for split, each in plan.references.items()}, "text": text}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    assert reference.cache is not None
    of_real = score(reference.cache / f"real-vs-real-{digest}.json", asked, candidates, others, train)
    matched = None
    if (len(candidates), len(others)) != (benchmark.n_samples, len(reference)):
        first = range(len(candidates))
        matched = over_seeds(
            [
                score(folder / f"seed-{seed}-matched.json", asked, each.select(first), others, train)
                for seed, each in samples.items()
            ]
        )
    return Scores(over_seeds(scored), of_real, matched, text, len(candidates))


def _real_in_place_of_samples(
    plan: EvaluationPlan, references: dict[str, FeatureSet]
) -> tuple[FeatureSet, FeatureSet, FeatureSet, str]:
    """Choose real images that are scored like samples: held-out ones, or up to half of the reference against the rest.

    Returns:
        The images in place of samples, what they are compared with, what they may be copies of, and a description.
    """
    count, real, held_out = plan.benchmark.n_samples, references[plan.reference_split], references[plan.held_out_split]
    generator = generator_at(0, "real-vs-real")
    is_another_split = plan.held_out_split not in (plan.reference_split, plan.training_split)
    if is_another_split and len(held_out) >= min(count, len(real) // 2):
        chosen = torch.randperm(len(held_out), generator=generator)[:count].sort().values.tolist()
        text = f"{len(chosen):,} images of {plan.held_out_split!r} against {len(real):,} of {plan.reference_split!r}"
        return held_out.select(chosen), real, references[plan.training_split], text
    order = torch.randperm(len(real), generator=generator)
    half = min(count, len(real) // 2)
    chosen, others = order[:half].sort().values.tolist(), order[half:].sort().values.tolist()
    text = f"{len(chosen):,} images of {plan.reference_split!r} against its {len(others):,} others"
    rest = real.select(others)
    return real.select(chosen), rest, rest, text


def metric_device(plan: EvaluationPlan) -> torch.device:
    """The device of distances between features: a GPU, or else the CPU, which supports float64."""
    device = plan.pipeline.device
    return device if device.type == "cuda" else torch.device("cpu")


def _std_over(key: str, num_seeds: int) -> str:
    if key == "bits_per_dim":
        return "images"
    if num_seeds > 1:
        return f"{num_seeds} seeds"
    return "10 splits" if key == "classifier_score" else "100 subsets"
