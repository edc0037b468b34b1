"""From an image file of any kind to the square uint8 array that the network learns from."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can hold a huge one."""

DECODER = f"1, Pillow {PIL.__version__}"
"""What decoded images depend on besides their files and `Transform`; the number counts changes of this module."""

Pixels = UInt8[np.ndarray, "channels size size"]


def open_image(file: bytes | str | Path) -> Image.Image:
    """Decode an image from its bytes or path: first frame, turned upright as its EXIF data says.

    Raises:
        ValueError: if the file is no image, is damaged, or has more than MAX_PIXELS pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} in all are decoded")
        if image.format == "EPS":
            raise ValueError("PostScript is a program, which is not run")
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise what they stumble over: struct.error, KeyError, IndexError, …
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


@dataclass(frozen=True)
class Transform:
    """How images become squares of one size.

    Attributes:
        size: side of the square, in pixels.
        channels: 1 for gray, 3 for RGB.
        resize: "crop" resizes the shorter side and cuts out the middle; "pad" resizes the longer side and adds bars.
        background: red, green and blue, 0 to 255, of what shows through transparent pixels and in the bars.
    """

    size: int
    channels: int
    resize: Literal["crop", "pad"] = "crop"
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, image: Image.Image) -> Pixels:
        """Convert an image of any mode; 16-bit and float images are scaled to 8 bits."""
        image = _eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        mode = "L" if self.channels == 1 else "RGB"
        image = image.convert(mode)
        square = (self.size, self.size)
        if image.size != square:
            image = self._pad(image) if self.resize == "pad" else ImageOps.fit(image, square, Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(*square, self.channels).transpose(2, 0, 1)

    def _pad(self, image: Image.Image) -> Image.Image:
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        square = Image.new("RGB", (self.size, self.size), self.background).convert(image.mode)
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        square.paste(resized, ((self.size - width) // 2, (self.size - height) // 2))
        return square


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float images to 8 bits; Pillow's own conversion would cut them off at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I"):  # integers of 16 bits, whatever the container's width
        values = values / 257
    elif values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
