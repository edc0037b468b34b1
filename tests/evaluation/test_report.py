import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ddpm_hf.evaluation.programs import compare
from ddpm_hf.evaluation.rendering import markdown_table, to_html, to_markdown
from ddpm_hf.evaluation.report import FORMAT, MetricValue, Report
from ddpm_hf.runtime.errors import UserError

FORMAT_2 = Path(__file__).with_name("metrics_of_format_2.json")
"""Written by ddpm_hf 0.1: two seeds of 70 samples, with everything else as configured by default."""


def test_a_report_of_the_first_version_is_read_with_all_its_values():
    written, report = json.loads(FORMAT_2.read_text()), Report.read(FORMAT_2)
    assert report.format == FORMAT
    assert report.num_matched == written["as_many_samples"] == 70
    assert list(report.metrics) == list(written["metrics"])
    for name, metric in report.metrics.items():
        old = written["metrics"][name]
        for ours, theirs in ((metric, old), (metric.real_vs_real, old["real_vs_real"])):
            assert (ours.value, ours.std, ours.problem) == (theirs["value"], theirs["deviation"], theirs["problem"])
        assert metric.std_over == old["deviation_over"]
        assert (metric.matched is None) == (old["as_many_samples"] is None)
    assert report.metrics["frechet_distance"].matched.std == pytest.approx(3.02, abs=0.01)
    assert [each.method for each in report.reconstructions] == [each["way"] for each in written["reconstructions"]]
    assert report.reconstructions[0].psnr.std == written["reconstructions"][0]["psnr"]["deviation"]
    assert [each.std for each in report.baselines] == [each["deviation"] for each in written["baselines"]]


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = replace(Report.read(FORMAT_2), label="in-training evaluation at step 3")
    report.write(tmp_path / "metrics.json")
    assert Report.read(tmp_path / "metrics.json") == report
    assert json.loads((tmp_path / "metrics.json").read_text())["format"] == FORMAT


def test_headings_are_those_of_the_field():
    text = to_markdown(Report.read(FORMAT_2))
    for heading in ("samples (n = 70)", "method", "## Baselines"):
        assert heading in text


@pytest.mark.parametrize(("trained_on", "kind"), [(True, "training images"), (False, "held-out images")])
def test_every_figure_of_real_images_says_whether_the_model_was_trained_on_them(trained_on, kind, tmp_path):
    report = Report.read(FORMAT_2)
    held_out = replace(report.held_out, are_training_images=trained_on)
    report = replace(
        report, held_out=held_out, reference_is_trained_on=trained_on, warnings=[], pictures={}, baselines=[]
    )
    text, page = to_markdown(report), to_html(report, tmp_path)
    for heading in (f"Metrics of samples against {kind}", f"Reconstructions of {kind}"):
        assert f"## {heading}" in text
        assert f"<h2>{heading}</h2>" in page
    assert f"bits/dim (bound) of {kind}" in text
    other = "held-out images" if trained_on else "training images"
    assert other not in text + page
    report.write(tmp_path / "a" / "metrics.json")
    report.write(tmp_path / "b" / "metrics.json")
    compared = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert kind in compared
    assert other not in compared


def test_a_report_of_the_first_version_does_not_say_what_it_does_not_know():
    assert "Metrics of samples against real images" in to_markdown(Report.read(FORMAT_2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "cannot be read"),
        ("{}", "format"),
        ('{"format": 1}', "is of format 1; readable are 2 and 3"),
        ('{"format": 3, "metrics": {"fid": 3}}', r"metrics\.fid|model"),
    ],
)
def test_what_is_no_report_is_refused(text, message, tmp_path):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Report.read(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (MetricValue(1234.5678), "1235"),
        (MetricValue(0.123456, 0.0123), "0.1235 ± 0.012"),
        (MetricValue(None, None, "not computed"), "not computed"),
        (MetricValue(float("nan")).or_problem("lost"), "NaN: lost"),
        (MetricValue(float("-inf")).or_problem("overflow"), "infinite: overflow"),
        (MetricValue(2.0, 1.0).or_problem("lost"), "2 ± 1"),
    ],
)
def test_a_value_is_shown_with_its_standard_deviation_or_its_problem(value, text):
    assert str(value) == text


def test_columns_are_aligned_and_cells_escaped():
    assert markdown_table(["name", ""], [["a|b", "1"], ["two\nlines", "10,000"]]).splitlines() == [
        "| name      |        |",
        "| --------- | ------ |",
        "| a\\|b      | 1      |",
        "| two lines | 10,000 |",
    ]


def test_a_table_without_rows_has_its_header():
    assert markdown_table(["a"], []).splitlines() == ["| a   |", "| --- |"]


def test_a_hostile_name_stays_text(tmp_path):
    name = "<img src=x onerror=alert(1)> | [a](b)\n# heading\x1b[2J"
    report = Report.read(FORMAT_2)
    report = replace(report, reference=replace(report.reference, dataset=name), warnings=[name], pictures={})
    for text in (to_markdown(report), to_html(report, tmp_path)):
        assert "<img" not in text
        assert "\x1b" not in text
        assert "&lt;img" in text
    assert "\n# heading" not in to_markdown(report)
    assert re.search(r"(?<!\\)\]\(b\)", to_markdown(report)) is None
