import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.evaluation.metrics import distances
from ddpm_hf.evaluation.metrics.distances import memorized, nearest, precision_recall


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr("ddpm_hf.evaluation.feature_store.BLOCK_BYTES", 8 * 5 * 7)
    monkeypatch.setattr(distances, "QUERY_ROWS", 6)


def test_neighbours_are_those_of_all_distances(make_table):
    queries, references = torch.randn(23, 5), torch.randn(31, 5)
    found = nearest(make_table(queries), make_table(references), 4)
    expected, indices = torch.cdist(queries.double(), references.double()).topk(4, largest=False)
    assert_close(found.distances, expected)
    assert_close(found.indices, indices)


def test_no_row_is_its_own_neighbour(make_table):
    rows = torch.randn(20, 5)
    table = make_table(rows)
    distances = torch.cdist(rows.double(), rows.double()).fill_diagonal_(torch.inf)
    assert_close(nearest(table, table, 3, same=True).distances, distances.topk(3, largest=False).values)


def test_a_copy_is_at_distance_zero_exactly(make_table):
    rows = 1000 + torch.randn(20, 5)
    found = nearest(make_table(rows[[7]]), make_table(rows), 2)
    assert found.distances[0, 0] == 0
    assert found.indices[0, 0] == 7


def test_equal_sets_have_full_precision_and_recall(make_table):
    table = make_table(torch.randn(40, 5))
    assert precision_recall(table, table) == (1, 1)


def features(count: int) -> torch.Tensor:
    """Features of many magnitudes, whose squares do not add up exactly."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 300, generator=generator) * torch.randn(300, generator=generator).mul(4).exp()


def test_copies_lie_in_neighbourhoods_of_radius_zero(make_table):
    real = features(40)
    real[:20] = real[0]  # so that the third neighbour of each of these is at distance 0
    assert precision_recall(make_table(real), make_table(real[:20])) == (1, 0.5)
    assert precision_recall(make_table(real[:20]), make_table(real)) == (0.5, 1)
    near = real[0] * (1 + 1e-6 * torch.arange(1, 21)[:, None])
    assert precision_recall(make_table(real[:20]), make_table(near)) == (0, 1)


def test_the_neighbour_that_defines_a_radius_is_within_it(make_table):
    real = features(40)
    table = make_table(real)
    neighbors = nearest(table, table, 3, same=True)
    for row in range(len(real)):
        third = make_table(real[neighbors.indices[row, 2:]])
        radius = neighbors.distances[row, 2:]
        assert distances._within(third, make_table(real[row : row + 1]), radius, "cpu").all()
        smaller = torch.nextafter(radius, torch.zeros(1))
        assert not distances._within(third, make_table(real[row : row + 1]), smaller, "cpu").any()


def test_sets_apart_have_none(make_table):
    rows = torch.randn(40, 5)
    assert precision_recall(make_table(rows), make_table(rows + 100)) == (0, 0)


def test_samples_of_one_mode_of_two_are_precise_and_lack_recall(make_table):
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(100, 5, generator=generator)
    real[50:] += 100
    fake = real[:50] + 0.01 * torch.randn(50, 5, generator=generator)
    precision, recall = precision_recall(make_table(real), make_table(fake))
    assert precision > 0.9
    assert 0.4 < recall <= 0.5


def test_copies_are_memorised_and_others_are_not(make_table):
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(200, 5, generator=generator)
    samples = torch.cat([training[:3], training[3:5] + 1e-4, torch.randn(5, 5, generator=generator)])
    found = memorized(nearest(make_table(samples), make_table(training), 2))
    assert found[:5].all()
    assert found[5:].sum() <= 1


def test_a_copy_of_an_image_that_is_in_the_data_twice_is_memorised(make_table):
    training = torch.randn(20, 5)
    training[1] = training[0]
    assert memorized(nearest(make_table(training[[0]]), make_table(training), 2)).all()
