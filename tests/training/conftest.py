"""A run small enough for a test: a network of 8 and 16 channels on the digits, 20 time steps."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from ddpm_hf.config import Config, load_config

TINY = """
model_config:
  time_steps: 20
  beta_schedule: cosine
  image_size: 8
  image_channels: 1
  hidden_channels: 8
  channel_multipliers: [1, 2]
  attention_levels: [1]
  num_res_blocks: 1
  norm_groups: 4
  dropout: 0.1
training:
  num_steps: 6
  batch_size: 8
  learning_rate: 1e-3
  mixed_precision: "no"
  scheduler: {warmup_steps: 2}
  checkpoint_every: 2
  preview_every: 4
  num_preview_images: 4
logging:
  log_every: 3
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """Make the configuration of a tiny run, with overrides."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)

    def make(*overrides: str) -> Config:
        return load_config(file, [f"output_dir={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Let every test make an accelerator of its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
