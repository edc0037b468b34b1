import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from ddpm_hf.evaluation.extractors.base import Features
from ddpm_hf.evaluation.feature_store import FeatureStore
from ddpm_hf.runtime.errors import UserError


@pytest.fixture
def make_store(tmp_path):
    """A store in batches of 4, with 3 features and 2 classes."""

    def make(num_features: int = 3, num_classes: int = 2) -> FeatureStore:
        return FeatureStore(tmp_path, 4, num_features, num_classes)

    return make


def rows(batch: range) -> Features:
    values = torch.tensor([[float(index)] * 3 for index in batch])
    return Features(values, values[:, :2] + 0.5)


def fill(store: FeatureStore, num_images: int) -> list[range]:
    missing = store.missing(num_images)
    for batch in missing:
        store.write(batch, rows(batch))
    return missing


def test_batches_cover_every_image_once(make_store):
    store = make_store()
    assert [list(batch) for batch in store.missing(10)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    fill(store, 10)
    assert store.missing(10) == []
    table = store.table(10)
    assert_close(table.read(range(10))[:, 0], torch.arange(10).double())
    assert_close(torch.cat(list(table.blocks(3)))[:, 0], torch.arange(10).double())
    assert_close(store.table(10).logits.read([2])[0], torch.tensor([2.5, 2.5]).double())


def test_what_was_done_before_an_interruption_is_not_done_again(make_store):
    make_store().write(range(4, 8), rows(range(4, 8)))
    assert make_store().missing(10) == [range(4), range(8, 10)]


def test_more_images_need_only_what_is_new_and_the_batch_that_was_not_full(make_store):
    store = make_store()
    fill(store, 10)
    assert store.missing(15) == [range(8, 12), range(12, 15)]
    assert store.missing(9) == []


def test_a_selection_reads_its_rows_in_its_order(make_store):
    store = make_store()
    fill(store, 10)
    chosen = store.table(10).select([7, 2, 2, 9])
    assert len(chosen) == 4
    assert chosen.read(range(4))[:, 0].tolist() == [7, 2, 2, 9]
    assert chosen.select([3, 0]).read([0, 1])[:, 0].tolist() == [9, 7]


def test_few_rows_of_a_large_batch_are_those_of_many(tmp_path):
    store = FeatureStore(tmp_path, 64, 5)
    values = torch.randn(100, 5)
    for batch in store.missing(100):
        store.write(batch, Features(values[batch.start : batch.stop], None))
    order = torch.randperm(100).tolist()
    assert torch.equal(store.table(100).read(order), values[order].double())
    assert torch.equal(store.table(100).read(order[:7]), values[order[:7]].double())
    assert store.table(100).read([]).shape == (0, 5)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_batch_is_noticed_and_computed_again(make_store, damage, caplog):
    store = make_store()
    fill(store, 10)
    file = store.file(4)
    content = file.read_bytes()
    file.write_bytes({"cut": content[:-5], "empty": b"", "garbage": b"\xff" * len(content)}[damage])
    with pytest.raises(OSError, match=file.name):
        store.table(10).read(range(10))
    assert fill(make_store(), 10) == [range(4, 8)]
    assert file.name in caplog.text
    assert_close(store.table(10).read(range(10))[:, 0], torch.arange(10).double())


def test_batches_of_another_extractor_are_computed_again(make_store):
    fill(make_store(), 10)
    assert len(make_store(num_features=2).missing(10)) == 3
    assert len(make_store(num_classes=0).missing(10)) == 3
    save_file({"something": torch.zeros(4, 3)}, make_store().file(0))
    assert make_store().missing(10) == [range(4)]


def test_what_another_process_has_written_elsewhere_is_missed(make_store):
    store = make_store()
    store.write(range(4), rows(range(4)))
    with pytest.raises(UserError, match="DDPM_HF_CACHE"):
        store.check_complete(10)
    fill(store, 10)
    store.check_complete(10)


def test_a_batch_needs_a_row_for_each_image(make_store):
    with pytest.raises(ValueError, match=r"2.*4"):
        make_store().write(range(4), rows(range(2)))
