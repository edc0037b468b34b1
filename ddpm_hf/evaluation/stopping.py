"""A wish to stop that all processes of an evaluation honour together, in the midst of their work."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from ddpm_hf.runtime.errors import Abandoned

MARKER = ".stop"

SECONDS_BETWEEN_QUESTIONS = 0.1

Result = TypeVar("Result")


class Stop:
    """Ends the work of all processes soon after one of them is asked to.

    Between the places where processes wait for each other they work on their own, a different number of steps each. So
    one that is to stop leaves a file for the others to find, beside the features that they share.

    Args:
        asked: whether this process was asked to stop; None if nobody will ask.
        folder: shared by all processes. It exists when work begins.
    """

    def __init__(self, asked: Callable[[], bool] | None = None, folder: Path = Path()) -> None:
        self.asked, self._marker = asked, folder / MARKER
        self._alone = PartialState().num_processes == 1

    def begin(self) -> None:
        """Forget the last stop; all processes call this together, before any of them works."""
        if PartialState().is_main_process:
            self._marker.unlink(missing_ok=True)
        PartialState().wait_for_everyone()

    def check(self) -> None:
        """Ask; called at every denoising step, every batch of features and every block of rows.

        Raises:
            Abandoned: if this process or another is to stop.
        """
        if self.asked is None:
            return
        if self.asked():
            if not self._alone:
                self._marker.touch()
            raise Abandoned
        if not self._alone and self._marker.exists():
            raise Abandoned

    @contextmanager
    def together(self) -> Iterator[None]:
        """A piece of work that processes begin on their own and leave together.

        Raises:
            Abandoned: in all of them, if one was to stop.
        """
        stopped = False
        try:
            yield
        except Abandoned:
            stopped = True
        if not self._alone:
            total = reduce(torch.tensor([int(stopped)], device=PartialState().device), "sum")
            stopped = bool(total.item())
        if stopped:
            raise Abandoned


def patiently(work: Callable[[], Result], check: Callable[[], object]) -> Result:
    """Do one long piece of work in a thread of its own, so that a wish to stop need not wait for its end.

    Args:
        work: cannot be interrupted; if it is abandoned, it goes on unheard.
        check: asked every tenth of a second; what it raises ends the waiting.
    """
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=run, daemon=True).start()
    while not wait([found], SECONDS_BETWEEN_QUESTIONS).done:
        check()
    return found.result()
