"""SIGTERM and SIGINT as a wish to stop that the training loop honours at its next step."""

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ddpm_hf.runtime.files import write_whole

SECONDS_TO_END = 1.0
"""For the second signal to end a process the usual way."""


class Interrupted(Exception):  # noqa: N818  (an order, not an error)
    """A run has stopped as asked, with a checkpoint; exit code 128 + signal, as shells expect.

    Args:
        signal_number: what asked for it.
        message: how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Within its block the first SIGTERM or SIGINT is only noted; a second one ends the process at once.

    A process that waits for others does so outside of Python, whose handlers then have to wait as well. So a thread
    listens too, which leaves a notice for the others and sees to it that a second signal does end the process.

    Args:
        notice: a file that all processes of the run see, and that does not exist when the block begins.

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self, notice: Path) -> None:
        self.received = 0
        self._notice = notice
        self._before: dict[int, Any] = {}
        self._left = threading.Event()

    def asked(self) -> bool:
        """Whether this process, or another one of the run, has been asked to stop."""
        if not self.received:
            with contextlib.suppress(OSError, ValueError):
                self.received = int(self._notice.read_text())
        return bool(self.received)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self.received = signal_number
        for number, handler in self._before.items():
            # what a shell runs in the background ignores SIGINT: not the second one
            signal.signal(number, signal.SIG_DFL if handler is signal.SIG_IGN else handler)

    def _listen(self, ear: socket.socket) -> None:
        heard = 0
        with ear:
            while number := int.from_bytes(ear.recv(1), sys.byteorder):  # 0 once the other end is closed
                if number not in self._before:
                    continue
                heard += 1
                if heard == 1:
                    with contextlib.suppress(OSError):
                        write_whole(self._notice, f"{number}\n")
                elif not self._left.wait(SECONDS_TO_END):
                    os._exit(128 + number)

    def __enter__(self) -> "StopSignals":
        ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        threading.Thread(target=self._listen, args=(ear,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._mouth.close()
