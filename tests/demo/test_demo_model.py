"""The model that the page shows: its facts, card, reports and picture."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ddpm_hf.demo.demo_model import load_model, plain_card
from ddpm_hf.evaluation.report import Report

REPORT = Path(__file__).parents[1] / "first_version" / "plain" / "metrics.json"
"""A report as an evaluation wrote it."""


def test_a_card_is_shown_without_metadata_and_pictures(folder, tmp_path):
    card = (
        "---\nlicense: mit\n---\n# Faces\n\n![x](https://elsewhere/x.png)\n<img src='https://elsewhere/y.png'>\n\n"
        "<!-- ddpm-hf:samples 0123abcd -->\n## Samples\n<!-- /ddpm-hf:samples -->\nText."
    )
    assert plain_card(card) == "# Faces\n\nText."
    assert plain_card("---\n: [\n---\nText") != ""


def test_description_of_a_model(model, conditional):
    assert model.description["Images"] == "8x8, gray"
    assert conditional.description["Labels"].startswith("4")
    assert "8x8 images" in model.card
    assert model.evaluations == {}


def test_metrics_and_samples_of_a_run_are_loaded(folder, tmp_path):
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


def test_every_evaluation_is_listed_once_newest_first(folder, tmp_path):
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


def test_the_page_tells_what_each_metric_was_measured_on():
    pytest.importorskip("gradio")
    from ddpm_hf.demo.page import _metrics_table

    report = Report.read(REPORT)
    rows = [line.strip("| ").split("|") for line in _metrics_table(report).splitlines()]
    measured_on = {row[0].strip(): [cell.strip() for cell in row[2:]] for row in rows}
    assert measured_on["FD (digits classifier)"] == ["70", "20"]
    images, steps = report.held_out.num_images, report.held_out.likelihood_timesteps
    assert measured_on["bits/dim (bound) of training images"] == [str(images), str(steps)]
