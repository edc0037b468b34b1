"""Images as the page shows them, and as a download with their settings."""

import json
import zipfile

import numpy as np
from PIL import Image

from ddpm_hf.demo.components import SETTINGS_KEY, grid, write_zip
from ddpm_hf.demo.work import Result


def test_small_images_are_enlarged_smoothly():
    image = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    shown = grid([image] * 4)
    assert shown.width > 400
    assert len(np.unique(np.asarray(shown))) > 20  # levels between black and white


def test_a_download_holds_the_images_and_their_settings(tmp_path):
    images = [Image.new("L", (8, 8), level) for level in (10, 20)]
    file = write_zip(Result(images, {"seed": 3}), grid(images), tmp_path / "out.zip")
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == ["grid.png", "images/000000.png", "images/000001.png", "settings.json"]
        assert json.loads(archive.read("settings.json"))["seed"] == 3
        with archive.open("images/000001.png") as stream, Image.open(stream) as image:
            assert image.size == (8, 8)
            assert image.getpixel((0, 0)) == 20
            assert json.loads(image.text[SETTINGS_KEY]) | {"ddpm_hf": ""} == {"seed": 3, "image": 1, "ddpm_hf": ""}
