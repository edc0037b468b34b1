"""Randomness as a function of (seed, position), never of history.

Whatever is drawn at one place of a run (the order of an epoch, the noise of a step, an image of a sampling run)
comes from a generator seeded by that place alone. So a resumed run draws what the uninterrupted one would have drawn,
and no generator state is ever saved.
"""

import hashlib
from collections.abc import Iterable

import torch


def derive_seed(seed: int, *position: int | str) -> int:
    """Hash a seed and a position to a seed of its own, in [0, 2**63).

    Args:
        seed: the seed of the run.
        position: what the randomness is for and where it stands, such as ``("noise", step)``.
    """
    key = repr((seed, *position)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator_at(seed: int, *position: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make the generator that belongs to a position; see `derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *position))


def image_seeds(seed: int, indices: Iterable[int]) -> list[int]:
    """The seed of each image of a sampling run: image i is the same in any batch, process or run of that seed."""
    return [derive_seed(seed, "image", index) for index in indices]
