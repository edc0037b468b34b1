"""Where memory does not suffice, less is done at a time, and the result is the same."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.models import DDPMUNet
from ddpm_hf.training.trainer import Trainer

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def little_room(monkeypatch):
    """A device on which a network finds room for so many images in training, and so many in sampling."""

    def limit(training: int, sampling: int) -> None:
        forward = DDPMUNet.forward

        def cramped(self, sample, *args, **kwargs):
            if len(sample) > (training if self.training else sampling):
                raise torch.OutOfMemoryError(FULL)
            return forward(self, sample, *args, **kwargs)

        monkeypatch.setattr(DDPMUNet, "forward", cramped)

    return limit


def test_training_keeps_its_batch_where_memory_is_short(tiny, tmp_path, little_room, caplog):
    options = ("model_config.dropout=0", "training.preview_every=null", "training.fit_memory=true")
    Trainer(tiny(*options, f"output_dir={tmp_path / 'roomy'}")).train()
    little_room(training=2, sampling=4)
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(*options)).train()
    assert "going on with 4, and 8 images per update as before" in caplog.text
    runs = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("roomy", "run")
    ]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    progress = json.loads((tmp_path / "run/checkpoints/step-6/training_state/progress.json").read_text())
    assert progress["num_accumulation_steps"] == 4


def test_an_update_that_finds_no_room_is_told_with_what_helps(tiny, little_room):
    little_room(training=2, sampling=4)
    with pytest.raises(MemoryError, match=r"no room for an update at step 0; training.fit_memory=true"):
        Trainer(tiny()).train()


def test_a_preview_is_drawn_in_parts_where_memory_is_short(tiny, tmp_path, little_room, caplog):
    Trainer(tiny(f"output_dir={tmp_path / 'roomy'}")).train()
    little_room(training=8, sampling=1)
    Trainer(tiny()).train()
    assert "Out of memory while sampling 4 images at a time: using chunks of 1 from now on" in caplog.text
    for picture in ("samples.png", "previews/step-4.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / run / picture), dtype=int) for run in ("run", "roomy"))
        assert abs(ours - theirs).max() <= 1
