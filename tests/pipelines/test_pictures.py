"""The pictures show what they should."""

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.pipelines.images import to_output
from ddpm_hf.pipelines.pictures import (
    GAP,
    denoising_strips,
    image_grid,
    learning_rate_curve,
    loss_curve,
    save_gif,
    schedule_curves,
)


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


def test_strips_have_a_row_for_each_image_and_its_steps_from_left_to_right(tiny_pipeline):
    pipeline = tiny_pipeline()
    outputs = [pipeline(seeds=seeds, return_intermediates=3) for seeds in ([1, 2], [3])]
    for form in ("x_t", "x_0"):
        strips = denoising_strips(outputs, form)
        side = 64 + GAP
        assert strips.size == (4 * side - GAP, 3 * side - GAP)
        cells = [strips.crop((0, row * side, 4 * side - GAP, row * side + 64)) for row in range(3)]
        rows = [
            [*(to_output(getattr(stage, form), "pil")[row] for stage in output.intermediates), output.images[row]]
            for output in outputs
            for row in range(len(output.images))
        ]
        assert [cell.tobytes() for cell in cells] == [image_grid(row, columns=4).tobytes() for row in rows]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_film_runs_forth_and_back_for_ever(tmp_path, mode):
    images = [Image.new("L", (8, 8), value).convert(mode) for value in (0, 80, 160, 240)]
    save_gif(images, tmp_path / "new" / "film.gif")
    with Image.open(tmp_path / "new" / "film.gif") as film:
        assert film.size == (128, 128)
        assert film.info["loop"] == 0
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append((film.convert("L").getpixel((5, 5)), film.info["duration"]))
    assert frames == [(0, 600), (80, 100), (160, 100), (240, 600), (160, 100), (80, 100)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.gif"]


@pytest.mark.parametrize(
    "alpha_bar",
    [
        torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0),
        np.cumprod(np.full(4, 0.5)),
        np.array([0.9, 0.5, 0.0]),
        [0.5],
    ],
)
def test_schedule_curves_are_drawn(tmp_path, alpha_bar):
    """Of tensors and arrays, for few timesteps, and where no signal is left in the end."""
    schedule_curves(alpha_bar, tmp_path / "new" / "schedule.png")
    with Image.open(tmp_path / "new" / "schedule.png") as picture:
        assert picture.width > 1000


@pytest.mark.parametrize("alpha_bar", [[], 0.5, [0.5, 0.6], [1.0, 0.5], [0.5, -0.1], [[0.5]], [float("nan")]])
def test_what_is_no_schedule(tmp_path, alpha_bar):
    with pytest.raises(ValueError, match="alpha_bar"):
        schedule_curves(alpha_bar, tmp_path / "schedule.png")


@pytest.mark.parametrize("count", [1, 500])
def test_a_learning_rate_curve_is_drawn(tmp_path, count):
    learning_rate_curve([1e-3] * count, tmp_path / "rate.png")
    with Image.open(tmp_path / "rate.png") as picture:
        assert picture.width > 500
