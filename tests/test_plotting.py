"""The pictures show what they should."""

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.plotting import GAP, image_grid, loss_curve


def test_a_grid_lays_images_out_row_by_row_with_gaps():
    images = [Image.new("L", (70, 70), value) for value in (10, 20, 30)]
    pixels = np.asarray(image_grid(images, columns=2))
    assert pixels.shape == (140 + GAP, 140 + GAP)
    assert (pixels[:70, :70] == 10).all()
    assert (pixels[:70, 70 + GAP :] == 20).all()
    assert (pixels[70 + GAP :, :70] == 30).all()
    assert (pixels[70 + GAP :, 70:] == 255).all()  # an empty place
    assert (pixels[70 : 70 + GAP] == 255).all()


def test_small_images_grow_by_a_whole_factor_and_keep_their_light():
    pixels = np.random.default_rng(0).integers(64, 192, (8, 8, 3), np.uint8)
    grid = np.asarray(image_grid([Image.fromarray(pixels)]), dtype=float)
    assert grid.shape == (64, 64, 3)
    means = grid.reshape(8, 8, 8, 8, 3).mean((1, 3))
    assert np.abs(means.mean((0, 1)) - pixels.mean((0, 1))).max() < 2
    assert np.corrcoef(means.ravel(), pixels.ravel())[0, 1] > 0.95


def test_no_images_make_no_grid():
    with pytest.raises(ValueError, match="at least one image"):
        image_grid([])


@pytest.mark.parametrize("num_lines", [1, 100])
def test_a_loss_curve_is_drawn(tmp_path, num_lines):
    records = [{"step": step, "loss": 1 / (step + 1), "learning_rate": 1e-3} for step in range(num_lines)]
    loss_curve(records, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 500
