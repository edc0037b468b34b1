"""The log of a run: metrics.jsonl, the same numbers in a tracker, running means over updates and processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ddpm_hf.checkpoints.format import Progress, list_checkpoints
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.pipelines.pictures import loss_curve
from ddpm_hf.runtime.files import remove
from ddpm_hf.training.run_logger import PROJECT, LossCurve, MetricsFile, RunLogger, RunningMeans, bin_names
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


UNREADABLE = [
    b"null",
    b"3",
    b"{}",
    b"[]",
    b'"text"',
    b"\xff\xfe\x00",
    b"\x00" * 5000,
    b"[" * 100_000,
    b"{" * 3_000_000,
    b'{"step": null, "loss": 1}',
    b'{"step": "4", "loss": 1}',
    b'{"step": true, "loss": 1}',
    b'{"loss": 1}',
    b'{"step": 4, "loss": 1',
]

ODD = [
    b'{"step": 4}',
    b'{"step": 4, "loss": "low", "learning_rate": 0.1}',
    b'{"step": 4, "loss": NaN, "learning_rate": 0.1}',
    b'{"step": 4, "loss": 1e999, "learning_rate": 0.1}',
    b'{"step": 4, "loss": null, "learning_rate": 0.1}',
    b'{"step": 4, "loss": 1.0}',
    b'{"step": 4, "loss": 1.0, "learning_rate": {}}',
    b'{"step": 4, "loss": 1' + b"0" * 400 + b', "learning_rate": 0.1}',
    b'{"step": 4, "loss": -1, "learning_rate": 0.1}',
]


@pytest.mark.parametrize("line", [*UNREADABLE, *ODD], ids=lambda line: line[:25].decode("latin-1"))
def test_a_strange_line_neither_ends_a_run_nor_its_plot(tmp_path, caplog, line):
    good = [{"step": step, "loss": 1.0, "learning_rate": 0.1} for step in (1, 2, 6)]
    before, after = (b"".join(json.dumps(record).encode() + b"\n" for record in part) for part in (good[:2], good[2:]))
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.path.write_bytes(before + line + b"\n" + line + b"\n" + after)
    file.cut_after(6)
    assert [record for record in file.read() if record["step"] != 4] == good
    assert caplog.text.count("cannot be read, and are left out") == (line in UNREADABLE)
    loss_curve(file.curve.points(), tmp_path / "loss.png")
    assert len(file.curve.points()) >= 3


def test_the_plot_of_a_long_run_has_few_points_that_are_means_of_all_its_lines():
    curve, count = LossCurve(8), 1000
    for step in range(count):
        curve.add({"step": step, "loss": float(step), "learning_rate": 0.5})
        assert len(curve.points()) <= 8
    points = curve.points()
    assert len(points) > 4
    assert [point["loss"] for point in points] == [point["step"] for point in points]
    assert points[0]["loss"] == pytest.approx((128 - 1) / 2)  # 1,000 lines are 7 points of 128, and a part of one
    assert points[-1]["loss"] == pytest.approx((7 * 128 + count - 1) / 2)
    short = LossCurve(8)
    for step in range(7):
        short.add({"step": step, "loss": 1.0, "learning_rate": 0.5})
    assert len(short.points()) == 7


BY_PRODUCTS = ["metrics.jsonl", "loss.png", "samples.png", "denoising.png", "previews", "environment.json", ".stop"]


def test_folders_in_the_place_of_by_products_cost_a_warning_each(tiny, tmp_path, caplog):
    run, options = tmp_path / "run", ("logging.log_every=1", "training.preview_every=1", "training.checkpoint_every=1")
    Trainer(tiny(*options, "training.num_steps=1")).train()
    for name in BY_PRODUCTS:
        remove(run / name)
        (run / name / "something").mkdir(parents=True)
    remove(run / "previews")
    (run / "previews").touch()
    remove(run / ".lock")
    (run / ".lock").mkdir()
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(tiny(*options), resume="latest").train()
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-6", "step-5"]
    told = [record.getMessage() for record in caplog.records if "Cannot write" in record.getMessage()]
    assert len(told) == 5
    assert (run / "model_index.json").exists()


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
