import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.evaluation.features import Features
from ddpm_hf.evaluation.store import FeatureStore, Layout
from ddpm_hf.runtime.errors import UserError

LAYOUT = Layout(batch_size=4, num_features=3, num_classes=2)


def rows(batch: range) -> Features:
    values = torch.tensor([[float(index)] * 3 for index in batch])
    return Features(values, values[:, :2] + 0.5)


def fill(store: FeatureStore, num_images: int) -> list[range]:
    missing = store.missing(num_images)
    for batch in missing:
        store.write(batch, rows(batch))
    return missing


def test_batches_cover_every_image_once(tmp_path):
    store = FeatureStore(tmp_path, LAYOUT)
    assert [list(batch) for batch in store.missing(10)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    fill(store, 10)
    assert store.missing(10) == []
    table = store.table(10)
    assert_close(table.read(range(10))[:, 0], torch.arange(10).double())
    assert_close(torch.cat(list(table.blocks(3)))[:, 0], torch.arange(10).double())
    assert_close(store.logits(10).read([2])[0], torch.tensor([2.5, 2.5]).double())


def test_what_was_done_before_an_interruption_is_not_done_again(tmp_path):
    store = FeatureStore(tmp_path, LAYOUT)
    store.write(range(4, 8), rows(range(4, 8)))
    assert FeatureStore(tmp_path, LAYOUT).missing(10) == [range(4), range(8, 10)]


def test_more_images_need_only_what_is_new_and_the_batch_that_was_not_full(tmp_path):
    store = FeatureStore(tmp_path, LAYOUT)
    fill(store, 10)
    assert store.missing(15) == [range(8, 12), range(12, 15)]
    assert store.missing(9) == []


def test_a_selection_reads_its_rows_in_its_order(tmp_path):
    store = FeatureStore(tmp_path, LAYOUT)
    fill(store, 10)
    chosen = store.table(10).select([7, 2, 2, 9])
    assert len(chosen) == 4
    assert chosen.read(range(4))[:, 0].tolist() == [7, 2, 2, 9]
    assert chosen.select([3, 0]).read([0, 1])[:, 0].tolist() == [9, 7]


def test_another_layout_is_refused(tmp_path):
    FeatureStore(tmp_path, LAYOUT)
    with pytest.raises(ValueError, match="another layout"):
        FeatureStore(tmp_path, Layout(8, 3, 2))


def test_a_cut_file_is_named(tmp_path):
    store = FeatureStore(tmp_path, LAYOUT)
    fill(store, 10)
    (tmp_path / "features.f32").write_bytes(b"")
    with pytest.raises(OSError, match=r"features\.f32 ends before"):
        store.table(10).read(range(10))


def test_what_another_process_has_written_elsewhere_is_missed(tmp_path):
    store = FeatureStore(tmp_path, LAYOUT)
    store.write(range(4), rows(range(4)))
    with pytest.raises(UserError, match="misses the features of 6 images"):
        store.check_complete(10)
    fill(store, 10)
    store.check_complete(10)


def test_a_batch_needs_a_row_for_each_image(tmp_path):
    with pytest.raises(ValueError, match="2 rows for 4 images"):
        FeatureStore(tmp_path, LAYOUT).write(range(4), rows(range(2)))
