"""Datasets by name: the digits, folders, parquet files; and what bad names get."""

import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import load_image_set
from ddpm_hf.runtime.errors import UserError

MODEL = ModelConfig(image_size=8, image_channels=3, channel_multipliers=(1,), attention_levels=())


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("DDPM_HF_CACHE", str(tmp_path / "decoded"))


def load(name, model: ModelConfig = MODEL, **options):
    return load_image_set(DatasetConfig(name=str(name), **options), model)


def images_of(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3), np.uint8)
    return [Image.fromarray(image) for image in pixels]


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images each."""
    for index, image in enumerate(images_of(6)):
        file = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    return tmp_path / "images"


def test_the_digits_are_scikit_learns():
    model = MODEL.model_copy(update={"image_channels": 1})
    digits = load("digits", model)
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.max() == 255
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.class_names == list("0123456789")


@pytest.mark.parametrize(("split", "count"), [("train[:80%]", 1438), ("train[80%:]", 359), ("train[10:15]", 5)])
def test_a_part_of_the_digits(split, count):
    assert len(load("digits", split=split)) == count


def test_parts_of_the_digits_fit_together():
    parts = [load("digits", split=split).images for split in ("train[:80%]", "train[80%:]")]
    torch.testing.assert_close(torch.cat(parts), load("digits").images)


def test_a_folder_gives_its_images_and_classes(folder):
    images = load(folder)
    assert images.images.shape == (6, 3, 8, 8)
    assert images.class_names == ["a", "b"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_damaged_images_are_named_and_left_out(folder, caplog):
    (folder / "a" / "broken.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        images = load(folder)
    assert len(images) == len(images.labels) == 6
    assert "1 image of" in caplog.text
    assert "broken.png" in caplog.text


def test_a_parquet_file_is_found_by_its_column(tmp_path):
    rows = {"img": images_of(4), "kind": [0, 1, 0, 1]}
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y"])})
    folder = tmp_path / "data"  # beside the cache
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "some.parquet")
    for name in (folder / "some.parquet", folder):
        images = load(name)
        assert len(images) == 4
        assert images.class_names == ["x", "y"]
        torch.testing.assert_close(images.images[0], load(folder, image_column="img").images[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "digit"}, "did you mean digits"),
        ({"name": "/no/such/folder"}, "the folder '/no/such/folder' does not exist"),
        ({"name": "./no/such/folder"}, "does not exist"),
        ({"name": "user/nothing"}, "neither built in"),
        ({"name": "digits", "split": "test"}, "dataset.split: given 'test'; allowed: train"),
        ({"name": "digits", "split": "train[5:5]"}, r"dataset.split: given .train\[5:5\]"),
        ({"name": "digits", "image_column": "img"}, "dataset.image_column"),
    ],
)
def test_a_dataset_that_is_not_there_is_one_clear_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        load_image_set(DatasetConfig(**options), MODEL)
    assert "\n" not in str(caught.value)


def test_what_a_folder_lacks_is_told(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"columns of .*image \(Image\), label \(ClassLabel\)"):
        load(folder, image_column="picture")
    with pytest.raises(UserError, match="'label' holds no images"):
        load(folder, image_column="label")
    with pytest.raises(UserError, match="Unknown split"):
        load(folder, split="tests")
    (folder / "list.txt").touch()
    with pytest.raises(UserError, match="given the file"):
        load(folder / "list.txt")


def test_only_damaged_images_are_a_clear_stop(tmp_path):
    for index in range(7):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 7 images"):
        load(tmp_path)


def test_a_class_conditional_model_needs_fitting_labels(folder, tmp_path):
    with pytest.raises(UserError, match="at least 2 classes"):
        load(folder, MODEL.model_copy(update={"num_classes": 1}))
    flat = tmp_path / "flat"
    flat.mkdir()
    images_of(1)[0].save(flat / "0.png")
    with pytest.raises(UserError, match="has no column of class labels"):
        load(flat, MODEL.model_copy(update={"num_classes": 1}))
