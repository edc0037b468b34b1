"""Images on the page, enlarged to be seen; and as a download, in their own size with their settings."""

import json
import math
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_hf._version import __version__
from ddpm_hf.demo.work import Result
from ddpm_hf.pipelines.pictures import image_grid

EDITOR_SIDE = 320
"""Pixels of the longer side of the canvas to paint on."""

PICTURE_SIDE = 900
"""Approximate width of a grid, in pixels."""

SETTINGS_KEY = "ddpm-hf"
"""Text entry of the PNGs that holds the settings."""


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay images out, small ones enlarged smoothly so that the grid is about PICTURE_SIDE wide.

    Args:
        images: of one size; at least one.
        columns: in a row; None makes the grid as square as possible.
    """
    across = columns or math.ceil(math.sqrt(len(images)))
    return image_grid(images, columns, min_side=min(PICTURE_SIDE // max(across, 2), 256))


def canvas(image: Image.Image) -> Image.Image:
    """Enlarge an image smoothly to be painted on."""
    factor = max(1, EDITOR_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC).convert("RGB")


def write_zip(result: Result, picture: Image.Image, file: Path) -> Path:
    """Write settings.json, every image as a PNG with the settings in it, and the picture of all of them.

    Args:
        result: the images and their settings.
        picture: as the page shows it.
        file: to write.
    """
    settings = {**result.settings, "ddpm_hf": __version__}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n")
        archive.writestr("grid.png", _encode(picture, settings))
        for index, image in enumerate(result.images):
            archive.writestr(f"images/{index:06}.png", _encode(image, {**settings, "image": index}))
    return file


def _encode(image: Image.Image, settings: dict) -> bytes:
    text = PngInfo()
    text.add_text(SETTINGS_KEY, json.dumps(settings))
    stream = BytesIO()
    image.save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()
