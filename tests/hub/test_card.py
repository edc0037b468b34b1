"""The model card: valid, complete, and kind to what people wrote in it."""

import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from ddpm_hf.hub.card import make_card, split_card
from ddpm_hf.hub.facts import gather_facts
from ddpm_hf.hub.results import read_results
from ddpm_hf.runtime.errors import UserError

FILES = ("samples.png", "denoising.png", "training_config.yaml", "metrics.json")


def squeezed(text):
    """Tables are aligned by blanks, which say nothing."""
    return re.sub(" +", " ", text)


@pytest.fixture
def facts(run):
    return gather_facts(run, run, "ada/digits", "main", FILES, "apache-2.0")


def test_the_metadata_is_the_hubs(facts):
    data = ModelCard(make_card(facts)).data
    assert data.license == "apache-2.0"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"ddpm", "diffusers"} <= set(data.tags)


def test_every_figure_comes_with_its_protocol(facts):
    metadata, text = split_card(make_card(facts))
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "digits"
    figures = {result.metric_type: result for result in results}
    assert set(figures) == {"fid", "inception_score"}  # what is not a number stays out of the index
    assert figures["fid"].metric_value == 31.5
    protocol = {"samples": 2000, "sampler": "ddpm", "steps": 10, "seed": 0}
    protocol |= {"extractor": "digits-classifier", "reference": "train"}
    assert figures["fid"].metric_args == {**protocol, "std": 0.25}
    assert "| FID | 31.5 ± 0.25 | 2,000 | ddpm | 10 | 0 | digits-classifier | train |" in squeezed(text)
    assert "| KID | nan |" in squeezed(text)
    assert "fewer than 10,000 samples" in text


def test_a_figure_without_a_protocol_says_so():
    (result,) = read_results({"fid": 3.0})
    assert set(result.protocol.values()) == {"not recorded"}


def test_it_tells_the_training_hardware_and_time(facts):
    text = squeezed(make_card(facts))
    assert "| Updates | 6 |" in text
    assert "| Time | 2 h 3 min |" in text
    assert "| Hardware | " in text
    assert "[training_config.yaml](training_config.yaml)" in text
    assert "![Samples, not selected.](samples.png)" in text
    assert "(denoising.png)" in text
    assert "## Limits" in text


def test_a_dataset_of_the_hub_is_linked(facts):
    config = {**facts.config, "dataset": {"name": "ada/faces", "revision": "0123456789abcdef"}}
    metadata, text = split_card(make_card(replace(facts, config=config)))
    assert metadata["datasets"] == ["ada/faces"]
    assert "[ada/faces](https://huggingface.co/datasets/ada/faces) at 01234567" in text


def test_a_missing_license_is_asked_for_not_invented(facts):
    card = make_card(replace(facts, license=None))
    assert split_card(card)[0]["license"] == "unknown"
    assert "has not stated a license" in card


def test_the_same_facts_give_the_same_card(facts):
    once = make_card(facts)
    assert make_card(facts, once) == once


def test_what_is_written_by_hand_stays(facts):
    card = make_card(facts)
    card = card.replace("license: apache-2.0", "license: cc-by-4.0\nthumbnail: me.png")
    card = card.replace("- ddpm\n", "- ddpm\n- faces\n")
    card = card.replace("<!-- ddpm-hf:use", "My own words.\n\n<!-- ddpm-hf:use")
    card += "\n## Thanks\n\nTo Bob.\n"
    again = make_card(replace(facts, step=12, license=None), card)
    assert "My own words." in again
    assert again.endswith("## Thanks\n\nTo Bob.\n")
    assert "| Updates | 12 |" in squeezed(again)
    metadata = split_card(again)[0]
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["thumbnail"] == "me.png"
    assert "faces" in metadata["tags"]


def test_a_section_that_was_edited_is_left_alone(facts):
    card = make_card(facts).replace("and has not been checked", "and Bob has checked it; it has not been checked")
    again = make_card(replace(facts, step=12, results=[]), card)
    assert "Bob has checked it" in again
    assert "fewer than 10,000 samples" in again  # the edited section, as it was
    assert "Not measured yet." in again


def test_a_section_that_was_taken_out_does_not_come_back(facts):
    card = re.sub(r"<!-- ddpm-hf:limits.*?/ddpm-hf:limits -->", "", make_card(facts), flags=re.DOTALL)
    assert "## Limits" not in make_card(facts, card)


@pytest.mark.parametrize(
    "old",
    ["# Mine\n\nHello.\n", "---\nlicense: mit\n---\n\n# Mine\n\nHello.\n", "---\r\nlicense: mit\r\n---\r\n# Mine\r\n"],
)
def test_a_card_that_was_there_before_stays_on_top(facts, old):
    card = make_card(replace(facts, license=None), old)
    assert split_card(card)[1].startswith("# Mine")
    assert "## Results" in card
    assert split_card(card)[0]["license"] == ("mit" if "mit" in old else "unknown")
    assert make_card(replace(facts, license=None), card) == card


def test_figures_of_others_in_the_index_stay(facts):
    old = {"model-index": [{"name": "other", "results": []}]}
    metadata, _ = split_card(make_card(facts, f"---\n{yaml.safe_dump(old)}---\n"))
    assert [entry["name"] for entry in metadata["model-index"]] == ["digits", "other"]


@pytest.mark.parametrize("front", ["a: [", "- a list"])
def test_metadata_that_cannot_be_read_is_never_overwritten(facts, front):
    with pytest.raises(UserError, match="mend it on the Hub"):
        make_card(facts, f"---\n{front}\n---\nHello")


def test_a_class_conditional_model_says_how_to_ask_for_a_class(facts):
    network = {**facts.network, "num_class_embeds": 11}
    conditional = replace(facts, network=network, config={**facts.config, "model_config": {"num_classes": 10}})
    card = make_card(conditional)
    assert "Classes go from 0 to 9" in card
    assert "class_labels=[0, 1]" in card


def test_the_figures_of_an_evaluation_come_with_how_they_were_measured():
    report = {
        "sampling": {"n_samples": 1797, "seeds": [0, 1], "sampler": "ddpm", "num_inference_steps": 100},
        "features": {"label": "digits classifier"},
        "reference": {"num_images": 1797, "dataset": "digits", "split": "train"},
        "metrics": {"frechet_distance": {"name": "FD (digits classifier)", "value": 0.25, "deviation": 0.01}},
    }
    (result,) = read_results(report)
    assert (result.title, result.value, result.spread) == ("FD (digits classifier)", 0.25, 0.01)
    assert result.protocol == {
        "samples": 1797,
        "sampler": "ddpm",
        "steps": 100,
        "seed": "0, 1",
        "extractor": "digits classifier",
        "reference": "1,797 images of digits, split train",
    }
