"""Out of memory is no reason to stop where less at a time will do."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def fewest_parts(num_parts: int, share: int, attempt: Callable[[int], None], accelerator: Accelerator) -> int:
    """Find into how many parts a process's share of the batch must be cut so that each process has room for one.

    Args:
        num_parts: to begin with; a divisor of share.
        share: images of one process per update.
        attempt: uses as much memory as an update in so many parts; without any exchange between processes.
        accelerator: the processes, of which the one with the least room decides.

    Raises:
        RuntimeError: the device's own error, if there is no room for a single image.
    """
    needed = num_parts
    for parts in (count for count in range(num_parts, share + 1) if share % count == 0):
        needed = parts
        if _fits(partial(attempt, parts), is_last=parts == share):
            break
    everywhere = torch.tensor([needed], device=accelerator.device)
    return int(accelerator.gather(everywhere).max())


def in_pieces(work: Callable[[Sequence[Item]], Result], items: Sequence[Item], what: str) -> Iterator[Result]:
    """Do some work on all items together, or on halves, quarters and so on where memory does not suffice.

    Args:
        work: on some of the items.
        items: all of them.
        what: they are, for the warning.

    Raises:
        RuntimeError: the device's own error, if there is no room for a single item.
    """
    size, start = len(items), 0
    while start < len(items):
        piece, results = items[start : start + size], list[Result]()
        if _fits(partial(_append, results, work, piece), is_last=len(piece) == 1):
            yield results[0]
            start += len(piece)
        else:
            size = -(-len(piece) // 2)
            logger.warning("not enough memory for %d %s at once: going on with %d", len(piece), what, size)


def _append(results: list[Result], work: Callable[[Sequence[Item]], Result], piece: Sequence[Item]) -> None:
    results.append(work(piece))


def _fits(work: Callable[[], None], is_last: bool) -> bool:
    """Whether some work finds enough memory; where it is the last resort, its error goes on."""
    try:
        work()
    except Exception as error:
        if is_last or not should_reduce_batch_size(error):
            raise
    else:
        return True
    gc.collect()  # only here, when the error and its frames are gone, is there something to free
    clear_device_cache()
    return False
