"""Datasets by their id on the Hub: parquet, folders of images, streamed, pinned to a commit, and from the cache."""

import io

import datasets
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.sources import pin_dataset
from ddpm_hf.runtime.errors import UserError

LOAD = """
    import sys
    import datasets
    from ddpm_hf.config import DatasetConfig, ModelConfig
    from ddpm_hf.data import load_image_set
    from ddpm_hf.data.sources import pin_dataset
    datasets.disable_progress_bars()
    for name in sys.argv[1:]:
        pinned = pin_dataset(DatasetConfig(name=name))
        model = ModelConfig(image_size=8, image_channels=1, channel_multipliers=[1, 2], attention_levels=[])
        found = load_image_set(pinned, model)
        print(name, pinned.revision, len(found), sorted(set(found.labels.tolist())), int(found.images.sum()))
"""

STREAM = """
    import sys, datasets
    stream = datasets.load_dataset(sys.argv[1], split="train", streaming=True, revision=sys.argv[2])
    print(len([row["image"].size for row in stream]))
"""


def images(count=6):
    return [Image.fromarray(np.full((8, 8), 10 * index, np.uint8)) for index in range(count)]


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shared(hub):
    """The same six images in two classes, as parquet and as a folder."""
    rows = {"image": images(), "label": [0, 1] * 3}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    parquet = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(parquet)
    hub.put("ada/parquet", {"data/train-00000-of-00001.parquet": parquet.getvalue()}, kind="dataset")
    folder = {f"train/{('even', 'odd')[index % 2]}/{index}.png": png(image) for index, image in enumerate(images())}
    hub.put("ada/folder", folder, kind="dataset")
    return {name: hub.repo(name, "dataset").branches["main"] for name in ("ada/parquet", "ada/folder")}


@pytest.mark.slow
def test_datasets_load_by_their_id_and_again_offline(hub, shared, run_python):
    names = ["ada/parquet", "ada/folder"]
    total = sum(10 * index * 64 for index in range(6))
    expected = "".join(f"{name} {shared[name]} 6 [0, 1] {total}\n" for name in names)
    online = run_python(LOAD, *names)
    assert (online.stdout, online.returncode) == (expected, 0), online.stderr
    assert not hub.requests("unknown")
    hub.put("ada/parquet", {"data/train-00000-of-00001.parquet": b"broken"}, kind="dataset")
    hub.log.clear()
    offline = run_python(LOAD, *names, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert (offline.stdout, offline.returncode) == (expected, 0), offline.stderr
    assert not hub.log


@pytest.mark.slow
def test_a_dataset_is_streamed_at_its_revision(hub, shared, run_python):
    hub.put("ada/parquet", {"data/train-00000-of-00001.parquet": b"broken"}, kind="dataset")
    result = run_python(STREAM, "ada/parquet", shared["ada/parquet"])
    assert (result.stdout, result.returncode) == ("6\n", 0), result.stderr


def test_a_branch_is_pinned_to_its_commit(hub, client, shared):
    assert pin_dataset(DatasetConfig(name="ada/folder"), client).revision == shared["ada/folder"]
    commit = hub.put("ada/folder", {"train/odd/9.png": b""}, kind="dataset", branch="more").oid
    assert pin_dataset(DatasetConfig(name="ada/folder", revision="more"), client).revision == commit
    assert pin_dataset(DatasetConfig(name="ada/folder", revision="0" * 40), client).revision == "0" * 40


def test_what_is_not_on_the_hub_is_left_alone(hub, client, tmp_path):
    for name in ("digits", str(tmp_path), "./data", "a/b/c"):
        assert pin_dataset(DatasetConfig(name=name), client).revision is None
    assert not hub.log


def test_a_dataset_that_is_none_is_refused(hub, client):
    with pytest.raises(UserError, match="there is no repository ada/none"):
        pin_dataset(DatasetConfig(name="ada/none"), client)
    hub.put("ada/folder", {}, kind="dataset")
    with pytest.raises(UserError, match="no such branch, tag or commit"):
        pin_dataset(DatasetConfig(name="ada/folder", revision="nowhere"), client)


def test_faults_are_sat_out_or_leave_the_choice_to_the_cache(hub, client, shared, caplog):
    hub.fault("info", status=503, times=2)
    assert pin_dataset(DatasetConfig(name="ada/folder"), client).revision == shared["ada/folder"]
    hub.put("ada/folder", {"train/odd/9.png": b""}, kind="dataset")
    hub.fault("info", status=503, times=99)
    assert pin_dataset(DatasetConfig(name="ada/folder"), client).revision == shared["ada/folder"]
    assert pin_dataset(DatasetConfig(name="ada/folder", revision="more"), client).revision == "more"
    assert "from the cache" in caplog.text


def test_offline_the_cache_names_the_commit(hub, client, tmp_path, monkeypatch):
    refs = tmp_path / "cache" / "datasets--ada--folder" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("1" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pin_dataset(DatasetConfig(name="ada/folder"), client).revision == "1" * 40
    assert not hub.log
