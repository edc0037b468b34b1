"""Follow a sampling run while it goes on, and stop it between two steps."""

import copy
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import Stopped, StopRequest

T = TypeVar("T")

SECONDS_BETWEEN_UPDATES = 0.15


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done: steps done.
        total: steps in all; 0 before the first is reported.
        images: the network's prediction of x_0 at this step; None where it is not shown.
    """

    done: int
    total: int
    images: list[Image.Image] | None = None


OnProgress = Callable[[Progress], None]


class WatchedPipeline(DDPMPipeline):
    """A pipeline that reports every step of whatever it does, and ends it where it takes too long.

    It shares the network, but not the scheduler, with the pipeline that it is made from.
    """

    on_progress: OnProgress
    seconds: float
    ends_at: float
    num_passes = 1
    passes_done = 0

    @classmethod
    def around(
        cls, pipeline: DDPMPipeline, on_progress: OnProgress, seconds: float, num_passes: int = 1
    ) -> "WatchedPipeline":
        """Watch a pipeline.

        Args:
            pipeline: whose network is used.
            on_progress: called after every step.
            seconds: from now until it is ended.
            num_passes: passes through the timesteps that the request will take.
        """
        watched = cls(pipeline.unet, copy.deepcopy(pipeline.scheduler))
        watched.on_progress, watched.num_passes = on_progress, num_passes
        watched.seconds, watched.ends_at = seconds, time.monotonic() + seconds
        return watched

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Iterator[Any]:
        """Report the steps in place of diffusers' bar.

        Raises:
            UserError: at the first step that begins after the time has passed.
        """
        steps = [] if iterable is None else list(iterable)
        for index, step in enumerate(steps):
            if time.monotonic() > self.ends_at:
                raise UserError(
                    f"this took longer than {self.seconds:g} s and was ended at step {index} of {len(steps)}; choose "
                    "fewer images or fewer steps"
                )
            yield step
            self.on_progress(Progress(self.passes_done * len(steps) + index + 1, self.num_passes * len(steps)))
        self.passes_done += 1


def watch(run: Callable[[OnProgress], T]) -> Generator[Progress, None, T]:
    """Run in a thread, and yield the newest progress from time to time.

    Closing the generator stops the run after its current step, and waits for that.

    Args:
        run: is given the function to report its progress to.

    Returns:
        What the run returns.

    Raises:
        BaseException: whatever the run raises.
    """
    newest: list[Progress] = []
    results: list[T] = []
    failures: list[BaseException] = []
    stop = StopRequest()

    def on_progress(progress: Progress) -> None:
        stop.check()
        newest[:] = [progress]

    def work() -> None:
        try:
            results.append(run(on_progress))
        except Stopped:
            pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        shown: Progress | None = None
        while thread.is_alive():
            thread.join(SECONDS_BETWEEN_UPDATES)
            if newest and newest[0] is not shown:
                shown = newest[0]
                yield shown
        if failures:
            raise failures[0]
        return results[0]
    finally:
        stop.request()
        thread.join()
