"""Into how many parts a batch is cut so that an update finds room."""

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator

from ddpm_hf.runtime.memory import fits


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
        if fits(partial(attempt, parts), is_last=parts == share):
            break
    everywhere = torch.tensor([needed], device=accelerator.device)
    return int(accelerator.gather(everywhere).max())
