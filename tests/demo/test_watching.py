"""Following a run in a thread: its progress, its result or its error, and stopping it."""

import threading
import time

import pytest

from ddpm_hf.demo.watching import Progress, watch
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import Stopped


def test_watching_yields_progress_and_then_the_result():
    def run(report):
        for done in range(1, 4):
            report(Progress(done, 3))
            time.sleep(0.2)
        return "done"

    progress, watching = [], watch(run)
    with pytest.raises(StopIteration) as end:
        while True:
            progress.append(next(watching))
    assert end.value.value == "done"
    assert [each.done for each in progress] == sorted({each.done for each in progress})
    assert progress


def test_watching_raises_what_the_run_raises():
    def run(report):
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        list(watch(run))


def test_closing_the_generator_stops_the_run_at_its_next_step():
    ended = threading.Event()

    def run(report):
        try:
            while True:
                report(Progress(1, 2))
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    watching = watch(run)
    next(watching)
    watching.close()
    assert ended.is_set()
