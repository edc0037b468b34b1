"""The loss on held-out images: what it measures, that it is repeatable, and what is kept by it."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ddpm_hf.data import load_image_sets
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import Stopped, StopRequest
from ddpm_hf.training.run_logger import bin_names
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep
from ddpm_hf.training.validation import Validation

HELD_OUT = ("dataset.validation_fraction=0.2", "training.validate_every=2")


def validation(config) -> Validation:
    images, held_out = load_image_sets(config.dataset, config.model, config.seed)
    state = TrainState(config, Accelerator(cpu=True))
    loss = TrainStep(state, images, 6).objective.plain_loss
    return Validation(held_out, state, loss)


def written(run: Path, name: str) -> dict[int, dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_a_network_that_predicts_nothing_has_the_loss_of_the_noise(tiny):
    options = ("training.validation_bits_per_dim=true", "loss_config.use_time_weighting=false")
    metrics = validation(tiny(*HELD_OUT, *options)).measure(StopRequest())
    assert metrics["loss"] == pytest.approx(1, abs=0.05)  # the paper's initialisation: eps is predicted as 0
    assert [name for name in metrics if name.startswith("loss/")] == bin_names(20)
    assert metrics["bits_per_dim"] > 1


def test_it_is_the_same_in_any_batches_and_twice(tiny):
    config = tiny(*HELD_OUT)
    subject = validation(config)
    metrics = subject.measure(StopRequest())
    assert subject.measure(StopRequest()) == metrics
    other = validation(tiny(*HELD_OUT, "training.batch_size=64", "seed=0"))
    assert other.measure(StopRequest()) == pytest.approx(metrics, rel=1e-5)


def test_timesteps_cover_the_schedule_evenly(tiny):
    counts = torch.bincount(validation(tiny(*HELD_OUT)).timesteps, minlength=20)
    assert counts.min() >= counts.max() - 1


def test_it_is_given_up_when_the_run_is_to_stop(tiny):
    stop = StopRequest()
    stop.request()
    with pytest.raises(Stopped):
        validation(tiny(*HELD_OUT)).measure(stop)


def test_a_run_writes_it_down_and_keeps_the_best(tiny, tmp_path, monkeypatch):
    scores = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(Validation, "measure", lambda self, stop: {"loss": next(scores)})
    options = ("training.keep_best_by=validation_loss", "training.checkpoints_to_keep=1")
    Trainer(tiny(*HELD_OUT, *options)).train()
    assert written(tmp_path / "run", "validation") == {2: {"loss": 0.3}, 4: {"loss": 0.1}, 6: {"loss": 0.2}}
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-4", "step-6"}


def test_a_resumed_run_measures_the_same(tiny, tmp_path):
    whole, first = f"output_dir={tmp_path / 'whole'}", f"output_dir={tmp_path / 'first'}"
    Trainer(tiny(*HELD_OUT, whole)).train()
    Trainer(tiny(*HELD_OUT, first)).train()
    Trainer(tiny(*HELD_OUT), resume=str(tmp_path / "first" / "checkpoints" / "step-4")).train()
    assert written(tmp_path / "run", "validation")[6] == written(tmp_path / "whole", "validation")[6]


def test_there_must_be_images_to_measure_on(tiny):
    with pytest.raises(UserError, match=r"training.validate_every: given 2.*validation_fraction"):
        Trainer(tiny("training.validate_every=2"))
