"""Images in and out: rounded, never floored, and refused where they are not the model's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ddpm_hf.pipelines.images import from_uint8, to_input, to_output, to_uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_every_level_survives_the_round_trip(channels):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, -1, -1, channels).numpy()
    mode = {1: "L", 3: "RGB"}[channels]
    pil = [Image.fromarray(image[:, :, 0] if channels == 1 else image) for image in levels]
    inside = to_input(pil, channels, (16, 16))
    assert inside.shape == (2, channels, 16, 16)
    assert inside.min() == -1
    assert inside.max() == 1
    assert_close(inside, to_input(levels, channels, (16, 16)))
    out = to_output(inside, "pil")
    assert [image.mode for image in out] == [mode] * 2
    assert [image.tobytes() for image in out] == [image.tobytes() for image in pil]
    for output_type in ("np", "pt"):
        assert_close(to_input(to_output(inside, output_type), channels, (16, 16)), inside, rtol=0, atol=1e-6)


def test_output_is_rounded_and_clipped():
    x_0 = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 1, 6)
    assert np.asarray(to_output(x_0, "pil")[0]).tolist() == [[0, 0, 128, 255, 255, 255]]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Image.new("RGB", (8, 8)), r"images: mode 'RGB'; possible is 'L'.*image.convert\('L'\)"),
        (Image.new("L", (8, 9)), r"images: 8 x 9 pixels; possible is 8 x 8.*image.resize\(\(8, 8\)\)"),
        ([Image.new("L", (8, 8)), Image.new("L", (4, 4))], "images: 4 x 4 pixels"),
        (torch.zeros(1, 3, 8, 8), r"shape \(1, 3, 8, 8\); possible is \(batch, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"shape \(1, 8, 8\); possible is"),
        (np.zeros((8, 8, 1)), r"shape \(8, 8, 1\); possible is \(batch, height, width, channels\)"),
        (torch.full((1, 1, 8, 8), -1.0), "values from -1 to -1; possible is 0 to 1"),
        (torch.full((1, 1, 8, 8), 255.0), "values from 255 to 255"),
        (torch.full((1, 1, 8, 8), torch.nan), "values from nan to nan"),
    ],
)
def test_what_is_not_the_models(images, message):
    with pytest.raises(ValueError, match=message):
        to_input(images, 1, (8, 8))


def test_all_levels_fit_the_range_of_the_model():
    levels = torch.arange(256, dtype=torch.uint8)
    inside = from_uint8(levels)
    assert inside.dtype == torch.float32
    assert (inside[0], inside[-1]) == (-1, 1)
    assert_close(to_uint8(inside, (-1, 1)), levels)


def test_every_level_survives_each_range():
    levels = torch.arange(256, dtype=torch.uint8)
    assert_close(to_uint8(levels), levels)
    assert_close(to_uint8(levels.float() / 255, (0, 1)), levels)
    assert_close(to_uint8(levels.float() / 127.5 - 1, (-1, 1)), levels)


@pytest.mark.parametrize(
    ("images", "value_range", "message"),
    [
        (torch.full((1, 1, 2, 2), 1.1), (0, 1), "reach from 1.1 to 1.1"),
        (torch.full((1, 1, 2, 2), -0.5), (0, 1), "reach from -0.5"),
        (torch.full((1, 1, 2, 2), 255.0), (-1, 1), "clip them, or give the range"),
        (torch.full((1, 1, 2, 2), torch.nan), (0, 1), "nan"),
        (torch.zeros(1, 1, 2, 2), None, "without value_range"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), None, "int64"),
    ],
)
def test_images_that_could_be_misread_are_refused(images, value_range, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(images, value_range)
