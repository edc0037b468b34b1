"""Batches in parts that fit in memory."""

import logging
from collections.abc import Callable
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
            RuntimeError: where not even one image fits.
        """
        done: list[Result] = []
        start, too_many = batch.start, 0
        while start < batch.stop:
            part = range(start, min(start + (self.size or len(batch)), batch.stop))
            try:
                done.append(work(part))
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                too_many = too_many or len(part)
                self.size = len(part) // 2
            else:
                start = part.stop
                if too_many:
                    logger.warning(
                        "out of memory, %s %d images at a time; from here on %d, with the same results",
                        self.what,
                        too_many,
                        self.size,
                    )
                    too_many = 0
                continue
            clear_device_cache(garbage_collection=True)  # out of the clause, where no traceback holds tensors
        return done


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may do, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
