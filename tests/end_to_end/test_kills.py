"""Runs that are killed at any moment, again and again, end as if nothing had happened."""

import itertools
import os
import platform
import random
import signal
import sys
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from processes import TORCHRUN, TRAIN, free_port, looks, losses, run, state
from watched import WatchedRun

from ddpm_hf.checkpoints.format import find_damage, find_latest, list_checkpoints

pytestmark = pytest.mark.slow

# CI kills a few times. The full count, and a line of it in the table of results:
#   DDPM_HF_KILLS=50 DDPM_HF_KILLS_RECORD=benchmarks/results/kills.md make test-slow PYTEST_ARGS="-k killed_runs"
NUM_KILLS = int(os.environ.get("DDPM_HF_KILLS", "6"))
RECORD = os.environ.get("DDPM_HF_KILLS_RECORD")

# what a run is to be at when it is killed, in turn, and about how many seconds it is at it
AIMS = {"checkpoint": 0.1, "prune": 0.02, "step": 0.01, "preview": 0.15, "evaluation": 1.0, "set-up": 0.3}

OPTIONS = [
    "training.num_steps=120",
    "training.checkpoint_every=6",
    "training.preview_every=9",
    "training.evaluate_every=30",
    "training.num_evaluation_samples=70",
    "benchmark.features=digits",
    "logging.log_every=1",
]


def kill_at(aim: str, run: WatchedRun, chance: random.Random) -> str | None:
    """Kill a run while it is at something.

    Returns:
        What process 0 was at; None if the run came to its end before.
    """
    if not run.wait_for(aim, 1 if aim in ("evaluation", "set-up") else chance.randint(1, 3)):
        assert set(run.end()) == {0}
        return None
    time.sleep(chance.uniform(0, AIMS[aim]))
    run.send(signal.SIGKILL)
    run.end()
    return run.look()["at"]


@pytest.mark.parametrize(
    ("num_processes", "num_kills"), [(1, NUM_KILLS), (2, max(1, NUM_KILLS * 2 // 5))], ids=["one", "two"]
)
def test_killed_runs_resume_bit_by_bit(tiny_yaml, tmp_path, num_processes, num_kills):
    launcher = [*TORCHRUN, free_port()] if num_processes == 2 else [sys.executable]

    def words(folder: Path) -> list[str]:
        return ["--config", str(tiny_yaml), f"output_dir={folder}", *OPTIONS, "--resume", "auto"]

    whole, mark = tmp_path / "whole", tmp_path / "mark"
    run(*launcher, TRAIN, *words(whole), check=True)
    chance, aims, fell, num_runs = random.Random(0), itertools.cycle(AIMS), Counter(), 0
    while fell.total() < num_kills:
        num_runs += 1
        killed, step = tmp_path / f"killed-{num_runs}", 0
        while fell.total() < num_kills:
            at = kill_at(next(aims), WatchedRun(words(killed), mark, num_processes), chance)
            if at is None:
                break
            fell[at] += 1
            assert not any(map(find_damage, list_checkpoints(killed / "checkpoints")))
            latest = find_latest(killed / "checkpoints")
            assert latest or not step, "no kill may cost a checkpoint"
            if latest:
                assert int(latest.name[5:]) >= step
                step = int(latest.name[5:])
        assert set(WatchedRun(words(killed), mark, num_processes).end()) == {0}
        assert {path.name for path in killed.rglob(".*")} <= {".lock", ".stop"}, (
            "nothing stays of what was being written"
        )
        torch.testing.assert_close(state(killed), state(whole), rtol=0, atol=0)
        assert losses(killed) == losses(whole)
        assert looks(killed) == looks(whole)
    if RECORD:
        record(Path(RECORD), num_processes, fell, num_runs)


def record(table: Path, num_processes: int, fell: Counter, num_runs: int) -> None:
    """Add a line to the table of what was killed, once all has gone as it should."""
    where = ", ".join(f"{count} {at}" for at, count in sorted(fell.items()))
    numbers = f"{num_processes} | {fell.total()} of {fell.total()} | {num_runs}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate", "diffusers"))
    with table.open("a") as file:
        file.write(f"| {date.today()} | {numbers} | {where} | Python {platform.python_version()}, {versions} |\n")
