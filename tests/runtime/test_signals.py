"""The first signal is a wish, the second an order."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import run

from ddpm_hf.runtime import distributed
from ddpm_hf.runtime.signals import Stopped, StopRequest, run_in_thread

WAITING = """
import signal, sys, time
from pathlib import Path
from ddpm_hf.runtime.signals import StopRequest

if sys.argv[1:]:
    signal.signal(int(sys.argv[1]), signal.SIG_IGN)
stop = StopRequest(Path("stop"))
with stop.on_signals():
    print("ready", flush=True)
    while not stop.signal_number:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["in front", "in a shell's background"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(number, ignored, tmp_path):
    command = [sys.executable, "-c", WAITING, *([str(int(number))] if ignored else [])]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for said in ("ready\n", "noted\n"):
            assert process.stdout.readline() == said
            process.send_signal(number)
        assert process.wait() == -number


def test_signals_mean_what_they_did_once_the_block_is_left(tmp_path):
    before = signal.default_int_handler
    outside = signal.signal(signal.SIGINT, before)  # a shell may have it ignored
    stop = StopRequest(tmp_path / "stop")
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, outside) is before
    assert signal.set_wakeup_fd(-1) == -1


BLOCKED = """
import ctypes, threading
from pathlib import Path
from ddpm_hf.runtime.signals import StopRequest

c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopRequest(Path("stop")).on_signals():
    threading.Timer(1, print, ["ready"], {"flush": True}).start()
    for _ in range(2):  # the second time lasts for ever, as a wait for other processes may
        c.pthread_mutex_lock(mutex)
"""


def test_a_process_that_waits_outside_of_python_tells_the_others_and_can_be_ended(tmp_path):
    command = [sys.executable, "-c", BLOCKED]
    other = StopRequest(tmp_path / "stop")
    assert not other.requested()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        while not other.requested():
            time.sleep(0.01)
        assert other.signal_number == signal.SIGTERM
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM


def test_check_raises_with_the_exit_code_of_the_signal():
    stop = StopRequest()
    stop.check()
    stop.request(signal.SIGINT)
    with pytest.raises(Stopped) as caught:
        stop.check()
    assert caught.value.exit_code == 128 + signal.SIGINT


def test_the_notice_of_an_earlier_run_is_cleared(tmp_path):
    StopRequest(tmp_path / "stop").request()
    stop = StopRequest(tmp_path / "stop")
    stop.clear()
    assert not stop.requested()


@pytest.mark.parametrize("meanwhile", [0, signal.SIGTERM])
def test_a_signal_that_arrives_while_processes_agree_counts_the_next_time(monkeypatch, meanwhile):
    stop = StopRequest()

    def exchange(number: int) -> int:
        stop.signal_number = stop.signal_number or meanwhile
        return number

    monkeypatch.setattr(distributed, "max_over_processes", exchange)
    assert not stop.agreed()
    assert stop.agreed() == bool(meanwhile)


def test_a_long_piece_of_work_is_not_waited_for():
    go_on, stop = threading.Event(), StopRequest()
    stop.request()
    with pytest.raises(Stopped):
        run_in_thread(go_on.wait, stop.check)
    go_on.set()
    assert run_in_thread(lambda: 7, lambda: None) == 7
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0, lambda: None)


PROCESSES = """
import sys, time
from pathlib import Path
from accelerate import PartialState
from ddpm_hf.runtime.cli import leave
from ddpm_hf.runtime.signals import Stopped, StopRequest

state, folder, step = PartialState(cpu=True), Path(sys.argv[1]), 0
stop = StopRequest(folder / ".stop")
if state.is_main_process:
    (folder / ".stop").write_text("15")  # of an earlier run
    stop.clear()
state.wait_for_everyone()
try:
    with stop.together():
        for step in range(200 if state.process_index == 0 else 30_000):
            if state.process_index == 0 and step == 100:
                stop.request()
            stop.check()
            time.sleep(0.01)
except Stopped:
    (folder / f"stopped-{state.process_index}").write_text(str(step))
state.wait_for_everyone()
leave(0)
"""


@pytest.mark.slow
def test_all_processes_stop_when_one_is_asked_to(tmp_path):
    """Two processes, of which the second has far more to do; only the first is told to stop."""
    program = tmp_path / "program.py"
    program.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run(*command, program, tmp_path, check=True)
    told = {path.name: int(path.read_text()) for path in tmp_path.glob("stopped-*")}
    assert told.keys() == {"stopped-0", "stopped-1"}
    assert told["stopped-0"] == 100, "the earlier request is forgotten"
    assert told["stopped-1"] < 30_000 - 1


def test_other_errors_pass():
    with pytest.raises(ValueError, match="another"), StopRequest().together():
        raise ValueError("another")


def test_in_a_thread_a_stop_is_requested_by_the_program_alone():
    def work() -> int:
        with stop.on_signals():
            stop.request(signal.SIGTERM)
            return stop.signal_number

    stop, handler = StopRequest(), signal.getsignal(signal.SIGTERM)
    assert run_in_thread(work, lambda: None) == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_hangup_is_a_wish_however_often_it_comes_and_stays_ignored_where_it_was():
    outside = signal.getsignal(signal.SIGHUP)
    try:
        for handler, expected in ((signal.SIG_IGN, 0), (signal.SIG_DFL, signal.SIGHUP)):
            signal.signal(signal.SIGHUP, handler)
            stop = StopRequest()
            with stop.on_signals():
                for _ in range(3):
                    os.kill(os.getpid(), signal.SIGHUP)
                assert stop.signal_number == expected
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_a_wish_for_a_checkpoint_is_no_stop_and_a_stop_outweighs_it():
    outside, stop = signal.getsignal(signal.SIGUSR1), StopRequest()
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not stop.requested()
        assert not stop.agreed()
        assert stop.agreed_on_checkpoint
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
        assert stop.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGUSR1) == outside
