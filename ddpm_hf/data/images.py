"""From an image file of any kind to the square uint8 array that the network learns from."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can hold a huge one."""

BACKGROUND = (255, 255, 255)
"""The colour that shows through transparent pixels."""


def open_image(file: bytes | str | Path) -> Image.Image:
    """Decode an image from its bytes or path: first frame, turned upright as its EXIF data says.

    Raises:
        ValueError: if the file is no image, is damaged, or has more than MAX_PIXELS pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} in all are decoded")
        image.load()
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def to_array(image: Image.Image, size: int, channels: int) -> UInt8[np.ndarray, "channels size size"]:
    """Convert to gray or RGB, shrink or grow the shorter side to `size`, and cut out the middle square.

    Args:
        image: of any mode; transparency is laid over BACKGROUND, 16-bit and float images are scaled to 8 bits.
        size: side of the square, in pixels.
        channels: 1 for gray, 3 for RGB.
    """
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float images to 8 bits; Pillow's own conversion would cut them off at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image, dtype=np.float64)
    if image.mode.startswith("I"):  # integers of 16 bits, whatever the container's width
        values = values / 257
    elif values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def to_model_range(images: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
    """From uint8 in 0 to 255 to float32 in [-1, 1], the range of DDPM, section 3.3."""
    return images.float().div_(127.5).sub_(1.0)
