"""A tiny real model of 8x8 digits, its configuration, and a cache of its own for all tests here."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState

from ddpm_hf.config import Config, load_config
from ddpm_hf.evaluation.extractors.base import Features
from ddpm_hf.evaluation.feature_store import FeatureStore, FeatureTable
from ddpm_hf.pipelines import DDPMPipeline

CONFIG = """
model_config:
  time_steps: 10
  beta_schedule: cosine
  image_size: 8
  image_channels: 1
  hidden_channels: 8
  channel_multipliers: [1, 2]
  attention_levels: []
  norm_groups: 4
benchmark:
  n_samples: 70
  batch_size: 16
  features: digits
  num_held_out: 6
"""


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the user's own cache out of the tests; the digits classifier is trained once for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DDPM_HF_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """The configuration of a tiny evaluation, with overrides."""
    file = tmp_path / "tiny.yaml"
    file.write_text(CONFIG)

    def make(*overrides: str) -> Config:
        return load_config(file, [f"output_dir={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture
def make_pipeline() -> Callable[..., DDPMPipeline]:
    """A tiny network with random weights, that of `CONFIG`, and options of the network and of the scheduler."""
    convolutions = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return functools.partial(tiny.pipeline, **convolutions)


@pytest.fixture
def model_folder(make_pipeline, tmp_path: Path) -> Path:
    """A saved tiny model."""
    make_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[[torch.Tensor], FeatureTable]:
    """Put rows into a store, and give them back as a table."""
    count = iter(range(1000))

    def make(rows: torch.Tensor) -> FeatureTable:
        store = FeatureStore(tmp_path / f"store-{next(count)}", max(1, len(rows) // 3), rows.shape[1])
        for batch in store.missing(len(rows)):
            store.write(batch, Features(rows[batch.start : batch.stop].float(), None))
        return store.table(len(rows))

    return make
