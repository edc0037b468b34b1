"""Distances between two sets of images: Fréchet, kernel, classifier score (float64, in features), and colours."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from ddpm_hf.evaluation.feature_store import FeatureTable, progress_bar
from ddpm_hf.evaluation.report import MetricValue
from ddpm_hf.pipelines.images import from_uint8
from ddpm_hf.runtime.randomness import generator_at

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

SMALLEST_DRIFT = 0.05
"""Smaller differences of colours in [-1, 1] are no drift, however significant."""

STANDARD_ERRORS = 5.0
"""Smaller differences of colours may be chance."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Sums over features, of which a Gaussian is fit; those of two sets add up to those of their union.

    Attributes:
        count: images.
        total: sum of the feature vectors.
        outer: sum of their outer products.
    """

    count: int
    total: Float64[Tensor, " features"]
    outer: Float64[Tensor, "features features"]

    @property
    def mean(self) -> Float64[Tensor, " features"]:
        """Mean of the features."""
        return self.total / self.count

    @property
    def covariance(self) -> Float64[Tensor, "features features"]:
        """Unbiased covariance of the features."""
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def feature_statistics(table: FeatureTable, progress: Callable[[int], object] = lambda rows: None) -> FeatureStatistics:
    """Sum up features in one pass.

    Args:
        table: the features.
        progress: called with the number of rows of each finished block.
    """
    total = torch.zeros(table.num_features, dtype=torch.float64)
    outer = torch.zeros(table.num_features, table.num_features, dtype=torch.float64)
    for block in table.blocks():
        total += block.sum(0)
        outer.addmm_(block.T, block)
        progress(len(block))
    return FeatureStatistics(len(table), total, outer)


def frechet_distance(real: FeatureStatistics, fake: FeatureStatistics) -> MetricValue:
    """Squared Fréchet distance between the Gaussians fit to two sets (Heusel et al. 2017, eq. 6).

    |m_1 - m_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)). The eigenvalues of C_1 C_2 are those of C_1^(1/2) C_2 C_1^(1/2),
    which is symmetric, so that they are real and not negative but for rounding.

    Args:
        real: of at least 2 images.
        fake: likewise, of the same features.

    Returns:
        The distance; NaN if a feature is not finite.
    """
    c_1, c_2 = real.covariance, fake.covariance
    if not (c_1.isfinite().all() and c_2.isfinite().all()):
        return MetricValue(math.nan)
    eigenvalues, eigenvectors = torch.linalg.eigh(c_1)
    root = eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.T
    trace_of_root = torch.linalg.eigvalsh(root @ c_2 @ root).clamp(min=0).sqrt().sum()
    distance = (real.mean - fake.mean).square().sum() + c_1.trace() + c_2.trace() - 2 * trace_of_root
    return MetricValue(max(float(distance), 0.0))


def kernel_distance(real: FeatureTable, fake: FeatureTable) -> MetricValue:
    """Unbiased squared MMD with the kernel (x.y / features + 1)^3 (Binkowski et al. 2018, eq. 4).

    The mean over random subsets of both sets. The subsets depend on the sizes of the sets only.

    Args:
        real: at least 4 rows.
        fake: likewise, of the same features.

    Returns:
        Mean and standard deviation over the subsets.
    """
    size = min(KID_SUBSET_SIZE, len(real) // 2, len(fake) // 2)
    values = torch.empty(KID_SUBSETS, dtype=torch.float64)
    with progress_bar(KID_SUBSETS, "kernel distance", "subset") as progress:
        for subset in range(KID_SUBSETS):
            values[subset] = _squared_mmd(
                _random_rows(real, size, "real", subset), _random_rows(fake, size, "fake", subset)
            )
            progress.update()
    return MetricValue(float(values.mean()), float(values.std(unbiased=False)))


def _squared_mmd(x: Float64[Tensor, "rows features"], y: Float64[Tensor, "rows features"]) -> Float64[Tensor, ""]:
    """The unbiased estimate, whose sums within a set leave out the pairs of a row with itself."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).div_(a.shape[1]).add_(1).pow_(3)

    def mean_of_pairs(rows: Tensor) -> Tensor:
        values = kernel(rows, rows)
        return (values.sum() - values.trace()) / (len(rows) * (len(rows) - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean()


def _random_rows(table: FeatureTable, size: int, which: str, subset: int) -> Float64[Tensor, "rows features"]:
    order = torch.randperm(len(table), generator=generator_at(0, "kernel distance", which, subset))
    return table.read(order[:size].tolist())


def classifier_score(logits: FeatureTable, num_splits: int = 10) -> MetricValue:
    """exp(E KL(p(y|x) || p(y))): the Inception score if the classifier is Inception (Salimans et al. 2016, section 4).

    The mean of KL is E[sum p log p] - sum E[p] log E[p]: one pass in float64, in which a probability of 0 gives no NaN.

    Args:
        logits: of the classifier for each image.
        num_splits: consecutive parts that the images are divided into.

    Returns:
        Mean and standard deviation over the splits.
    """
    bounds = [len(logits) * part // num_splits for part in range(num_splits + 1)]
    scores = []
    for start, stop in itertools.pairwise(bounds):
        if start == stop:
            continue
        negative_entropy, mean = torch.zeros((), dtype=torch.float64), torch.zeros(logits.num_features).double()
        for block in logits.select(range(start, stop)).blocks():
            probabilities = block.softmax(1)
            negative_entropy += _p_log_p(probabilities).sum()
            mean += probabilities.sum(0)
        count = stop - start
        scores.append(float((negative_entropy / count - _p_log_p(mean / count).sum()).exp()))
    values = torch.tensor(scores, dtype=torch.float64)
    return MetricValue(float(values.mean()), float(values.std(unbiased=False)) if len(scores) > 1 else None)


def _p_log_p(probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return torch.special.xlogy(probabilities, probabilities)


@dataclass(frozen=True)
class Colours:
    """Statistics of each colour channel of some images, in [-1, 1].

    Attributes:
        count: images.
        mean: over all images and pixels.
        std: over all images and pixels.
        std_of_means: over the images, of the mean of each.
    """

    count: int
    mean: list[float]
    std: list[float]
    std_of_means: list[float]

    @classmethod
    def of(cls, images: UInt8[Tensor, "num_images channels height width"]) -> "Colours":
        """Compute the statistics of images."""
        values = from_uint8(images, torch.float64)
        return cls(
            count=len(images),
            mean=values.mean((0, 2, 3)).tolist(),
            std=values.std((0, 2, 3), correction=0).tolist(),
            std_of_means=values.mean((2, 3)).std(0, correction=0).tolist(),
        )

    def drift_from(self, real: "Colours") -> str | None:
        """Describe the channels in which images differ from real ones by more than chance.

        All of them may be too bright or too dark; or some too bright and others too dark, which cancels in the mean.

        Args:
            real: the colours of many real images, whose own variation decides what may be chance.

        Returns:
            A description; None without drift.
        """
        names = ("gray",) if len(self.mean) == 1 else ("red", "green", "blue")
        drifted = [
            f"{name} {ours:+.2f} instead of {theirs:+.2f}"
            for name, ours, theirs, std in zip(names, self.mean, real.mean, real.std_of_means, strict=True)
            if abs(ours - theirs) > SMALLEST_DRIFT + STANDARD_ERRORS * std / self.count**0.5
        ]
        largest = 1 + STANDARD_ERRORS / (2 * self.count) ** 0.5  # the standard error of a standard deviation
        drifted += [
            f"{name} ±{ours:.2f} from image to image instead of ±{theirs:.2f}"
            for name, ours, theirs in zip(names, self.std_of_means, real.std_of_means, strict=True)
            if ours > max(theirs + SMALLEST_DRIFT, theirs * largest)
        ]
        return ", ".join(drifted) or None

    def logged(self) -> dict[str, list[float]]:
        """The statistics, rounded, under the names that the run's log has."""
        values = {"channel_mean": self.mean, "channel_std": self.std, "channel_spread": self.std_of_means}
        return {name: [round(value, 4) for value in each] for name, each in values.items()}
