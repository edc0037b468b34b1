"""Smaller chunks of work where the device runs out of memory."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Chunks:
    """Runs work on batches of images, and halves the chunk size after running out of memory.

    The result for an image must not depend on the other images of its chunk.

    Args:
        name: what the work does, for the warning, such as "sampling".

    Attributes:
        size: largest chunk that is known to fit; None before memory has run out.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.size: int | None = None

    def __call__(self, batch: range, work: Callable[[range], Result]) -> list[Result]:
        """Run the work on a batch.

        Args:
            batch: indices of images.
            work: is given some of the indices, in order.

        Returns:
            The result of each chunk, in order; a single one where memory suffices.

        Raises:
            RuntimeError: the device's own error, if not even one image fits.
        """
        results: list[Result] = []
        start, failed_size = batch.start, 0
        while start < batch.stop:
            chunk = range(start, min(start + (self.size or len(batch)), batch.stop))
            if not fits(partial(_append, results, work, chunk), is_last=len(chunk) == 1):
                failed_size = failed_size or len(chunk)
                self.size = len(chunk) // 2
                continue
            start = chunk.stop
            if failed_size:
                logger.warning(
                    "Out of memory while %s %d images at a time: using chunks of %d from now on. The results are the "
                    "same.",
                    self.name,
                    failed_size,
                    self.size,
                )
                failed_size = 0
        return results


def first_that_fits(candidates: Sequence[int], attempt: Callable[[int], object]) -> int:
    """Find the first of several settings that fits in memory.

    Args:
        candidates: settings to try, the least memory last.
        attempt: uses as much memory as the setting needs.

    Raises:
        RuntimeError: the device's own error, if not even the last one fits.
    """
    return next(each for each in candidates if fits(partial(attempt, each), is_last=each == candidates[-1]))


def fits(work: Callable[[], object], is_last: bool) -> bool:
    """Whether some work finds enough memory; if it is the last resort, its error is raised."""
    try:
        work()
    except Exception as error:
        if is_last or not is_out_of_memory(error):
            raise
    else:
        return True
    # Only here, where the error and the frames that it holds are gone, can the memory be freed.
    clear_device_cache(garbage_collection=True)
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device, of whatever kind, has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _append(results: list[Result], work: Callable[[range], Result], chunk: range) -> None:
    results.append(work(chunk))
