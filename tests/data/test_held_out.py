"""Held-out images: from a split, or a fraction that seed and number decide."""

import datasets
import pytest
import torch
from PIL import Image

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import load_image_sets
from ddpm_hf.data.image_loading import held_out_rows
from ddpm_hf.runtime.errors import UserError

MODEL = ModelConfig(image_size=8, image_channels=1, channel_multipliers=(1,), attention_levels=())


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "hf")
    monkeypatch.setenv("DDPM_HF_CACHE", str(cache / "ddpm-hf"))


@pytest.fixture
def folder(tmp_path):
    """Twenty images whose level is their number, one of which is damaged."""
    for i in range(20):
        file = tmp_path / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), i).save(file)
    (tmp_path / "a" / "99.png").write_bytes(b"broken")
    return tmp_path


def levels(images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
def test_a_fraction_is_taken_out_of_the_training_images(folder, in_memory):
    dataset = DatasetConfig(name=str(folder), validation_fraction=0.25, in_memory=in_memory)
    training, validation = load_image_sets(dataset, MODEL, seed=0)
    assert (len(training), len(validation)) == (15, 5)
    assert sorted(levels(training) + levels(validation)) == list(range(20))
    for images in (training, validation):
        assert [level % 2 for level in levels(images)] == images.labels.tolist()
        assert images.class_names == ["a", "b"]
    assert len(training.skipped) == 1
    again, others = (load_image_sets(dataset, MODEL, seed)[1] for seed in (0, 1))
    assert levels(again) == levels(validation)
    assert levels(others) != levels(validation)


def test_the_digits_are_split_too():
    training, validation = load_image_sets(DatasetConfig(validation_fraction=0.1), MODEL, seed=0)
    assert (len(training), len(validation)) == (1617, 180)


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
@pytest.mark.parametrize("fraction", [1e-6, 0.1, 0.5, 0.999])
def test_a_fraction_leaves_an_image_on_either_side(count, fraction):
    rows = held_out_rows(count, fraction, 0)
    assert len(rows) == count
    assert 1 <= rows.sum() <= count - 1
    assert abs(rows.sum() - count * fraction) <= 1
    torch.testing.assert_close(rows, held_out_rows(count, fraction, 0))


def test_the_split_stays_what_it_is():
    """Runs that go on after an update of this library must not train on what they held out."""
    assert held_out_rows(20, 0.25, 0).nonzero().flatten().tolist() == [4, 5, 7, 15, 18]


def test_a_split_is_held_out():
    dataset = DatasetConfig(split="train[:80%]", validation_split="train[80%:]")
    training, validation = load_image_sets(dataset, MODEL, seed=0)
    assert (len(training), len(validation)) == (1438, 359)


def test_nothing_is_held_out_unless_asked():
    training, validation = load_image_sets(DatasetConfig(), MODEL, seed=0)
    assert (len(training), validation) == (1797, None)


def test_a_wrong_split_is_told_by_its_own_field(folder):
    dataset = DatasetConfig(name=str(folder), validation_split="dev")
    with pytest.raises(UserError, match=r"dataset.validation_split: given 'dev'.*\['train'\]"):
        load_image_sets(dataset, MODEL, seed=0)


def test_one_image_cannot_be_divided(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"dataset.validation_fraction: given 0.5; allowed: 0, .* one image"):
        load_image_sets(DatasetConfig(name=str(tmp_path), validation_fraction=0.5), MODEL, seed=0)
