"""Nearest neighbours in feature space: precision, recall and memorisation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ddpm_hf.evaluation.feature_store import FeatureTable, progress_bar

QUERY_ROWS, REFERENCE_ROWS = 512, 4096
"""Rows that are compared at a time: 16 MB of distances, however many rows there are."""

PRECISION_RECALL_K = 3

MEMORIZED_RATIO = 1 / 3
"""A sample is memorised if its nearest training image is less than this times as far as the second nearest."""


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
    start = 0
    for block in _with_bar(queries, "nearest neighbours"):
        best = torch.full((len(block), k), math.inf, dtype=torch.float64, device=device)
        where = torch.zeros(len(block), k, dtype=torch.int64, device=device)
        offset = 0
        for others in references.blocks(REFERENCE_ROWS):
            squared = _squared_distances(block.to(device), others.to(device))
            if same:
                rows = torch.arange(offset, offset + len(others), device=device)
                rows = rows[(rows >= start) & (rows < start + len(block))]
                squared[rows - start, rows - offset] = math.inf
            near, at = squared.topk(min(k, len(others)), dim=1, largest=False)
            best, chosen = torch.cat([best, near], dim=1).topk(k, dim=1, largest=False)
            where = torch.cat([where, at + offset], dim=1).gather(1, chosen)
            offset += len(others)
        exact = _exact_distances(block, references, where.cpu())
        order = exact.argsort(dim=1, stable=True)
        distances[start : start + len(block)] = exact.gather(1, order)
        indices[start : start + len(block)] = where.cpu().gather(1, order)
        start += len(block)
    return Neighbors(distances, indices)


def _with_bar(table: FeatureTable, what: str) -> Iterator[Float64[Tensor, "rows features"]]:
    """Blocks of rows with a progress bar, since all pairs of many images take minutes."""
    with progress_bar(len(table), what) as progress:
        for block in table.blocks(QUERY_ROWS):
            yield block
            progress.update(len(block))


def _exact_distances(
    queries: Float64[Tensor, "rows features"], references: FeatureTable, indices: Int64[Tensor, "rows k"]
) -> Float64[Tensor, "rows k"]:
    """Distances without the cancellation of `_squared_distances`, so that those of copies are exactly 0."""
    others = references.read(indices.flatten().tolist()).view(*indices.shape, -1)
    return (queries[:, None] - others).square().sum(2).sqrt()


def _within(
    queries: FeatureTable,
    references: FeatureTable,
    radii: Float64[Tensor, " references"],
    device: torch.device | str,
) -> Bool[Tensor, " queries"]:
    """Whether each query lies in the ball of any reference."""
    found = torch.empty(len(queries), dtype=torch.bool)
    start = 0
    for block in _with_bar(queries, "neighbourhoods"):
        inside = torch.zeros(len(block), dtype=torch.bool, device=device)
        offset = 0
        for others in references.blocks(REFERENCE_ROWS):
            limits = radii[offset : offset + len(others)].to(device)
            inside |= (_squared_distances(block.to(device), others.to(device)).sqrt_() <= limits).any(1)
            offset += len(others)
        found[start : start + len(block)] = inside.cpu()
        start += len(block)
    return found


def radii(table: FeatureTable, device: torch.device | str = "cpu") -> Float64[Tensor, " rows"]:
    """The distance of each row from its third nearest neighbour.

    Args:
        table: more than 3 rows.
        device: that computes distances; it must support float64.
    """
    return nearest(table, table, PRECISION_RECALL_K, device, same=True).distances[:, -1].contiguous()


def precision_recall(
    real: FeatureTable,
    fake: FeatureTable,
    device: torch.device | str = "cpu",
    real_radii: Float64[Tensor, " reals"] | None = None,
) -> tuple[float, float]:
    """Improved precision and recall with k = 3 (Kynkäänniemi et al. 2019, eq. 1 and 2).

    Args:
        real: more than 3 rows.
        fake: likewise, of the same features.
        device: that computes distances; it must support float64.
        real_radii: `radii` of the real rows, if they are known.

    Returns:
        Precision, the share of samples within the real images' neighbourhoods, and recall, the reverse; in [0, 1].
    """
    real_radii = radii(real, device) if real_radii is None else real_radii
    precision = _within(fake, real, real_radii, device).double().mean()
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
    squares = one.square().sum(1)[:, None] + other.square().sum(1)
    return torch.addmm(squares, one, other.T, alpha=-2).clamp_(min=0)
