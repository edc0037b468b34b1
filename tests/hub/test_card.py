"""The model card: valid, complete, and kind to what people wrote in it."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.evaluation.report import Report
from ddpm_hf.hub.card import make_card, split_card
from ddpm_hf.hub.model_info import gather_model_info
from ddpm_hf.runtime.errors import UserError

FILES = ("samples.png", "denoising.png", "training_config.yaml", "metrics.json")
FIRST_VERSION = Path(__file__).parents[1] / "first_version" / "pushed" / "main" / "README.md"


def squeezed(text):
    """Without the blanks that align tables."""
    return re.sub(" +", " ", text)


@pytest.fixture
def info(run):
    return gather_model_info(run, run, "ada/digits", FILES, license="apache-2.0")


def test_the_metadata_is_the_hubs(info):
    data = ModelCard(make_card(info)).data
    assert data.license == "apache-2.0"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"ddpm", "diffusers"} <= set(data.tags)


def test_every_metric_of_the_report_comes_with_its_protocol(info, run):
    report = Report.read(RunFolder(run).report)
    metadata, text = split_card(make_card(info))
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "digits"
    found = {result.metric_type: result for result in results}
    assert found.keys() == {key for key, metric in report.metrics.items() if metric.value is not None}
    distance = report.metrics["frechet_distance"]
    protocol = {"samples": 70, "sampler": "ddpm", "steps": 20, "seed": "3", "extractor": "digits classifier"}
    reference = f"{report.reference.num_images} training images of faces, split train"
    assert found["frechet_distance"].metric_value == distance.value
    assert found["frechet_distance"].metric_args.items() >= (protocol | {"reference": reference}).items()
    row = f"| FD (digits classifier) | {distance} | 70 | ddpm | 20 | 3 | digits classifier | {reference} |"
    assert row in squeezed(text)


@pytest.mark.parametrize("is_trained_on", [True, False])
def test_a_likelihood_comes_with_its_own_images_and_timesteps(info, is_trained_on):
    report = info.report
    bits = replace(report.metrics["frechet_distance"], name="bits/dim (bound)", value=5.5, std=0.5)
    held_out = replace(
        report.held_out, num_images=64, are_training_images=is_trained_on, likelihood_timesteps=30, split="parts"
    )
    report = replace(report, metrics={**report.metrics, "bits_per_dim": bits}, held_out=held_out)
    metadata, text = split_card(make_card(replace(info, report=report)))
    kind = "training images" if is_trained_on else "held-out images"
    (row,) = [line for line in squeezed(text).splitlines() if line.startswith("| bits/dim")]
    assert row.startswith(f"| bits/dim (bound) of {kind} | {bits} |")
    assert f"64 {kind} of faces, split parts" in row
    assert "30 timesteps" in row
    _, results = model_index_to_eval_results(metadata["model-index"])
    (found,) = [result for result in results if result.metric_type == "bits_per_dim"]
    assert found.metric_args.keys() == {"steps", "seed", "reference", "std"}, "no samples, sampler or features"


def test_the_kind_of_a_reference_that_an_earlier_report_does_not_tell_is_not_guessed(info):
    text = squeezed(make_card(replace(info, report=replace(info.report, reference_is_trained_on=None))))
    assert "100 real images of faces, split train" in text


def test_a_class_conditional_model_is_tagged_as_one(info):
    conditional = replace(info, network={**info.network, "num_class_embeds": 4})
    old = "---\ntags:\n- unconditional-image-generation\n- faces\n---\n"
    for card in (make_card(conditional), make_card(conditional, old)):
        tags = split_card(card)[0]["tags"]
        assert "class-conditional" in tags
        assert not any("unconditional" in tag for tag in tags)
    assert "faces" in tags
    assert "unconditional-image-generation" in split_card(make_card(info))[0]["tags"]


def test_warnings_of_the_report_are_shown(info):
    """Few samples, and features other than Inception's, in the words of the report."""
    limits = make_card(info).split("## Limits")[1]
    assert info.report.warnings
    assert all(f"- {warning}" in limits for warning in info.report.warnings)
    assert "70 samples, fewer than 10,000" in limits


def test_a_metric_without_a_value_says_why_and_stays_out_of_the_index(info):
    failed = replace(info.report.metrics["frechet_distance"], value=None, std=None, problem="too few images")
    report = replace(info.report, metrics={"frechet_distance": failed})
    metadata, text = split_card(make_card(replace(info, report=report)))
    assert "| too few images |" in squeezed(text)
    assert "model-index" not in metadata


def test_an_unreadable_report_is_logged_and_left_out(run, caplog):
    RunFolder(run).report.write_text('{"metrics": {"fid": 12.5}}')
    card = make_card(gather_model_info(run, run, "ada/digits", FILES))
    assert "Not measured yet." in card
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_training_hardware_and_time_are_shown(info):
    text = squeezed(make_card(replace(info, seconds=7384.2)))
    assert "| Data | faces |" in text
    assert "| Updates | 6 |" in text
    assert "| Loss | mse, min_snr time weighting |" in text
    assert "| Time | 2 h 3 min |" in text
    assert "| Hardware | " in text
    assert "| Software | python" in text
    assert "[training_config.yaml](training_config.yaml)" in text
    assert "![Samples, not selected.](samples.png)" in text
    assert "(denoising.png)" in text
    assert "## Limits" in text


def test_no_line_is_left_over_from_the_template(info):
    body = split_card(make_card(info))[1]
    assert "{{" not in body
    assert "{%" not in body
    assert not re.search(r"\n\n\n|[ \t]\n", body)


def test_a_dataset_of_the_hub_is_linked(info):
    config = {**info.config, "dataset": {"name": "ada/faces", "revision": "0123456789abcdef"}}
    metadata, text = split_card(make_card(replace(info, config=config)))
    assert metadata["datasets"] == ["ada/faces"]
    assert "[ada/faces](https://huggingface.co/datasets/ada/faces) at 01234567" in text


def test_a_missing_license_is_asked_for_not_invented(info):
    card = make_card(replace(info, license=None))
    assert split_card(card)[0]["license"] == "unknown"
    assert "has not stated a license" in card


def test_the_same_model_gives_the_same_card(info):
    once = make_card(info)
    assert make_card(info, once) == once


def test_what_is_written_by_hand_stays(info):
    card = make_card(info)
    card = card.replace("license: apache-2.0", "license: cc-by-4.0\nthumbnail: me.png")
    card = card.replace("- ddpm\n", "- ddpm\n- faces\n")
    card = card.replace("<!-- ddpm-hf:use", "My own words.\n\n<!-- ddpm-hf:use")
    card += "\n## Thanks\n\nTo Bob.\n"
    again = make_card(replace(info, step=12, license=None), card)
    assert "My own words." in again
    assert again.endswith("## Thanks\n\nTo Bob.\n")
    assert "| Updates | 12 |" in squeezed(again)
    metadata = split_card(again)[0]
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["thumbnail"] == "me.png"
    assert "faces" in metadata["tags"]


def test_a_section_that_was_edited_is_left_alone(info):
    card = make_card(info).replace("and has not been checked", "and Bob has checked it; it has not been checked")
    again = make_card(replace(info, step=12, report=None), card)
    assert "Bob has checked it" in again
    assert "fewer than 10,000" in again  # the edited section, as it was
    assert "Not measured yet." in again


def test_a_section_that_was_taken_out_does_not_come_back(info):
    card = re.sub(r"<!-- ddpm-hf:limits.*?/ddpm-hf:limits -->", "", make_card(info), flags=re.DOTALL)
    assert "## Limits" not in make_card(info, card)


def test_a_card_of_the_first_version_is_renewed(info):
    old = FIRST_VERSION.read_text(encoding="utf-8").replace("## Limits", "## Limits\n\nMine.")
    again = make_card(info, old)
    assert "| Loss | mse, min_snr time weighting |" in squeezed(again)
    assert "pipeline.py" not in again
    assert "Mine." in again
    assert again.count("<!-- ddpm-hf:") == old.count("<!-- ddpm-hf:")


@pytest.mark.parametrize(
    "old",
    ["# Mine\n\nHello.\n", "---\nlicense: mit\n---\n\n# Mine\n\nHello.\n", "---\r\nlicense: mit\r\n---\r\n# Mine\r\n"],
)
def test_a_card_that_was_there_before_stays_on_top(info, old):
    card = make_card(replace(info, license=None), old)
    assert split_card(card)[1].startswith("# Mine")
    assert "## Results" in card
    assert split_card(card)[0]["license"] == ("mit" if "mit" in old else "unknown")
    assert make_card(replace(info, license=None), card) == card


def test_results_of_others_in_the_index_stay(info):
    old = {"model-index": [{"name": "other", "results": []}]}
    metadata, _ = split_card(make_card(info, f"---\n{yaml.safe_dump(old)}---\n"))
    assert [entry["name"] for entry in metadata["model-index"]] == ["digits", "other"]


@pytest.mark.parametrize("front", ["a: [", "- a list"])
def test_metadata_that_cannot_be_read_is_never_overwritten(info, front):
    with pytest.raises(UserError, match="correct it on the Hub"):
        make_card(info, f"---\n{front}\n---\nHello")


def test_a_class_conditional_model_says_how_to_ask_for_a_class(info):
    network = {**info.network, "num_class_embeds": 11}
    conditional = replace(info, network=network, config={**info.config, "model_config": {"num_classes": 10}})
    card = make_card(conditional)
    assert "numbered from 0 to 9" in card
    assert "class_labels=[0, 1]" in card


def test_a_hostile_name_stays_text(run):
    """Of a dataset, in a sentence, a table, a warning and the metadata; it holds the mark of a section, too."""
    name = "<img src=x onerror=alert(1)> | [a](b)\n<!-- /ddpm-hf:about -->\x1b[2J"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dataset"]["name"] = name
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    report = json.loads((run / "metrics.json").read_text())
    report["reference"]["dataset"], report["warnings"] = name, [name]
    (run / "metrics.json").write_text(json.dumps(report))
    info = gather_model_info(run, run, "ada/digits", ["metrics.json"])
    metadata, text = split_card(make_card(info))
    assert not set("\x1b") & set(text)
    assert "<img" not in text
    assert re.search(r"(?<!\\)\]\(b\)", text) is None
    assert text.count("<!-- /ddpm-hf:about -->") == 1
    assert make_card(info, make_card(info)) == make_card(info)
    assert metadata["model-index"]
