"""Datasets of the Hub as streams: decoded into the cache, with nothing else kept; faults and wrong names are told."""

import io
import os
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest
from loopback import LoopbackHub
from loopback.server import TOKEN
from PIL import Image

PROGRAM = """
    import json, sys
    from ddpm_hf.config import DatasetConfig, ModelConfig
    from ddpm_hf.data import load_image_sets
    import logging; logging.basicConfig()
    model = ModelConfig(image_size=8, image_channels=1, channel_multipliers=[1], attention_levels=[])
    for text in sys.argv[1:]:
        try:
            training, validation = load_image_sets(DatasetConfig(**json.loads(text)), model, seed=0)
            kept = sorted(training.images[:, 0, 0, 0].tolist()), training.labels.bincount().tolist()
            print(*kept, validation and len(validation), training.class_names, len(training.skipped))
        except Exception as error:
            print(type(error).__name__, error)
"""


@pytest.fixture
def hub():
    with LoopbackHub() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    def run(*configs: str) -> list[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hf-home"),
            "HF_HUB_DISABLE_XET": "1",
            "DDPM_HF_CACHE": str(tmp_path / "ddpm-hf"),
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), *configs],
            capture_output=True,
            text=True,
            check=False,
            env={**kept, **variables},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def parquet(levels: range) -> bytes:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    rows = {"image": [{"bytes": png(i), "path": None} for i in levels], "label": [i % 2 for i in levels]}
    stream = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(stream)
    return stream.getvalue()


@pytest.mark.slow
def test_a_stream_is_decoded_once_and_leaves_nothing_else(hub, run, tmp_path):
    hub.put("ada/parquet", {"data/train-00000-of-00001.parquet": parquet(range(6))}, kind="dataset")
    folder = {f"train/{('even', 'odd')[i % 2]}/{i}.png": png(i) for i in range(6)} | {"train/odd/9.png": b"broken"}
    hub.put("ada/folder", folder, kind="dataset")
    commits = {name: hub.repo(name, "dataset").branches["main"] for name in ("ada/parquet", "ada/folder")}
    asked = [f'{{"name": "{name}", "revision": "{commit}", "streaming": true}}' for name, commit in commits.items()]
    expected = [f"[0, 1, 2, 3, 4, 5] [3, 3] None ['even', 'odd'] {skipped}" for skipped in (0, 1)]
    assert run(*asked) == expected
    images = [path for path in (tmp_path / "hf-home").rglob("*") if path.suffix in (".parquet", ".png", ".arrow")]
    assert images == []
    hub.log.clear()
    assert run(*asked) == expected
    assert not hub.log  # a second start finds the decoded images


@pytest.mark.slow
def test_what_a_dataset_of_the_hub_has_is_listed(hub, run):
    names = ("cats", "dogs")
    listed = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in names)
    files = {f"{name}.parquet": parquet(range(4)) for name in names}
    files["README.md"] = f"---\nconfigs:\n{listed}---\n".encode()
    hub.put("ada/pets", files, kind="dataset")
    answers = run(
        *(
            f'{{"name": "ada/pets", "streaming": {streaming}, {more}}}'
            for streaming in ("true", "false")
            for more in (
                '"config": null',
                '"config": "birds"',
                '"config": "cats", "split": "test"',
                '"config": "cats", "image_column": "picture"',
                '"config": "cats", "validation_fraction": 0.25',
            )
        )
    )
    for missing, unknown, split, column, right in (answers[:5], answers[5:]):
        assert "dataset.config: given None" in missing
        assert "['cats', 'dogs']" in missing
        assert "dataset.config: given 'birds'" in unknown
        assert "['cats', 'dogs']" in unknown
        assert "dataset.split: given 'test'" in split
        assert "['train']" in split
        assert "columns of 'ada/pets': image (Image), label (ClassLabel)" in column
        assert right.endswith(" 1 ['even', 'odd'] 0")
