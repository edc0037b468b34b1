"""Distances between two sets of features: Fréchet's and the kernel's, in float64, by torchmetrics."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ddpm_hf.evaluation.progress import bar
from ddpm_hf.evaluation.report import MetricValue
from ddpm_hf.evaluation.store import FeatureTable
from ddpm_hf.runtime.randomness import generator_at

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


@dataclass(frozen=True)
class Moments:
    """What a Gaussian fit to features rests on; the moments of two sets add up to those of both together.

    Attributes:
        count: images.
        total: sum of the features.
        outer: sum of their outer products.
    """

    count: int
    total: Float64[Tensor, " features"]
    outer: Float64[Tensor, "features features"]

    @property
    def is_finite(self) -> bool:
        """Whether no feature was NaN or infinite."""
        return bool(self.total.isfinite().all() and self.outer.isfinite().all())


def moments(table: FeatureTable, progress: Callable[[int], object] = lambda rows: None) -> Moments:
    """Sum up features in one pass.

    Args:
        table: the features.
        progress: told the number of rows of each block that is done.
    """
    total = torch.zeros(table.num_features, dtype=torch.float64)
    outer = torch.zeros(table.num_features, table.num_features, dtype=torch.float64)
    for block in table.blocks():
        total += block.sum(0)
        outer.addmm_(block.T, block)
        progress(len(block))
    return Moments(len(table), total, outer)


class _Rows(nn.Module):
    """What torchmetrics takes for an extractor: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, rows: Float64[Tensor, "rows features"]) -> Float64[Tensor, "rows features"]:
        return rows


def frechet_distance(real: Moments, fake: Moments) -> MetricValue:
    """Squared Fréchet distance of the Gaussians fit to two sets (Heusel et al. 2017, eq. 6).

    |m_1 - m_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), computed by torchmetrics in float64 from unbiased covariances.

    Args:
        real: of at least 2 images.
        fake: likewise, of the same features.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to import

    num_features = len(real.total)
    # the moments are those of all images already: other processes have nothing to add, and are not here
    metric = FrechetInceptionDistance(feature=_Rows(num_features), sync_on_compute=False).set_dtype(torch.float64)
    for is_real in (True, False):
        metric.update(torch.empty(0, num_features, dtype=torch.float64), real=is_real)
    metric.real_features_sum, metric.fake_features_sum = real.total, fake.total
    metric.real_features_cov_sum, metric.fake_features_cov_sum = real.outer, fake.outer
    metric.real_features_num_samples = torch.tensor(real.count)
    metric.fake_features_num_samples = torch.tensor(fake.count)
    if not (real.is_finite and fake.is_finite):
        return MetricValue(math.nan)
    distance = float(metric.compute())
    scale = float(real.outer.trace() / real.count + fake.outer.trace() / fake.count)
    # of equal sets it is 0 up to rounding, on either side
    return MetricValue(0.0 if -1e-6 * scale < distance < 0 else distance)


def kernel_distance(real: FeatureTable, fake: FeatureTable) -> MetricValue:
    """Unbiased squared MMD with the kernel (x.y / features + 1)^3 (Binkowski et al. 2018, eq. 4), by torchmetrics.

    The mean over random subsets of both sets, which are a function of their sizes only.

    Args:
        real: at least 4 rows.
        fake: likewise, of the same features.

    Returns:
        The mean and the standard deviation over the subsets.
    """
    from torchmetrics.image.kid import poly_mmd

    size = min(KID_SUBSET_SIZE, len(real) // 2, len(fake) // 2)
    values = []
    with bar(KID_SUBSETS, "kernel distance", "subset") as progress:
        for subset in range(KID_SUBSETS):
            drawn = [_draw(table, size, which, subset) for which, table in (("real", real), ("fake", fake))]
            values.append(float(poly_mmd(drawn[0], drawn[1])))
            progress.update()
    spread = torch.tensor(values, dtype=torch.float64)
    return MetricValue(float(spread.mean()), float(spread.std(unbiased=False)))


def _draw(table: FeatureTable, size: int, which: str, subset: int) -> Float64[Tensor, "rows features"]:
    order = torch.randperm(len(table), generator=generator_at(0, "kernel distance", which, subset))
    return table.read(order[:size].tolist())


def classifier_score(logits: FeatureTable, num_splits: int = 10) -> MetricValue:
    """exp(E KL(p(y|x) || p(y))): the Inception score where the classifier is Inception (Salimans et al. 2016).

    KL's mean is E[sum p log p] - sum E[p] log E[p], so that one pass in float64 is enough, and a probability of 0
    makes no NaN.

    Args:
        logits: of the classifier for each image.
        num_splits: parts that the images are cut into, in their order.

    Returns:
        The mean and the standard deviation over the parts.
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
    spread = torch.tensor(scores, dtype=torch.float64)
    return MetricValue(float(spread.mean()), float(spread.std(unbiased=False)) if len(scores) > 1 else None)


def _p_log_p(probabilities: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return torch.special.xlogy(probabilities, probabilities)
