"""Images on their way in and out: uploads within limits, masks from paint, downloads with settings."""

import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.demo.demo_model import load_model, plain_card
from ddpm_hf.demo.display import SETTINGS_KEY, canvas, grid, write_zip
from ddpm_hf.demo.visitor_input import Limits, read_mask, read_upload
from ddpm_hf.demo.work import Result
from ddpm_hf.evaluation.report import Report
from ddpm_hf.runtime.errors import UserError

GRAY, RGB = ((8, 8), "L", Limits()), ((8, 8), "RGB", Limits())
REPORT = Path(__file__).parents[1] / "first_version" / "plain" / "metrics.json"
"""A report as an evaluation wrote it."""


def test_an_upload_becomes_an_image_of_the_model(tmp_path):
    file = tmp_path / "wide.png"
    Image.new("RGB", (300, 100), (255, 0, 0)).save(file)
    gray, rgb = read_upload(file, *GRAY), read_upload(file, *RGB)
    assert (gray.mode, gray.size) == ("L", (8, 8))
    assert (rgb.mode, rgb.getpixel((0, 0))) == ("RGB", (255, 0, 0))
    assert read_upload(file, (8, 6), "L", Limits()).size == (6, 8)
    assert read_upload(None, *GRAY) is None


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    file = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(file)
    assert read_upload(file, *GRAY).getpixel((0, 0)) == 128  # not 255


def test_uploads_beyond_the_limits_are_refused_before_they_are_decoded(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_upload(tmp_path / "text.png", *GRAY)
    Image.new("1", (5000, 5000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 10_000
    with pytest.raises(UserError, match=r"5000 x 5000 pixels; at most 16,777,216"):
        read_upload(tmp_path / "bomb.png", *GRAY)
    with pytest.raises(UserError, match=r"bytes; at most 10 are read"):
        read_upload(tmp_path / "bomb.png", (8, 8), "L", Limits(upload_bytes=10))


def test_the_mask_is_what_was_painted(model):
    side = canvas(Image.new("L", (8, 8))).width
    layer = Image.new("RGBA", (side, side))
    layer.paste((249, 115, 22, 255), (0, 0, side // 2, side))
    mask = np.asarray(read_mask([layer], (8, 8)))
    assert (mask[:, :4] == 255).all()
    assert (mask[:, 4:] == 0).all()
    assert not np.asarray(read_mask([], (8, 8))).any()


def test_small_images_are_shown_large_and_smooth():
    image = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    shown = grid([image] * 4)
    assert shown.width > 400
    assert len(np.unique(np.asarray(shown))) > 20  # levels between black and white


def test_a_download_holds_the_images_and_how_they_were_made(tmp_path):
    images = [Image.new("L", (8, 8), level) for level in (10, 20)]
    file = write_zip(Result(images, {"seed": 3}), grid(images), tmp_path / "out.zip")
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == ["grid.png", "images/000000.png", "images/000001.png", "settings.json"]
        assert json.loads(archive.read("settings.json"))["seed"] == 3
        with archive.open("images/000001.png") as stream, Image.open(stream) as image:
            assert image.size == (8, 8)
            assert image.getpixel((0, 0)) == 20
            assert json.loads(image.text[SETTINGS_KEY]) | {"ddpm_hf": ""} == {"seed": 3, "image": 1, "ddpm_hf": ""}


def test_a_card_is_shown_without_metadata_and_foreign_pictures(folder, tmp_path):
    card = (
        "---\nlicense: mit\n---\n# Faces\n\n![x](https://elsewhere/x.png)\n<img src='https://elsewhere/y.png'>\n\n"
        "<!-- ddpm-hf:samples 0123abcd -->\n## Samples\n<!-- /ddpm-hf:samples -->\nText."
    )
    assert plain_card(card) == "# Faces\n\nText."
    assert plain_card("---\n: [\n---\nText") != ""


def test_what_is_known_of_a_model_is_told(model, conditional):
    assert model.facts["Images"] == "8x8, gray"
    assert conditional.facts["Labels"].startswith("4")
    assert "8x8 images" in model.card
    assert model.evaluations == {}


def test_figures_and_samples_of_a_run_are_found(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.copy(REPORT, run)
    Image.new("L", (20, 20)).save(run / "samples.png")
    (run / "README.md").write_text("# By hand")
    model = load_model(str(run))
    assert model.evaluations["metrics.json"] == Report.read(REPORT)
    assert model.picture.size == (20, 20)
    assert model.card == "# By hand"
    (run / "metrics.json").write_text("{")
    (run / "samples.png").write_bytes(b"damaged")
    assert load_model(str(run)).picture is None


def test_every_evaluation_of_a_run_is_found_the_newest_first_and_once(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    for age, name in enumerate(["new", "sweep-0/ddim", "step-4", "damaged"]):
        file = run / "evaluation" / name / "metrics.json"
        replace(Report.read(REPORT), label=name).write(file)
        if name == "damaged":
            file.write_text("{")
        os.utime(file, (1000 - age, 1000 - age))
    shutil.copy(run / "evaluation" / "new" / "metrics.json", run)
    model = load_model(str(run))
    assert list(model.evaluations) == ["new", "sweep-0/ddim", "step-4"]
    assert [report.label for report in model.evaluations.values()] == ["new", "sweep-0/ddim", "step-4"]
    shutil.copy(REPORT, run)
    assert next(iter(load_model(str(run)).evaluations)) == "metrics.json"
