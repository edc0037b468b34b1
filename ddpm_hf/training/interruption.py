"""SIGTERM and SIGINT as a wish to stop that the training loop honours at its next step."""

import signal
from types import FrameType, TracebackType
from typing import Any


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

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self.received = signal_number
        for number, handler in self._before.items():
            # what a shell runs in the background ignores SIGINT: not the second one
            signal.signal(number, signal.SIG_DFL if handler is signal.SIG_IGN else handler)

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
