"""Where memory does not suffice, less is done at a time, and the result is the same."""

import json
import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ddpm_hf.models import DDPMUNet
from ddpm_hf.training.memory import fewest_parts
from ddpm_hf.training.trainer import Trainer

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def test_the_fewest_parts_that_fit_are_found():
    tried = []

    def attempt(parts):
        tried.append(parts)
        if parts < 6:
            raise torch.OutOfMemoryError(FULL)

    assert fewest_parts(2, 12, attempt, Accelerator(cpu=True)) == 6
    assert tried == [2, 3, 4, 6]


def test_what_does_not_fit_at_all_is_told_by_the_device():
    def attempt(parts):
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        fewest_parts(1, 4, attempt, Accelerator(cpu=True))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def attempt(parts):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        fewest_parts(1, 4, attempt, Accelerator(cpu=True))


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
    assert progress["num_parts"] == 4


def test_an_update_that_finds_no_room_is_told_with_what_helps(tiny, little_room):
    little_room(training=2, sampling=4)
    with pytest.raises(MemoryError, match=r"no room for an update at step 0; training.fit_memory=true"):
        Trainer(tiny()).train()


def test_a_preview_is_drawn_in_parts_where_memory_is_short(tiny, tmp_path, little_room, caplog):
    Trainer(tiny(f"output_dir={tmp_path / 'roomy'}")).train()
    little_room(training=8, sampling=1)
    Trainer(tiny()).train()
    assert "out of memory, drawing 4 images at a time; from here on 1, with the same results" in caplog.text
    for picture in ("samples.png", "previews/step-4.png"):
        ours, theirs = (np.asarray(Image.open(tmp_path / run / picture), dtype=int) for run in ("run", "roomy"))
        assert abs(ours - theirs).max() <= 1
