"""The order of images is a function of seed and position."""

import pytest
import torch

from ddpm_hf.data import SampleOrder


def test_every_epoch_holds_every_image_once():
    order = SampleOrder(10, seed=0)
    for epoch in range(5):
        assert sorted(order.indices(epoch * 10, 10).tolist()) == list(range(10))


def test_epochs_differ_and_seeds_differ():
    assert SampleOrder(100, 0).indices(0, 100).tolist() != SampleOrder(100, 0).indices(100, 100).tolist()
    assert SampleOrder(100, 0).indices(0, 100).tolist() != SampleOrder(100, 1).indices(0, 100).tolist()


@pytest.mark.parametrize("size", [1, 3, 7, 25])
def test_batches_of_any_size_read_the_same_row(size):
    whole = SampleOrder(10, 0).indices(0, 50)
    order = SampleOrder(10, 0)
    parts = [order.indices(start, min(size, 50 - start)) for start in range(0, 50, size)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_reading_on_from_the_middle_needs_no_history():
    torch.testing.assert_close(SampleOrder(7, 3).indices(1000, 5), SampleOrder(7, 3).indices(0, 1005)[-5:])


def test_no_images_have_no_order():
    with pytest.raises(ValueError, match="num_images: given 0"):
        SampleOrder(0, 0)
