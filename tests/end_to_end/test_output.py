"""Nobody need read what a program prints, and a signal while it loads leaves no traceback."""

import fcntl
import os
import signal
import subprocess
import sys
import termios

import pytest
from processes import REPOSITORY, TRAIN, run
from watched import Strike, WatchedRun

from ddpm_hf.checkpoints.format import find_damage, find_latest, list_checkpoints

pytestmark = pytest.mark.slow

# CI sends a few signals while libraries load; DDPM_HF_KILLS=50 as many as that.
NUM_SIGNALS = int(os.environ.get("DDPM_HF_KILLS", "6"))

# Modules that are loaded between the first line of the program and the last import before the run.
FIRST_MODULE, LAST_MODULE = 150, 3300

ENDLESS = ["training.num_steps=1000000", "training.checkpoint_every=null", "training.preview_every=null"]
TALKATIVE = ["logging.log_every=1", "training.num_steps=30", "training.checkpoint_every=10"]


@pytest.mark.parametrize(
    "output",
    ["2>&1 | true", "2>&1 | head -c 1", ">&- 2>&-", "< /dev/null > /dev/full 2>&1", "2> >(true)"],
    ids=["no reader", "a reader that leaves", "closed", "a full disk", "stderr alone"],
)
def test_a_run_ends_well_whoever_reads_it(tiny_yaml, tmp_path, output):
    command = f'"$0" {TRAIN} --config {tiny_yaml} output_dir={tmp_path / "run"} {" ".join(TALKATIVE)} {output}'
    done = run("bash", "-c", command + "; exit ${PIPESTATUS[0]}", sys.executable)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "samples.png").exists()
    found = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in found] == ["step-30", "step-20"]
    assert not any(map(find_damage, found))


def test_a_terminal_that_is_closed_leaves_a_checkpoint(tiny_yaml, tmp_path):
    ours, theirs = os.openpty()

    def take_terminal():
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    words = [
        sys.executable,
        TRAIN,
        "--config",
        tiny_yaml,
        f"output_dir={tmp_path / 'run'}",
        *ENDLESS,
        "logging.log_every=1",
    ]
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(list(map(str, words)), preexec_fn=take_terminal, **terminal) as process:  # noqa: PLW1509
        os.close(theirs)
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            os.read(ours, 1000)
        os.close(ours)
        assert process.wait() == 128 + signal.SIGHUP
    assert find_latest(tmp_path / "run" / "checkpoints") is not None


def test_sighup_stops_as_sigterm_does_however_often_it_comes(tiny_yaml, tmp_path):
    words = ["--config", str(tiny_yaml), f"output_dir={tmp_path / 'run'}", *ENDLESS]
    watched = WatchedRun(words, tmp_path / "mark", 1)
    assert watched.wait_for("step")
    while any(process.is_alive() for process in watched.processes):
        watched.send(signal.SIGHUP)
    assert watched.end()[0] in (128 + signal.SIGHUP, -signal.SIGHUP)  # the latter once all is done
    assert find_latest(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigusr1_asks_for_a_checkpoint_and_the_run_goes_on(tiny_yaml, tmp_path, num_processes):
    options = [*ENDLESS[1:], "training.num_steps=6", "training.checkpoints_to_keep=9"]
    words = ["--config", str(tiny_yaml), f"output_dir={tmp_path / 'run'}", *options]
    watched = WatchedRun(words, tmp_path / "mark", num_processes, Strike("step", signal.SIGUSR1))
    assert watched.end() == [0] * num_processes
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-6", "step-1"]


@pytest.mark.parametrize("attempt", range(NUM_SIGNALS))
def test_a_signal_while_libraries_load_leaves_no_traceback(tiny_yaml, tmp_path, attempt):
    number = (signal.SIGINT, signal.SIGTERM)[attempt % 2]
    num_modules = FIRST_MODULE + (LAST_MODULE - FIRST_MODULE) * attempt // NUM_SIGNALS
    words = [
        sys.executable,
        "-X",
        "importtime",
        TRAIN,
        "--config",
        tiny_yaml,
        f"output_dir={tmp_path / 'run'}",
        *ENDLESS,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        list(map(str, words)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        for index, line in enumerate(process.stderr):
            if index == num_modules or "ddpm_hf.training.resume" in line:  # which is among the last
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait() == 128 + number
    said = [line for line in rest.splitlines() if line and not line.startswith("import time:")]
    assert said == ["stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM"]
    assert not (tmp_path / "run").exists()
