"""All metrics of samples against real images, and of other real images in the samples' place."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import torch
from pydantic import TypeAdapter

from ddpm_hf._version import __version__
from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.evaluation.extractors.base import FeatureExtractor
from ddpm_hf.evaluation.feature_store import FeatureTable
from ddpm_hf.evaluation.metrics.distances import (
    PRECISION_RECALL_K,
    classifier_score,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    memorized,
    nearest,
    precision_recall,
)
from ddpm_hf.evaluation.plan import EvaluationPlan
from ddpm_hf.evaluation.report import Better, Metric, MetricValue, Report
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.randomness import generator_at
from ddpm_hf.runtime.signals import run_in_thread
from ddpm_hf.runtime.values import read_json

NAMES: dict[str, tuple[str, Better]] = {
    "frechet_distance": ("FD", "lower"),
    "classifier_score": ("classifier score", "higher"),
    "kernel_distance": ("KD", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "memorization_rate": ("memorisation rate", "lower"),
}
"""Name and better direction of each metric of samples."""

INCEPTION_NAMES = {"frechet_distance": "FID", "classifier_score": "Inception score", "kernel_distance": "KID"}


def metric_name(key: str, extractor: FeatureExtractor) -> str:
    """The name of a metric for a person: FID, KID and Inception score only in Inception's features.

    Args:
        key: of `NAMES`.
        extractor: of the features.
    """
    if extractor.name == "inception" and key in INCEPTION_NAMES:
        return INCEPTION_NAMES[key]
    return f"{NAMES[key][0]} ({extractor.label})"


def score_set(
    candidates: FeatureTable,
    real: FeatureTable,
    training: FeatureTable,
    benchmark: BenchmarkConfig,
    extractor: FeatureExtractor,
    device: torch.device | str,
) -> dict[str, MetricValue]:
    """Compute the metrics of images against real ones.

    Args:
        candidates: samples, or real images in their place.
        real: what they are compared with.
        training: what they may be copies of.
        benchmark: which metrics are wanted, and whether to compute a Fréchet distance from too few images for a
            covariance of full rank.
        extractor: of the features.
        device: that computes distances between rows; it must support float64.

    Returns:
        The wanted metrics by key, each with its value or the reason why it has none.
    """
    num_lost = sum(int((~block.isfinite().all(1)).sum()) for block in candidates.blocks())
    wanted, values = benchmark.metrics, dict[str, MetricValue]()

    def add(key: str, compute: Callable[[], MetricValue], least: int, needs: str) -> None:
        count = min(len(candidates), len(real))
        if count < least:
            values[key] = MetricValue(None, None, f"not computed: {count:,} images, and {needs}")
        elif num_lost:
            cause = f"{num_lost:,} of {len(candidates):,} images have features that are not finite"
            values[key] = MetricValue(None, None, f"NaN: {cause}")
        else:
            values[key] = compute().or_problem("the features of the reference are not finite, or overflow")

    if wanted.fid:
        dimension = extractor.num_features
        add(
            "frechet_distance",
            # the eigenvalues of 2,048 features take seconds, in which a stop must be noticed
            lambda: run_in_thread(
                partial(frechet_distance, feature_statistics(real), feature_statistics(candidates)),
                candidates.store.check,
            ),
            2 if benchmark.allow_few_samples else dimension + 1,
            f"a covariance of {dimension:,} features needs {dimension + 1:,}",
        )
    if wanted.inception_score:
        logits = candidates.logits
        if logits is None:
            problem = f"not computed: {extractor.name} is no classifier"
            values["classifier_score"] = MetricValue(None, None, problem)
        else:
            add("classifier_score", lambda: classifier_score(logits), 2, "it needs 2")
    if wanted.kid:
        add("kernel_distance", lambda: kernel_distance(real, candidates), 4, "it needs 4")
    if wanted.precision_recall:
        k = PRECISION_RECALL_K
        both = cache(lambda: precision_recall(real, candidates, device))
        add("precision", lambda: MetricValue(both()[0]), k + 1, f"{k} neighbours need {k + 1}")
        add("recall", lambda: MetricValue(both()[1]), k + 1, f"{k} neighbours need {k + 1}")
    if wanted.memorization and len(training) < 2:
        problem = "not computed: one training image, and two neighbours need 2"
        values["memorization_rate"] = MetricValue(None, None, problem)
    elif wanted.memorization:

        def compute_rate() -> MetricValue:
            is_copy = memorized(nearest(candidates, training, 2, device))
            return MetricValue(float(is_copy.double().mean()))

        add("memorization_rate", compute_rate, 2, "two neighbours need 2")
    return values


def score_samples(
    plan: EvaluationPlan, references: dict[str, FeatureTable], samples: dict[int, FeatureTable]
) -> Report:
    """Compute the metrics of the samples of each seed, and those of real images in their place.

    Args:
        plan: of the evaluation.
        references: features of the real images of each split.
        samples: features of the samples of each seed.

    Returns:
        The report of the plan with these metrics.
    """
    benchmark, extractor, folder = plan.benchmark, plan.extractor, plan.folder / "scores"
    reference, training = references[plan.reference_split], references[plan.training_split]
    asked = {
        "metrics": benchmark.metrics.model_dump(),
        "allow_few_samples": benchmark.allow_few_samples,
        "n": benchmark.n_samples,
        "version": __version__,
    }

    def score(
        file: Path, settings: object, images: FeatureTable, real: FeatureTable, train: FeatureTable
    ) -> dict[str, MetricValue]:
        return cached_values(
            file, settings, lambda: score_set(images, real, train, benchmark, extractor, plan.metric_device)
        )

    scored = [score(folder / f"seed-{seed}.json", asked, each, reference, training) for seed, each in samples.items()]
    candidates, others, train, text = _real_in_place_of_samples(plan, references)
    # Real images are the same for every model, so their metrics are cached beside their features.
    asked_of_real = asked | {"sets": {split: asdict(each) for split, each in plan.references.items()}, "text": text}
    digest = hashlib.sha256(json.dumps(asked_of_real, sort_keys=True).encode()).hexdigest()[:16]
    assert reference.cache is not None
    of_real = score(reference.cache / f"real-vs-real-{digest}.json", asked_of_real, candidates, others, train)
    matched = None
    if (len(candidates), len(others)) != (benchmark.n_samples, len(reference)):
        first = range(len(candidates))
        matched = over_seeds(
            [
                score(folder / f"seed-{seed}-matched.json", asked_of_real, each.select(first), others, train)
                for seed, each in samples.items()
            ]
        )
    metrics = {
        key: Metric(
            **vars(value),
            name=metric_name(key, extractor),
            better=NAMES[key][1],
            std_over=None if value.std is None else _std_over(key, benchmark.num_seeds),
            real_vs_real=of_real[key],
            matched=None if matched is None else matched[key],
        )
        for key, value in over_seeds(scored).items()
    }
    num_matched = None if matched is None else len(candidates)
    return replace(plan.report, metrics=metrics, real_vs_real=text, num_matched=num_matched)


def _real_in_place_of_samples(
    plan: EvaluationPlan, references: dict[str, FeatureTable]
) -> tuple[FeatureTable, FeatureTable, FeatureTable, str]:
    """Choose real images that are scored like samples: held-out ones, or up to half of the reference against the rest.

    Returns:
        The images in place of samples, what they are compared with, what they may be copies of, and a description.
    """
    count, real, held_out = plan.benchmark.n_samples, references[plan.reference_split], references[plan.held_out_split]
    is_another_split = plan.held_out_split not in (plan.reference_split, plan.training_split)
    is_held_out = is_another_split and len(held_out) >= min(count, len(real) // 2)
    source = held_out if is_held_out else real
    order = torch.randperm(len(source), generator=generator_at(0, "real-vs-real"))
    if is_held_out:
        chosen = source.select(order[:count].sort().values.tolist())
        text = f"{len(chosen):,} images of {plan.held_out_split!r} against {len(real):,} of {plan.reference_split!r}"
        return chosen, real, references[plan.training_split], text
    half = min(count, len(real) // 2)
    chosen, others = (real.select(part.sort().values.tolist()) for part in (order[:half], order[half:]))
    text = f"{len(chosen):,} images of {plan.reference_split!r} against its {len(others):,} others"
    return chosen, others, others, text


def _std_over(key: str, num_seeds: int) -> str:
    if num_seeds > 1:
        return f"{num_seeds} seeds"
    return "10 splits" if key == "classifier_score" else "100 subsets"


def over_seeds(runs: list[dict[str, MetricValue]]) -> dict[str, MetricValue]:
    """Mean and standard deviation of each metric over seeds; with one seed, its own values."""
    if len(runs) == 1:
        return runs[0]
    combined = {}
    for key in runs[0]:
        values = torch.tensor([run[key].value for run in runs if run[key].value is not None], dtype=torch.float64)
        problem = next((run[key].problem for run in runs if run[key].problem), None)
        is_complete = len(values) == len(runs)
        combined[key] = (
            MetricValue(float(values.mean()), float(values.std())) if is_complete else MetricValue(None, None, problem)
        )
    return combined


def cached_values(
    file: Path, settings: object, compute: Callable[[], dict[str, MetricValue]]
) -> dict[str, MetricValue]:
    """Read metrics from a file, if they were computed with the same settings; otherwise compute and write them.

    Args:
        file: JSON; values of other settings in it are replaced.
        settings: everything that the values depend on, as plain values.
        compute: the metrics.
    """
    try:
        stored = read_json(file)
        if stored["settings"] == settings:
            return TypeAdapter(dict[str, MetricValue]).validate_python(stored["values"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    values = compute()
    content = {"settings": settings, "values": {key: asdict(value) for key, value in values.items()}}
    write_text_atomic(file, json.dumps(content, indent=2) + "\n")
    return values
