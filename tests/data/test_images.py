"""Images of every kind become the pixels that one expects."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.data import images
from ddpm_hf.data.images import Transform, open_image, to_model_range

GRAY = 128


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette() -> Image.Image:
    return Image.new("RGB", (8, 8), (GRAY, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE)


ZOO = {
    "1": (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
    "L": (Image.new("L", (8, 8), GRAY), "PNG", (GRAY, GRAY, GRAY)),
    "LA, transparent": (Image.new("LA", (8, 8), (0, 0)), "PNG", (255, 255, 255)),
    "P": (palette(), "PNG", (GRAY, 0, 0)),
    "RGB": (Image.new("RGB", (8, 8), (GRAY, 1, 2)), "PNG", (GRAY, 1, 2)),
    "RGBA, half": (Image.new("RGBA", (8, 8), (0, 0, 0, 127)), "PNG", (128, 128, 128)),
    "CMYK": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "16 bit": (Image.fromarray(np.full((8, 8), GRAY * 257, np.uint16)), "PNG", (GRAY, GRAY, GRAY)),
    "32 bit float": (Image.fromarray(np.full((8, 8), GRAY / 255, np.float32)), "TIFF", (GRAY, GRAY, GRAY)),
}


@pytest.mark.parametrize(("image", "kind", "expected"), ZOO.values(), ids=ZOO)
def test_every_mode_gives_its_colour(image, kind, expected):
    array = Transform(8, 3)(open_image(file_of(image, kind)))
    assert array.shape == (3, 8, 8)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.array(expected, np.uint8)[:, None, None] * np.ones((3, 8, 8), np.uint8))


def test_colour_becomes_gray_by_its_luma():
    assert (Transform(4, 1)(Image.new("RGB", (4, 4), (255, 0, 0))) == 76).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    array = Transform(8, 1)(open_image(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert (array == 10).all()


def test_a_photograph_is_turned_upright():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    array = Transform(8, 1)(open_image(file_of(image, "PNG", exif=exif)))[0]
    np.testing.assert_array_equal(array, np.rot90(np.asarray(image), -1))


def test_the_middle_square_is_cut_out():
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    assert (Transform(8, 1)(Image.fromarray(wide)) == 255).all()


def test_an_image_of_the_right_size_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(Transform(8, 3)(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "damage", [b"hello", b"", file_of(Image.new("RGB", (64, 64)))[:60]], ids=["text", "empty", "cut"]
)
def test_what_cannot_be_read_is_a_value_error(damage):
    with pytest.raises(ValueError):
        open_image(damage)


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    with pytest.raises(ValueError, match="8x8 pixels; at most 63"):
        open_image(file_of(Image.new("L", (8, 8))))


def test_all_levels_fit_the_range_of_the_model():
    levels = torch.arange(256, dtype=torch.uint8)
    inside = to_model_range(levels)
    assert inside.dtype == torch.float32
    assert (inside[0], inside[-1]) == (-1, 1)
    torch.testing.assert_close(((inside + 1) * 127.5).round().byte(), levels)
