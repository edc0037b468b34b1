"""All figures of one set of images against another: of samples, and of real images in their place."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from pydantic import TypeAdapter
from torch import Tensor

from ddpm_hf.config.benchmark import BenchmarkMetrics
from ddpm_hf.evaluation.distances import Moments, classifier_score, frechet_distance, kernel_distance, moments
from ddpm_hf.evaluation.features import FeatureExtractor
from ddpm_hf.evaluation.neighbors import PRECISION_RECALL_K, memorized, nearest, precision_recall, radii
from ddpm_hf.evaluation.report import Better, MetricValue
from ddpm_hf.evaluation.store import FeatureTable
from ddpm_hf.runtime.files import write_text_atomic
from ddpm_hf.runtime.signals import run_in_thread


@dataclass(frozen=True)
class FeatureSet:
    """The features of some images.

    Attributes:
        table: one row per image.
        logits: likewise; None if the extractor is no classifier.
        moments: sums up the features, or finds the sums.
        radii: measures how far the third neighbour of each image is, or finds it; takes a device.
    """

    table: FeatureTable
    logits: FeatureTable | None
    moments: Callable[[], Moments]
    radii: Callable[[torch.device | str], Float64[Tensor, " images"]]

    @classmethod
    def of(cls, table: FeatureTable, logits: FeatureTable | None) -> "FeatureSet":
        """A set whose moments and radii are computed when they are asked for."""
        return cls(table, logits, lambda: moments(table), lambda device: radii(table, device))

    def select(self, positions: list[int]) -> "FeatureSet":
        """Some of the images."""
        logits = None if self.logits is None else self.logits.select(positions)
        return FeatureSet.of(self.table.select(positions), logits)

    def __len__(self) -> int:
        return len(self.table)


NAMES: dict[str, tuple[str, Better]] = {
    "frechet_distance": ("FD", "lower"),
    "classifier_score": ("classifier score", "higher"),
    "kernel_distance": ("KD", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "memorization_rate": ("memorisation rate", "lower"),
}

INCEPTION_NAMES = {
    "frechet_distance": "FID",
    "classifier_score": "Inception score",
    "kernel_distance": "KID",
}


def name_of(figure: str, extractor_name: str, label: str) -> str:
    """What a figure is called: FID, KID and Inception score in Inception's features only.

    Args:
        figure: a key of `NAMES`.
        extractor_name: of the features.
        label: theirs.
    """
    if extractor_name == "inception" and figure in INCEPTION_NAMES:
        return INCEPTION_NAMES[figure]
    return f"{NAMES[figure][0]} ({label})"


def score_set(
    candidates: FeatureSet,
    real: FeatureSet,
    training: FeatureSet,
    wanted: BenchmarkMetrics,
    extractor: FeatureExtractor,
    device: torch.device | str,
    allow_few: bool,
) -> dict[str, MetricValue]:
    """Score images against real ones.

    Args:
        candidates: samples, or real images in their place.
        real: what they are compared with.
        training: what they may be copies of.
        wanted: which figures.
        extractor: whose features they are.
        device: where distances between rows are computed; it must know float64.
        allow_few: compute a Fréchet distance from too few images for a covariance of full rank.

    Returns:
        The wanted figures, each with its value or the cause of its absence.
    """
    lost = _count_not_finite(candidates.table)
    cause = f"{lost:,} of {len(candidates):,} images have features that are not finite"
    figures: dict[str, MetricValue] = {}

    def add(name: str, compute: Callable[[], MetricValue], least: int, needs: str) -> None:
        count = min(len(candidates), len(real))
        if count < least:
            figures[name] = MetricValue(None, None, f"not computed: {count:,} images, and {needs}")
        elif lost:
            figures[name] = MetricValue(None, None, f"NaN: {cause}")
        else:
            figures[name] = compute().or_problem("the features of the reference are not finite, or overflow")

    if wanted.fid:
        dimension = extractor.num_features
        least = 2 if allow_few else dimension + 1
        add(
            "frechet_distance",
            # the roots of a product of matrices: many seconds for 2,048 features
            lambda: run_in_thread(
                partial(frechet_distance, real.moments(), candidates.moments()), candidates.table.check
            ),
            least,
            f"a covariance of {dimension:,} features needs {dimension + 1:,}",
        )
    if wanted.inception_score:
        logits = candidates.logits
        if logits is None:
            problem = f"not computed: {extractor.name} is no classifier"
            figures["classifier_score"] = MetricValue(None, None, problem)
        else:
            add("classifier_score", lambda: classifier_score(logits), 2, "it needs 2")
    if wanted.kid:
        add("kernel_distance", lambda: kernel_distance(real.table, candidates.table), 4, "it needs 4")
    if wanted.precision_recall:
        k = PRECISION_RECALL_K
        both: list[float] = []

        def compute(which: int) -> MetricValue:
            if not both:
                both.extend(precision_recall(real.table, candidates.table, device, real.radii(device)))
            return MetricValue(both[which])

        for which, name in enumerate(("precision", "recall")):
            add(name, lambda which=which: compute(which), k + 1, f"{k} neighbours need {k + 1}")  # type: ignore[misc]
    if wanted.memorization and len(training) < 2:
        figures["memorization_rate"] = MetricValue(
            None, None, "not computed: one training image, and two neighbours need 2"
        )
    elif wanted.memorization:
        add(
            "memorization_rate",
            lambda: MetricValue(float(memorized(nearest(candidates.table, training.table, 2, device)).double().mean())),
            2,
            "two neighbours need 2",
        )
    return figures


def combine(runs: list[dict[str, MetricValue]]) -> dict[str, MetricValue]:
    """Mean and standard deviation of each figure over seeds; one seed's figures stay as they are."""
    if len(runs) == 1:
        return runs[0]
    combined = {}
    for name in runs[0]:
        values = [run[name].value for run in runs]
        known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        problem = next((run[name].problem for run in runs if run[name].problem), None)
        if len(known) < len(runs):
            combined[name] = MetricValue(None, None, problem)
        else:
            combined[name] = MetricValue(float(known.mean()), float(known.std()))
    return combined


def _count_not_finite(table: FeatureTable) -> int:
    return sum(int((~block.isfinite().all(1)).sum()) for block in table.blocks())


def kept(file: Path, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was computed for this key before, or compute it and keep it.

    Args:
        file: JSON; another key's values in it are replaced.
        key: everything that the values depend on, of plain types.
        compute: makes the values, of plain types.
    """
    try:
        stored = json.loads(file.read_text())
        if stored["key"] == key:
            return stored["values"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    values = compute()
    write_text_atomic(file, json.dumps({"key": key, "values": values}, indent=2) + "\n")
    return values


def kept_metrics(file: Path, key: Any, compute: Callable[[], dict[str, MetricValue]]) -> dict[str, MetricValue]:
    """`kept` for figures."""
    values = kept(file, key, lambda: {name: asdict(figure) for name, figure in compute().items()})
    return TypeAdapter(dict[str, MetricValue]).validate_python(values)
