"""Out of memory is no reason to stop where less at a time will do."""

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Parts:
    """Does something with batches of images, and with half as many at a time from where memory was too small on.

    What becomes of an image must not depend on those beside it.

    Args:
        what: is done, for the warning.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.size: int | None = None

    def __call__(self, batch: range, work: Callable[[range], Result]) -> list[Result]:
        """Do it with a batch.

        Args:
            batch: numbers of images.
            work: does it with some of them.

        Returns:
            What came of each part, in their order; of one part, where memory suffices.

        Raises:
            RuntimeError: the device's own error, where not even one image fits.
        """
        done: list[Result] = []
        start, too_many = batch.start, 0
        while start < batch.stop:
            part = range(start, min(start + (self.size or len(batch)), batch.stop))
            if not fits(partial(_append, done, work, part), is_last=len(part) == 1):
                too_many = too_many or len(part)
                self.size = len(part) // 2
                continue
            start = part.stop
            if too_many:
                logger.warning(
                    "out of memory, %s %d images at a time; from here on %d, with the same results",
                    self.what,
                    too_many,
                    self.size,
                )
                too_many = 0
        return done


def fits(work: Callable[[], object], is_last: bool) -> bool:
    """Whether some work finds enough memory; where it is the last resort, its error goes on."""
    try:
        work()
    except Exception as error:
        if is_last or not is_out_of_memory(error):
            raise
    else:
        return True
    clear_device_cache(garbage_collection=True)  # only here, when the error and its frames are gone, is there any
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Whether less at a time may do, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _append(results: list[Result], work: Callable[[range], Result], part: range) -> None:
    results.append(work(part))
