"""Follow a sampling run from outside while it goes on, and stop it between two steps."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL import Image

from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.runtime.signals import Stopped, StopRequest

T = TypeVar("T")

EVERY = 0.15
"""Seconds between two looks at a run: about as often as an eye follows."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        done: steps done.
        total: steps in all.
        images: what the network takes the images for, at this step; None where they are not shown.
    """

    done: int
    total: int
    images: list[Image.Image] | None = None


@dataclass(frozen=True)
class Result(Generic[T]):
    """What a run came to."""

    value: T


Tell = Callable[[Progress], None]


class WatchedPipeline(DDPMPipeline):
    """A pipeline that tells how far it is, whatever it does; it shares the network, but no scheduler, with another."""

    tell: Tell
    num_runs = 1
    runs_done = 0

    @classmethod
    def around(cls, pipeline: DDPMPipeline, tell: Tell, num_runs: int = 1) -> "WatchedPipeline":
        """Watch what is done with a pipeline.

        Args:
            pipeline: whose network works.
            tell: is told of every step.
            num_runs: runs through the timesteps that what will be asked for takes.
        """
        watched = cls(pipeline.unet, copy.deepcopy(pipeline.scheduler))
        watched.tell, watched.num_runs = tell, num_runs
        return watched

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Iterator[Any]:
        """Stand for diffusers' bar: pass the steps through and tell of each."""
        steps = [] if iterable is None else list(iterable)
        for index, step in enumerate(steps):
            yield step
            self.tell(Progress(self.runs_done * len(steps) + index + 1, self.num_runs * len(steps)))
        self.runs_done += 1


def watch(run: Callable[[Tell], T]) -> Iterator[Progress | Result[T]]:
    """Do something in a thread of its own, and yield how far it is, and at last its result.

    Closing the iterator stops the run after its present step, and waits for that. What the run raises is raised here.

    Args:
        run: is given the function to tell its progress to.
    """
    news: list[Progress] = []  # the newest alone
    outcome: list[Result[T]] = []
    failure: list[BaseException] = []
    stop = StopRequest()

    def tell(progress: Progress) -> None:
        stop.check()
        news[:] = [progress]

    def work() -> None:
        try:
            outcome.append(Result(run(tell)))
        except Stopped:
            pass
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        shown: Progress | None = None
        while thread.is_alive():
            thread.join(EVERY)
            if news and news[0] is not shown:
                shown = news[0]
                yield shown
        if failure:
            raise failure[0]
        yield outcome[0]
    finally:
        stop.request()
        thread.join()
