"""Trackers get the figures of metrics.jsonl, by step, and the options of the run."""

import json
import os
import subprocess
import sys

import pytest

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training import tracking
from ddpm_hf.training.trainer import Trainer


def figures(run, name):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_tensorboard_gets_every_figure(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(tiny("logging.tracker=tensorboard", "logging.log_every=1")).train()
    events = EventAccumulator(str(tmp_path / "run" / "logs" / tracking.PROJECT)).Reload()
    for name in ("loss", "grad_norm", "learning_rate", "images_per_second"):
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx(figures(tmp_path / "run", name), rel=1e-6)
    assert [event.step for event in events.Scalars("preview/channel_mean/0")] == [4]


@pytest.mark.slow
def test_wandb_keeps_every_figure_offline(tiny_yaml, tmp_path):
    # in a process of its own, since wandb starts a service that outlives a run
    program = f"""
import sys
from ddpm_hf.config import load_config
from ddpm_hf.training.trainer import Trainer

options = ["logging.tracker=wandb", "logging.log_every=1", "output_dir={tmp_path / "run"}"]
Trainer(load_config(sys.argv[1], options)).train()
"""
    environment = {**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program, tiny_yaml], env=environment, cwd=tmp_path, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tiny.yaml"]
    (kept,) = (tmp_path / "run" / "logs" / "wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    for name in (b"loss", b"grad_norm", b"learning_rate", b"preview/channel_mean/0", b"model_config.time_steps"):
        assert name in content


def test_a_tracker_that_is_not_installed_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=r"logging.tracker: given .wandb., .*allowed here: none, tensorboard"):
        Trainer(tiny("logging.tracker=wandb"))
    assert not (tmp_path / "run").exists()
