"""Metrics in feature space, in float64: Fréchet and kernel distance, classifier score, and nearest neighbours."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ddpm_hf.evaluation.feature_store import FeatureTable, progress_bar
from ddpm_hf.evaluation.report import MetricValue
from ddpm_hf.runtime.randomness import generator_at

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000

QUERY_ROWS, REFERENCE_ROWS = 512, 4096
"""Rows that are compared at a time: 16 MB of distances, however many rows there are."""

PRECISION_RECALL_K = 3

MEMORIZED_RATIO = 1 / 3
"""A sample is memorised if its nearest training image is less than this times as far as the second nearest."""


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


def feature_statistics(table: FeatureTable) -> FeatureStatistics:
    """Sum up features in one pass, or read the sums from the table's cache."""

    def compute() -> dict[str, Tensor]:
        total = torch.zeros(table.num_features, dtype=torch.float64)
        outer = torch.zeros(table.num_features, table.num_features, dtype=torch.float64)
        for block in _with_bar(table, "feature statistics"):
            total += block.sum(0)
            outer.addmm_(block.T, block)
        return {"count": torch.tensor(len(table)), "total": total, "outer": outer}

    found = table.cached("statistics", compute)
    return FeatureStatistics(int(found["count"]), found["total"], found["outer"])


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
class Neighbors:
    """The nearest rows of another table.

    Attributes:
        distances: Euclidean, rising.
        indices: positions in the other table.
    """

    distances: Float64[Tensor, "queries k"]
    indices: Int64[Tensor, "queries k"]


def nearest(
    queries: FeatureTable, references: FeatureTable, k: int, device: torch.device | str = "cpu", same: bool = False
) -> Neighbors:
    """Find the k nearest references of each query, exactly.

    Args:
        queries: the rows to find neighbours for.
        references: the rows to find them among; at least k, or k + 1 if they are the same.
        k: at least 1.
        device: that computes distances; it must support float64.
        same: the two tables are the same one, and no row is its own neighbour.
    """
    # allocated before the loop: small results between large temporary ones would fragment the memory
    distances = torch.empty(len(queries), k, dtype=torch.float64)
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    for rows, block in _with_positions(_with_bar(queries, "nearest neighbours", QUERY_ROWS)):
        best = torch.full((len(block), k), math.inf, dtype=torch.float64, device=device)
        where = torch.zeros(len(block), k, dtype=torch.int64, device=device)
        for columns, others in _with_positions(references.blocks(REFERENCE_ROWS)):
            squared = _squared_distances(block.to(device), others.to(device))
            if same:
                squared[rows.to(device)[:, None] == columns.to(device)] = math.inf
            near, at = squared.topk(min(k, len(others)), dim=1, largest=False)
            best, chosen = torch.cat([best, near], dim=1).topk(k, dim=1, largest=False)
            where = torch.cat([where, at + columns[0]], dim=1).gather(1, chosen)
        found = where.cpu()
        # without the cancellation of `_squared_distances`, so that those of copies are exactly 0
        neighbors = references.read(found.flatten().tolist()).view(*found.shape, -1)
        exact = (block[:, None] - neighbors).square().sum(2).sqrt()
        order = exact.argsort(dim=1, stable=True)
        distances[rows], indices[rows] = exact.gather(1, order), found.gather(1, order)
    return Neighbors(distances, indices)


def _with_positions(blocks: Iterator[Tensor]) -> Iterator[tuple[Int64[Tensor, " rows"], Tensor]]:
    """Blocks of rows, each with the positions of its rows."""
    start = 0
    for block in blocks:
        yield torch.arange(start, start + len(block)), block
        start += len(block)


def _with_bar(
    table: FeatureTable, what: str, max_rows: int | None = None
) -> Iterator[Float64[Tensor, "rows features"]]:
    """Blocks of rows with a progress bar, since all pairs of many images take minutes."""
    with progress_bar(len(table), what) as progress:
        for block in table.blocks(max_rows):
            yield block
            progress.update(len(block))


def _within(
    queries: FeatureTable,
    references: FeatureTable,
    radii: Float64[Tensor, " references"],
    device: torch.device | str,
) -> Bool[Tensor, " queries"]:
    """Whether each query lies in the ball of any reference, its surface included."""
    found = torch.empty(len(queries), dtype=torch.bool)
    for rows, block in _with_positions(_with_bar(queries, "neighbourhoods", QUERY_ROWS)):
        there, inside = block.to(device), torch.zeros(len(block), dtype=torch.bool, device=device)
        for columns, others in _with_positions(references.blocks(REFERENCE_ROWS)):
            others_there, radius = others.to(device), radii[columns]
            beyond = _squared_distances(there, others_there) - radius.to(device).square()
            # the most that `_squared_distances` can be wrong by: a copy in a ball of radius 0 need not be at distance 0
            wrong_by = 4 * block.shape[1] * torch.finfo(block.dtype).eps * _sums_of_squares(there, others_there)
            inside |= (beyond < -wrong_by).any(1)
            unsure = beyond.abs() <= wrong_by
            # a reference for each query at a time, so that many copies need no more memory
            while (which := (unsure.any(1) & ~inside).nonzero().flatten()).numel():
                other = unsure[which].int().argmax(1)
                unsure[which, other] = False
                one, two = which.cpu(), other.cpu()
                exact = (block[one] - others[two]).square().sum(1).sqrt()  # as `nearest` computes the radii
                inside[which[(exact <= radius[two]).to(device)]] = True
        found[rows] = inside.cpu()
    return found


def radii(table: FeatureTable, device: torch.device | str = "cpu") -> Float64[Tensor, " rows"]:
    """The distance of each row from its third nearest neighbour, computed or read from the table's cache.

    Args:
        table: more than 3 rows.
        device: that computes distances; it must support float64.
    """

    def compute() -> dict[str, Tensor]:
        return {"radii": nearest(table, table, PRECISION_RECALL_K, device, same=True).distances[:, -1].contiguous()}

    return table.cached("radii", compute)["radii"]


def precision_recall(real: FeatureTable, fake: FeatureTable, device: torch.device | str = "cpu") -> tuple[float, float]:
    """Improved precision and recall with k = 3 (Kynkäänniemi et al. 2019, eq. 1 and 2).

    Args:
        real: more than 3 rows.
        fake: likewise, of the same features.
        device: that computes distances; it must support float64.

    Returns:
        Precision, the share of samples within the real images' neighbourhoods, and recall, the reverse; in [0, 1].
    """
    precision = _within(fake, real, radii(real, device), device).double().mean()
    recall = _within(real, fake, radii(fake, device), device).double().mean()
    return float(precision), float(recall)


def memorized(neighbors: Neighbors) -> Bool[Tensor, " queries"]:
    """Which samples are copies: much closer to one training image than to the second nearest (Yoon et al. 2023).

    A sample at distance 0 of a training image is a copy even if that image is in the data twice.

    Args:
        neighbors: at least the two nearest training images of each sample.
    """
    first, second = neighbors.distances[:, 0], neighbors.distances[:, 1]
    return (first < MEMORIZED_RATIO * second) | (first == 0)


def _squared_distances(
    one: Float64[Tensor, "rows features"], other: Float64[Tensor, "columns features"]
) -> Float64[Tensor, "rows columns"]:
    return torch.addmm(_sums_of_squares(one, other), one, other.T, alpha=-2).clamp_(min=0)


def _sums_of_squares(
    one: Float64[Tensor, "rows features"], other: Float64[Tensor, "columns features"]
) -> Float64[Tensor, "rows columns"]:
    return one.square().sum(1)[:, None] + other.square().sum(1)
