"""Results to take home: the images as they are, with the settings that made them inside and beside."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ddpm_hf._version import __version__
from ddpm_hf.demo.work import Made

KEY = "ddpm-hf"
"""Of the PNGs' text entry that holds the settings."""


def write_zip(made: Made, picture: Image.Image, file: Path) -> Path:
    """Write settings.json, every image as a PNG with the settings in it, and the picture of all of them.

    Args:
        made: the images and their settings.
        picture: as the page shows it.
        file: to write.
    """
    settings = {**made.settings, "ddpm_hf": __version__}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n")
        archive.writestr("grid.png", _png(picture, settings))
        for index, image in enumerate(made.images):
            archive.writestr(f"images/{index:06}.png", _png(image, {**settings, "image": index}))
    return file


def _png(image: Image.Image, settings: dict) -> bytes:
    text = PngInfo()
    text.add_text(KEY, json.dumps(settings))
    stream = BytesIO()
    image.save(stream, format="PNG", pnginfo=text)
    return stream.getvalue()
