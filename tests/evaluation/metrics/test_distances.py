import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ddpm_hf.evaluation.metrics.distances import (
    FeatureStatistics,
    _squared_mmd,
    classifier_score,
    feature_statistics,
    frechet_distance,
    kernel_distance,
)


def gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int = 100) -> FeatureStatistics:
    """The moments of a set of `count` rows with exactly this mean and unbiased covariance."""
    outer = covariance * (count - 1) + count * torch.outer(mean, mean)
    return FeatureStatistics(count, mean * count, outer)


def random_covariance(size: int, seed: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size + 0.1 * torch.eye(size, dtype=torch.float64)


class Rows(torch.nn.Module):
    """An extractor for torchmetrics, whose images are feature vectors already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, rows):
        return rows


@pytest.mark.parametrize("count", [8, 500], ids=["fewer rows than features", "many rows"])
def test_the_frechet_distance_agrees_with_torchmetrics(make_table, count):
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(500, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    fake = torch.randn(count, 24, generator=generator) @ torch.randn(24, 24, generator=generator) + 0.5
    metric = FrechetInceptionDistance(feature=Rows(24)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    ours = frechet_distance(feature_statistics(make_table(real)), feature_statistics(make_table(fake))).value
    assert ours == pytest.approx(float(metric.compute()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_the_kernel_distance_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(60, 7, generator=generator, dtype=torch.float64)
    fake = 2 * torch.randn(60, 7, generator=generator, dtype=torch.float64)
    metric = KernelInceptionDistance(feature=Rows(7), subsets=1, subset_size=60).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert float(_squared_mmd(real, fake)) == pytest.approx(float(metric.compute()[0]), rel=1e-9)


def test_the_distance_of_gaussians_of_one_covariance_is_that_of_their_means():
    covariance = random_covariance(16, 0)
    zero, mean = torch.zeros(16).double(), torch.arange(16).double() / 10
    distance = frechet_distance(gaussian(zero, covariance), gaussian(mean, covariance)).value
    assert distance == pytest.approx(float(mean @ mean), rel=1e-9)


def test_the_distance_of_gaussians_on_axes_is_that_of_their_standard_deviations():
    zero = torch.zeros(8).double()
    one, other = torch.rand(8).double() + 0.1, torch.rand(8).double() + 0.1
    distance = frechet_distance(gaussian(zero, one.diag()), gaussian(zero, other.diag())).value
    assert distance == pytest.approx(float((one.sqrt() - other.sqrt()).square().sum()), rel=1e-7)


def test_the_distance_agrees_with_scipys_matrix_root_on_the_same_features(make_table):
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(500, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    fake = torch.randn(400, 24, generator=generator) @ torch.randn(24, 24, generator=generator) + 0.5
    ours = frechet_distance(feature_statistics(make_table(real)), feature_statistics(make_table(fake))).value
    a, b = real.double().numpy(), fake.double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    theirs = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-3)


def test_a_set_is_at_no_distance_from_itself_even_with_fewer_rows_than_features(make_table):
    table = make_table(torch.randn(20, 50))
    assert frechet_distance(feature_statistics(table), feature_statistics(table)).value == pytest.approx(0, abs=1e-4)


def test_the_distance_is_symmetric():
    one = gaussian(torch.zeros(6).double(), random_covariance(6, 1))
    other = gaussian(torch.ones(6).double(), random_covariance(6, 2), count=50)
    assert frechet_distance(one, other).value == pytest.approx(frechet_distance(other, one).value, rel=1e-9)


def test_features_that_are_not_finite_make_no_number(make_table):
    rows = torch.randn(30, 4)
    broken = feature_statistics(make_table(rows.index_fill(0, torch.tensor([3]), math.nan)))
    assert math.isnan(frechet_distance(feature_statistics(make_table(rows)), broken).value)


def test_statistics_do_not_depend_on_the_blocks(make_table, monkeypatch):
    rows = torch.randn(101, 7)
    at_once = feature_statistics(make_table(rows))
    monkeypatch.setattr("ddpm_hf.evaluation.feature_store.BLOCK_BYTES", 8 * 7 * 10)
    in_blocks = feature_statistics(make_table(rows))
    assert at_once.count == in_blocks.count == 101
    assert_close(in_blocks.outer, at_once.outer)
    assert_close(at_once.outer, rows.double().T @ rows.double())


def test_the_kernel_distance_is_the_unbiased_mmd_of_halves(make_table):
    one, other = torch.randn(40, 5), torch.randn(40, 5) * 2
    score = kernel_distance(make_table(one), make_table(other))
    assert score.value > 0 and score.std > 0
    again = kernel_distance(make_table(one), make_table(other))
    assert again == score, "the subsets are a function of the sizes"


def test_the_kernel_distance_of_one_distribution_is_zero_on_average(make_table):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1600, 4, generator=generator)
    score = kernel_distance(make_table(rows[:800]), make_table(rows[800:]))
    assert abs(score.value) < 0.05


def test_the_kernel_distance_has_a_closed_form_for_single_points(make_table):
    # x = 0 and y = c each many times: k(0, 0) = 1, k(c, c) = (c^2 + 1)^3, k(0, c) = 1
    c = 2.0
    score = kernel_distance(make_table(torch.zeros(10, 1)), make_table(torch.full((10, 1), c)))
    assert score.value == pytest.approx((c**2 + 1) ** 3 + 1 - 2)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_classifier_score_of_certain_and_balanced_classes_is_their_number(make_table, classes):
    logits = 1e4 * torch.eye(classes)[torch.arange(100 * classes) % classes]
    score = classifier_score(make_table(logits))
    assert score.value == pytest.approx(classes)
    assert score.std == pytest.approx(0, abs=1e-9)


def test_the_classifier_score_of_a_classifier_that_knows_nothing_is_one(make_table):
    assert classifier_score(make_table(torch.zeros(50, 10))).value == pytest.approx(1)


def test_the_classifier_score_agrees_with_its_definition(make_table):
    logits = 3 * torch.randn(200, 7)
    probabilities = logits.double().softmax(1)
    kl = (probabilities * (probabilities.log() - probabilities.mean(0).log())).sum(1).mean()
    assert classifier_score(make_table(logits), num_splits=1).value == pytest.approx(float(kl.exp()))


def test_one_split_has_no_std(make_table):
    assert classifier_score(make_table(torch.randn(5, 3)), num_splits=1).std is None
