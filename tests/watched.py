"""training/train.py in processes that say in a file what they are at, so that a test can strike right there."""

import contextlib
import json
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  (this and the next are imported late; a forked process has them)
import pytest
from processes import free_port

import ddpm_hf.checkpoints.format
import ddpm_hf.evaluation.evaluate
import ddpm_hf.training.trainer
from ddpm_hf.training.previews import Previews
from ddpm_hf.training.run_logger import RunLogger
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep

TRAIN = Path(__file__).parents[1] / "training" / "train.py"

SLOW = ("checkpoint", "prune")
"""What lasts a thousandth of a second is hard to hit: at these, every file takes its time."""

SECONDS_PER_FILE = 0.002


@dataclass(frozen=True)
class Strike:
    """A signal that processes are sent where some work is begun for the first time.

    Attributes:
        work: as `Watch.over` names it.
        number: of the signal.
        pids: processes that get it besides the one that is at work.
    """

    work: str
    number: int
    pids: tuple[int, ...] = ()


class Watch:
    """Keeps a file that holds, in JSON, what the process is at and how often each kind of work was begun.

    Args:
        file: is written in place, since a rename would be one more thing to be killed in.
        strike: what happens at some work.
    """

    def __init__(self, file: Path, strike: Strike | None) -> None:
        self.strike = strike
        self.descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
        self.at = "start"
        self.begun: dict[str, int] = {}
        self._write()

    def over(self, owner: Any, name: str, work: str) -> None:
        """Have a function of a module or class tell when it is at work."""
        function: Callable = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            before, self.at = self.at, work
            self.begun[work] = self.begun.get(work, 0) + 1
            self._write()
            if self.strike is not None and work == self.strike.work and self.begun[work] == 1:
                for pid in (*self.strike.pids, os.getpid()):
                    os.kill(pid, self.strike.number)
            try:
                return function(*args, **kwargs)
            finally:
                self.at = before
                self._write()

        setattr(owner, name, watched)

    def slow_down(self, event: str, _: tuple) -> None:
        """Wait before whatever is done to a file of a checkpoint."""
        if self.at in SLOW and event.startswith(("open", "os.", "shutil.")):
            time.sleep(SECONDS_PER_FILE)

    def _write(self) -> None:
        os.pwrite(self.descriptor, json.dumps({"at": self.at, "begun": self.begun}).ljust(300).encode(), 0)


def train(words: list[str], mark: Path, environment: dict[str, str], strike: Strike | None) -> None:
    """Be a process of a run.

    Args:
        words: of the command line.
        mark: the file that process 0 keeps.
        environment: as a launcher sets it.
        strike: what happens to process 0, and others, at some work.
    """
    os.environ.update(environment)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    if os.environ.get("RANK", "0") == "0":
        watch = Watch(mark, strike)
        watch.over(Trainer, "_set_up", "set-up")
        watch.over(TrainStep, "update", "step")
        watch.over(Previews, "draw", "preview")
        watch.over(Trainer, "_validate", "validation")
        watch.over(Trainer, "_evaluate", "evaluation")
        watch.over(ddpm_hf.training.trainer, "write_checkpoint", "checkpoint")
        watch.over(ddpm_hf.checkpoints.format, "_remove", "prune")
        watch.over(Trainer, "_finish", "finish")
        sys.addaudithook(watch.slow_down)
    RunLogger.plot = lambda logger: None  # it takes half of the time of a run this small
    sys.argv = [str(TRAIN), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


class WatchedRun:
    """The processes of a run. They are forked from one that has imported everything, which takes longest.

    Args:
        words: of the command line.
        mark: where process 0 tells what it is at.
        num_processes: 1 or 2.
        strike: a signal that all of them get.
    """

    def __init__(self, words: list[str], mark: Path, num_processes: int, strike: Strike | None = None) -> None:
        mark.unlink(missing_ok=True)
        self.mark = mark
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["watched"])
        with pytest.MonkeyPatch.context() as patch:  # the server finds modules by this alone
            patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
            forkserver.ensure_running()
        shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.processes: list[multiprocessing.process.BaseProcess] = []
        for rank in reversed(range(num_processes)):  # process 0 last, which is to know the others
            if strike is not None:
                strike = replace(strike, pids=tuple(process.pid for process in self.processes))
            environment = {} if num_processes == 1 else {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=train, args=(words, mark, environment, strike))
            process.start()
            self.processes.insert(0, process)

    def look(self) -> dict[str, Any]:
        """What process 0 says it is at, and how often each kind of work was begun."""
        try:
            return json.loads(self.mark.read_text())
        except (FileNotFoundError, ValueError):  # not there yet, or read while it was written
            return {"at": "start", "begun": {}}

    def wait_for(self, work: str, times: int = 1) -> bool:
        """Wait until some work is begun for the nth time; whether the run has come to it."""
        while self.look()["begun"].get(work, 0) < times:
            if not any(process.is_alive() for process in self.processes):
                return False
            time.sleep(0.001)
        return True

    def send(self, number: int) -> None:
        """Send a signal to every process."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # it has left, since another one got it first
                os.kill(process.pid, number)

    def end(self) -> list[int]:
        """Wait for the end of all processes; their exit codes, -n where signal n has killed one."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]
