"""Uploads and numbers within the limits, masks from paint."""

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.config import DatasetConfig
from ddpm_hf.demo.components import canvas
from ddpm_hf.demo.visitor_input import Limits, number, read_mask, read_upload
from ddpm_hf.runtime.errors import UserError

GRAY, RGB = ((8, 8), "L", Limits()), ((8, 8), "RGB", Limits())


def test_an_upload_is_resized_and_converted_for_the_model(tmp_path):
    file = tmp_path / "wide.png"
    Image.new("RGB", (300, 100), (255, 0, 0)).save(file)
    gray, rgb = read_upload(file, *GRAY), read_upload(file, *RGB)
    assert (gray.mode, gray.size) == ("L", (8, 8))
    assert (rgb.mode, rgb.getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert read_upload(file, (8, 6), "L", Limits()).size == (6, 8)
    assert read_upload(None, *GRAY) is None


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    file = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(file)
    assert read_upload(file, *GRAY).getpixel((0, 0)) == 128  # not 255


def test_an_upload_has_the_brightness_of_the_training_images(tmp_path):
    file = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(file)
    assert read_upload(file, *GRAY, DatasetConfig(value_range=(0, 4095))).getpixel((0, 0)) == 12


def test_uploads_beyond_the_limits_are_refused_before_decoding(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="Image"):
        read_upload(tmp_path / "text.png", *GRAY)
    Image.new("1", (5000, 5000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 10_000
    with pytest.raises(UserError, match="5000 x 5000"):
        read_upload(tmp_path / "bomb.png", *GRAY)
    with pytest.raises(UserError, match="at most 10"):
        read_upload(tmp_path / "bomb.png", (8, 8), "L", Limits(upload_bytes=10))


def test_the_mask_covers_what_was_painted(model):
    side = canvas(Image.new("L", (8, 8))).width
    layer = Image.new("RGBA", (side, side))
    layer.paste((249, 115, 22, 255), (0, 0, side // 2, side))
    mask = np.asarray(read_mask([layer], (8, 8)))
    assert (mask[:, :4] == 255).all()
    assert (mask[:, 4:] == 0).all()
    assert not np.asarray(read_mask([], (8, 8))).any()


def test_limits_follow_the_model():
    large = Limits().within(time_steps=50, height=512, width=512)
    assert (large.images, large.steps, large.frames, large.inpainting_steps) == (16, 50, 16, 50)
    assert Limits(images=8).within(1000, 32, 32).images == 8
    assert number("Seed", 3.0, 0, 5) == 3
    with pytest.raises(UserError, match="Seed: given True"):
        number("Seed", True, 0, 5)
