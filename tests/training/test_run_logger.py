"""The log of a run: metrics.jsonl, the same numbers in a tracker, running means over updates and processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from ddpm_hf.checkpoints.format import Progress
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.training.run_logger import PROJECT, MetricsFile, RunLogger, RunningMeans, bin_names
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import StepOutput


def figures(run, name):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_tensorboard_gets_every_figure(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Trainer(tiny("logging.tracker=tensorboard", "logging.log_every=1")).train()
    events = EventAccumulator(str(tmp_path / "run" / "logs" / PROJECT)).Reload()
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


def test_a_line_that_finds_no_room_leaves_the_file_as_it_was(tmp_path):
    # in a process of its own: the limit is also one for what pytest writes
    program = """
import resource, sys
from pathlib import Path
from ddpm_hf.training.run_logger import MetricsFile

file = MetricsFile(Path(sys.argv[1]))
file.append({"step": 1})
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (40, most))
try:
    file.append({"step": 2, "of": "more than forty bytes, so that only a part can be written"})
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    file.append({"step": 3})
"""
    file = tmp_path / "metrics.jsonl"
    subprocess.run([sys.executable, "-c", program, file], check=True)
    assert MetricsFile(file).read() == [{"step": 1}, {"step": 3}]
    assert len(file.read_text().splitlines()) == 2


def test_a_line_that_a_crash_cut_short_is_skipped_and_a_resumed_run_writes_its_lines_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "preview": {}}, {"step": 3, "loss": 0.5}]
    for record in lines:
        file.append(record)
    with file.path.open("a") as torn:
        torn.write('{"step": 4, "lo')
    assert file.read() == lines
    file.cut_after(2, ["preview"])
    assert file.read() == lines[:2]


def step_output(timesteps: list[int], losses: list[float], applied: float = 1.0, **metrics: float) -> StepOutput:
    """What an update returns."""
    return StepOutput(
        {name: torch.tensor(value) for name, value in metrics.items()},
        {"learning_rate": 0.1},
        torch.tensor(applied),
        torch.tensor(timesteps),
        torch.tensor(losses),
    )


def test_the_training_loss_is_told_by_tenths_of_the_timesteps():
    running = RunningMeans(Accelerator(cpu=True), 1000)
    for _ in range(2):
        running.add(step_output([0, 50, 999], [1.0, 3.0, 5.0], loss=2.0))
    assert running.pop() == {"loss": 2.0, "loss/t0-99": 2.0, "loss/t900-999": 5.0, "learning_rate": pytest.approx(0.1)}


def test_a_skipped_update_counts_for_nothing_but_its_settings():
    running = RunningMeans(Accelerator(cpu=True), 1000)
    running.add(step_output([50], [2.0], loss=2.0))
    running.add(step_output([50], [float("nan")], applied=0.0, loss=float("inf")))
    assert running.pop() == {"loss": 2.0, "loss/t0-99": 2.0, "learning_rate": pytest.approx(0.1)}
    running.add(step_output([50], [float("nan")], applied=0.0, loss=float("inf")))
    assert running.pop() == {"learning_rate": pytest.approx(0.1)}


def test_processes_that_go_on_with_a_line_add_up_the_same_figures(monkeypatch):
    """Also those that are not counted again before the line ends, such as an adversary's that learns now and then."""
    accelerator = Accelerator(cpu=True)
    begun = RunningMeans(accelerator, 1000)
    begun.add(step_output([50], [2.0], **{"loss": 2.0, "adversary/loss": 1.0}))
    kept = begun.sums()
    both = []
    for is_main in (True, False):
        monkeypatch.setattr(type(accelerator), "is_main_process", is_main)
        both.append(RunningMeans(accelerator, 1000, kept))
        both[-1].add(step_output([50], [4.0], loss=4.0))
    main, other = (running.sums() for running in both)
    assert list(main) == list(other)
    assert {name: main[name] + other[name] for name in kept} == {
        **kept,
        "loss": 10.0,
        "loss count": 3.0,
        "loss/t0-99": 10.0,
        "loss/t0-99 count": 3.0,
        "learning_rate": pytest.approx(0.3),
        "learning_rate count": 3.0,
    }


@pytest.mark.parametrize("num_timesteps", [2, 7, 20, 1000, 4000])
def test_tenths_are_named_by_the_timesteps_that_fall_into_them(num_timesteps):
    for timestep in range(num_timesteps):
        start, stop = bin_names(num_timesteps)[timestep * 10 // num_timesteps].removeprefix("loss/t").split("-")
        assert int(start) <= timestep <= int(stop)


@pytest.mark.parametrize(
    ("seconds", "time_left"),
    [(0.001, None), (1.0, "2 h 47 min"), (60.0, "about 7 days")],
    ids=["short", "hours", "days"],
)
def test_the_time_that_the_run_takes_is_told_once_and_warned_of_if_it_is_days(
    tiny, tmp_path, monkeypatch, caplog, capsys, seconds, time_left
):
    now = 0.0
    monkeypatch.setattr("ddpm_hf.training.run_logger.time.perf_counter", lambda: now)
    num_steps = 10_020
    run_logger = RunLogger(RunFolder(tmp_path), tiny(), Accelerator(cpu=True), num_steps, Progress())
    for step in range(1, 41):
        now += seconds * (100 if step <= 10 else 1)  # the first updates also set things up
        run_logger.add(step_output([0], [1.0], loss=1.0))
        if step % 10 == 0:
            run_logger.log_means(step)
    run_logger.bar.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    said = [line for line in [*warnings, *capsys.readouterr().out.splitlines()] if "10,000 steps" in line]
    assert len(said) == (time_left is not None)
    assert all(time_left in line for line in said)
    assert bool(warnings) == (time_left == "about 7 days")
