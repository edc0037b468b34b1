"""Graceful stop on SIGTERM, SIGINT and SIGHUP: one request, which every process of a run sees and honours."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from ddpm_hf.runtime.files import remove, write_text_atomic

SECONDS_TO_END = 1.0
"""Time that a second signal has to end the process through its usual handler."""

SECONDS_BETWEEN_CHECKS = 0.1

STOP = 128
"""A stop by signal n outweighs a request for a checkpoint, and is n more than this where processes agree."""

Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818  (a request that was honoured, not an error)
    """Raised when work ends early because a stop was requested; work that is finished by then is kept.

    Args:
        message: what was stopped, and how to go on.
        signal_number: the signal that requested it.

    Attributes:
        exit_code: 128 + signal_number, as shells expect.
    """

    def __init__(self, message: str = "stopped on request", signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """A request to stop, shared by all processes of a run.

    Args:
        notice: a file that all processes see, by which they learn of each other's requests between two collective
            operations; None for a request within one process.

    Attributes:
        signal_number: the signal that requested the stop; 0 if none did.
        wants_checkpoint: whether this process has been asked by SIGUSR1 to write a checkpoint and go on.
        agreed_on_checkpoint: whether any process had been, when they last agreed; the program resets both.
    """

    def __init__(self, notice: Path | None = None) -> None:
        self.signal_number = 0
        self.wants_checkpoint = self.agreed_on_checkpoint = False
        self._notice = notice

    def clear(self) -> None:
        """Remove the notice of an earlier run; called by the main process before any process works."""
        if self._notice is not None:
            remove(self._notice)

    def request(self, signal_number: int = signal.SIGTERM) -> None:
        """Ask every process of the run to stop."""
        self.signal_number = signal_number
        self._write_notice(signal_number)

    def requested(self) -> bool:
        """Whether this process has been asked to stop, or has found the notice of another one."""
        if not self.signal_number and self._notice is not None:
            with contextlib.suppress(OSError, ValueError):
                self.signal_number = int(self._notice.read_text())
        return bool(self.signal_number)

    def check(self) -> None:
        """Raise if a stop was requested; called between two pieces of work, such as denoising steps.

        Raises:
            Stopped: if this process or another one has been asked to stop.
        """
        if self.requested():
            raise Stopped(signal_number=self.signal_number)

    def agreed(self) -> bool:
        """Whether any process has been asked to stop; every process calls this together and gets the same answer."""
        from ddpm_hf.runtime.distributed import max_over_processes  # accelerate loads only where it is needed

        own = STOP + self.signal_number if self.signal_number else int(self.wants_checkpoint)
        number = max_over_processes(own)
        self.agreed_on_checkpoint |= number == 1
        # A signal that arrives during the exchange is kept for the next call, so that all processes answer alike.
        self.signal_number = self.signal_number or max(0, number - STOP)
        return number > STOP

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leave a piece of work together: if it stops in one process, `Stopped` is raised in all of them.

        Every process enters the block; within it they may do different amounts of work.

        Raises:
            Stopped: in every process, if the block raised it in any.
        """
        from ddpm_hf.runtime.distributed import max_over_processes  # accelerate loads only where it is needed

        stopped = False
        try:
            yield
        except Stopped:
            stopped = True
        if number := max_over_processes((self.signal_number or signal.SIGTERM) if stopped else 0):
            raise Stopped(signal_number=number)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the block the first SIGTERM, SIGINT or SIGHUP requests a stop; a second one ends the process at once.

        A closed terminal sends SIGHUP more than once, so a further one means nothing. Where it is ignored, as by
        nohup, it stays ignored. SIGUSR1 requests a checkpoint and no stop.

        A process blocked in a collective operation cannot run Python's signal handlers. So a thread listens too: it
        writes the notice for the other processes, and ends this one if the second signal's handler does not run.

        Python lets only the main thread handle signals: in another one, such as that of a notebook's or a server's
        task, the block runs without handlers, and the program stops it by `request`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous_handlers: dict[int, Any] = {}
        left = threading.Event()

        def on_first(number: int, frame: FrameType | None) -> None:
            self.signal_number = number
            for each, handler in previous_handlers.items():
                # A shell lets its background processes ignore SIGINT; the second one must end them all the same.
                second = signal.SIG_DFL if handler is signal.SIG_IGN else handler
                signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else second)

        def on_wish(number: int, frame: FrameType | None) -> None:
            self.wants_checkpoint = True

        def listen(receiver: socket.socket) -> None:
            is_first = True
            with receiver:
                while number := int.from_bytes(receiver.recv(1), sys.byteorder):  # 0 once the sender is closed
                    if number not in previous_handlers:
                        continue
                    if is_first:
                        self._write_notice(number)
                        is_first = False
                    elif number != signal.SIGHUP and not left.wait(SECONDS_TO_END):
                        os._exit(128 + number)

        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        previous_wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if caught != signal.SIGHUP or signal.getsignal(caught) is not signal.SIG_IGN:
                previous_handlers[caught] = signal.signal(caught, on_first)
        previous_wish = signal.signal(signal.SIGUSR1, on_wish)
        threading.Thread(target=listen, args=(receiver,), daemon=True).start()
        try:
            yield
        finally:
            left.set()
            for each, handler in previous_handlers.items():
                signal.signal(each, handler)
            signal.signal(signal.SIGUSR1, previous_wish)
            signal.set_wakeup_fd(previous_wakeup)
            sender.close()

    def _write_notice(self, number: int) -> None:
        if self._notice is not None:
            with contextlib.suppress(OSError):
                write_text_atomic(self._notice, f"{number}\n")


def end_at_once() -> None:
    """Let SIGTERM and SIGINT end the process without a traceback, and SIGUSR1 do nothing, while libraries load.

    Programs call this before their imports, within which Python's own handlers raise errors anywhere.
    """
    for caught in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(caught) is not signal.SIG_IGN:
            signal.signal(caught, _end)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def end_as_usual() -> None:
    """Undo `end_at_once`: SIGINT raises KeyboardInterrupt, for what the program does from here on."""
    for caught, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(caught) is _end:
            signal.signal(caught, usual)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """`end_at_once` within the block, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    end_at_once()
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        with contextlib.suppress(OSError):
            os.write(2, f"\nstopped by {name}\n".encode())
    os._exit(128 + number)


def run_in_thread(work: Callable[[], Result], check: Callable[[], object]) -> Result:
    """Run one long piece of work in a thread while polling `check`, so that a stop need not wait for its end.

    Args:
        work: cannot be interrupted; after a stop it goes on in its thread and its result is dropped.
        check: called every tenth of a second, such as `StopRequest.check`; what it raises ends the waiting.

    Returns:
        What the work returns.
    """
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([found], SECONDS_BETWEEN_CHECKS).done:
        check()
    return found.result()
