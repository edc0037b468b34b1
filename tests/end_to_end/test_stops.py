"""A wish to stop is granted wherever a run is, by all of its processes, with a checkpoint that loses nothing."""

import os
import signal
import time

import pytest
from watched import Strike, WatchedRun

from ddpm_hf.checkpoints.format import Progress, find_latest

pytestmark = pytest.mark.slow

LONG = [
    "training.num_steps=6",
    "training.checkpoint_every=null",
    "training.validate_every=3",
    "training.num_validation_images=100",
    "dataset.validation_fraction=0.1",
    "training.num_evaluation_samples=4096",
    "benchmark.features=digits",
    "logging.log_every=1",
]


# where the signal comes; what makes that last; the step that the run stops at
PLACES = {
    "set-up": (["training.preview_every=null"], 1),
    "step": (["training.preview_every=null"], 1),
    "preview": (["training.preview_every=3", "training.num_preview_images=256", "model_config.time_steps=1000"], 3),
    "validation": (["training.preview_every=null"], 3),
    "evaluation": (["training.preview_every=null", "training.evaluate_every=3", "model_config.time_steps=1000"], 3),
    "checkpoint": (["training.checkpoint_every=3", "training.preview_every=null"], 3),
    "finish": (["training.num_preview_images=256", "training.preview_every=null", "model_config.time_steps=1000"], 6),
}


# of two processes, one may be asked before it listens; it ends at once then, since there is nothing to lose
CASES = [(place, count) for place in PLACES for count in (1, 2) if (place, count) != ("set-up", 2)]


@pytest.mark.parametrize(("place", "num_processes"), CASES)
def test_a_signal_leaves_a_checkpoint_within_20_seconds(tiny_yaml, tmp_path, place, num_processes):
    options, step = PLACES[place]
    number = signal.SIGINT if place == "step" else signal.SIGTERM
    words = ["--config", str(tiny_yaml), f"output_dir={tmp_path / 'run'}", *LONG, *options]
    run = WatchedRun(words, tmp_path / "mark", num_processes, Strike(place, number))
    assert run.wait_for(place)
    began = time.monotonic()
    assert run.end() == [128 + number] * num_processes
    assert time.monotonic() - began < 20
    assert find_latest(tmp_path / "run" / "checkpoints") == tmp_path / "run" / "checkpoints" / f"step-{step}"


@pytest.mark.parametrize("place", ["step", "preview", "evaluation"])
def test_a_signal_to_one_process_alone_stops_all(tiny_yaml, tmp_path, place):
    options, step = PLACES[place]
    words = ["--config", str(tiny_yaml), f"output_dir={tmp_path / 'run'}", *LONG, *options, "training.num_steps=100000"]
    run = WatchedRun(words, tmp_path / "mark", 2)
    assert run.wait_for(place)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    began = time.monotonic()
    assert run.end() == [128 + signal.SIGTERM] * 2
    assert time.monotonic() - began < 20
    latest = find_latest(tmp_path / "run" / "checkpoints")
    assert latest is not None
    if place != "step":
        assert latest.name == f"step-{step}"
        assert Progress.read(latest).pending[0] == place


def test_the_others_wait_for_a_preview_as_long_as_the_configuration_says(tiny_yaml, tmp_path):
    options = [*PLACES["preview"][0], "training.timeout_minutes=0.5"]
    words = ["--config", str(tiny_yaml), f"output_dir={tmp_path / 'run'}", *LONG, *options]
    run = WatchedRun(words, tmp_path / "mark", 2)
    assert run.wait_for("preview")
    os.kill(run.processes[0].pid, signal.SIGSTOP)
    run.processes[1].join()
    assert run.processes[1].exitcode == 1
    assert run.look()["at"] == "preview"
    run.processes[0].kill()
    run.end()
