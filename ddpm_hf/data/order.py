"""The order in which images are seen, as a function of the seed alone."""

from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from ddpm_hf.runtime.randomness import generator_at


class SampleOrder:
    """An endless row of indices: one permutation of all images after the other, epoch by epoch.

    A batch may reach over the end of an epoch, so every image is seen exactly once per epoch and none is dropped.
    What stands at a position depends on the seed and the position only; a resumed run simply reads on.

    Args:
        num_images: images in the data, at least 1.
        seed: the seed of the run.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        if num_images < 1:
            raise ValueError(f"num_images: given {num_images}; allowed: at least 1")
        self.num_images = num_images
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Int64[Tensor, " num_images"]:
        return torch.randperm(self.num_images, generator=generator_at(self.seed, "order", epoch))

    def indices(self, start: int, count: int) -> Int64[Tensor, " count"]:
        """The indices at positions start to start + count - 1."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.num_images)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)
