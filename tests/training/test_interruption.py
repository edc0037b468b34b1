"""The first signal is a wish, the second an order."""

import os
import signal
import subprocess
import sys

import pytest

from ddpm_hf.training.interruption import StopSignals

WAITING = """
import signal, sys, time
from ddpm_hf.training.interruption import StopSignals

if sys.argv[1:]:
    signal.signal(int(sys.argv[1]), signal.SIG_IGN)
with StopSignals() as signals:
    print("ready", flush=True)
    while not signals.received:
        time.sleep(0.01)
    print("noted", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["in front", "in a shell's background"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(number, ignored):
    command = [sys.executable, "-c", WAITING, *([str(int(number))] if ignored else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for said in ("ready\n", "noted\n"):
            assert process.stdout.readline() == said
            process.send_signal(number)
        assert process.wait() == -number


def test_signals_mean_what_they_did_once_the_block_is_left():
    before = signal.default_int_handler
    outside = signal.signal(signal.SIGINT, before)  # a shell may have it ignored
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, outside) is before
