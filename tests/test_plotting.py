"""The pictures show what they should."""

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.plotting import GAP, image_grid, loss_curve


def test_a_grid_lays_images_out_row_by_row_with_gaps():
    images = [Image.new("L", (50, 50), value) for value in (10, 20, 30)]
    pixels = np.asarray(image_grid(images, columns=2))
    assert pixels.shape == (100 + GAP, 100 + GAP)
    assert (pixels[:50, :50] == 10).all()
    assert (pixels[:50, 50 + GAP :] == 20).all()
    assert (pixels[50 + GAP :, :50] == 30).all()
    assert (pixels[50 + GAP :, 50:] == 255).all()  # an empty place
    assert (pixels[50 : 50 + GAP] == 255).all()


def test_small_images_grow_by_whole_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    grid = np.asarray(image_grid([image]))
    assert grid.shape == (48, 48, 3)
    np.testing.assert_array_equal(grid[::6, ::6], np.asarray(image))


def test_no_images_make_no_grid():
    with pytest.raises(ValueError, match="at least one image"):
        image_grid([])


@pytest.mark.parametrize("num_lines", [1, 100])
def test_a_loss_curve_is_drawn(tmp_path, num_lines):
    records = [{"step": step, "loss": 1 / (step + 1), "learning_rate": 1e-3} for step in range(num_lines)]
    loss_curve(records, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 500
