"""Randomness as a function of (seed, position), never of history.

Whatever is drawn at one place of a run (the order of an epoch, the noise of a step, an image of a sampling run)
comes from a generator seeded by that place alone. So a resumed run draws what the uninterrupted one would have drawn,
and no generator state is ever saved.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor


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


def draw_normal(
    shape: Sequence[int],
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Draw standard normal numbers: those of diffusers' `randn_tensor`, to the bit.

    What generators on the CPU draw goes to a GPU in one copy, which the host does not wait for.

    Args:
        shape: the first dimension is that of a list of generators.
        generator: one for all, or a list of one for each; None is the device's own.
        device: of the result.
        dtype: of the result.
    """
    generators = generator if isinstance(generator, list) else [generator]
    if any(each is None or each.device.type != "cpu" for each in generators):
        return randn_tensor(tuple(shape), generator, device, dtype)
    # A new buffer each time: PyTorch hands the memory of a pinned one out again only when it has been copied.
    is_pinned = device.type == "cuda"
    noise = torch.empty(tuple(shape), dtype=dtype, pin_memory=is_pinned)
    if len(generators) == 1:
        noise.normal_(generator=generators[0])
    else:
        for row, each in zip(noise, generators, strict=True):
            row.normal_(generator=each)
    return noise.to(device, non_blocking=is_pinned)
