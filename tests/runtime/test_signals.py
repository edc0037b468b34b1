"""The first signal is a wish, the second an order."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ddpm_hf.runtime.signals import StopSignals

WAITING = """
import signal, sys, time
from pathlib import Path
from ddpm_hf.runtime.signals import StopSignals

if sys.argv[1:]:
    signal.signal(int(sys.argv[1]), signal.SIG_IGN)
with StopSignals(Path("stop")) as signals:
    print("ready", flush=True)
    while not signals.received:
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
    with StopSignals(tmp_path / "stop") as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, outside) is before
    assert signal.set_wakeup_fd(-1) == -1


BLOCKED = """
import ctypes, threading
from pathlib import Path
from ddpm_hf.runtime.signals import StopSignals

c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with StopSignals(Path("stop")):
    threading.Timer(1, print, ["ready"], {"flush": True}).start()
    for _ in range(2):  # the second time lasts for ever, as a wait for other processes may
        c.pthread_mutex_lock(mutex)
"""


def test_a_process_that_waits_outside_of_python_tells_the_others_and_can_be_ended(tmp_path):
    command = [sys.executable, "-c", BLOCKED]
    other = StopSignals(tmp_path / "stop")
    assert not other.asked()
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        while not other.asked():
            time.sleep(0.01)
        assert other.received == signal.SIGTERM
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
