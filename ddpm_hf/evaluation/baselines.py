"""What the figures of held-out images come to without any model: the worst that one should be held against.

Real images have no SSIM, PSNR or bits/dim of their own to match: the first two are those of pairs, and of an image and
itself they are 1 and infinite; the entropy of images is not known.
"""

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ddpm_hf.evaluation.reconstruction import MIN_SSIM_SIDE, psnr, ssim

Images = UInt8[Tensor, "batch channels height width"]

NUM_LEVELS = 256
MAX_TRAINING_IMAGES = 10_000
MAX_BINS = 4_000_000
"""Counts of levels that are in memory at a time."""


def unrelated_pairs(originals: Images) -> dict[str, float]:
    """Mean SSIM and PSNR of each real image and another one: what remains when nothing of the original does.

    Args:
        originals: in random order; each is compared with the next one, the last with the first.

    Returns:
        "ssim" and "psnr" in dB; without a figure that is not finite, or that the images are too small or too few for.
    """
    if len(originals) < 2:
        return {}
    others = originals.roll(1, 0)
    values = {"psnr": float(psnr(others, originals).mean())}
    if min(originals.shape[2:]) >= MIN_SSIM_SIDE:
        values["ssim"] = float(ssim(others, originals).mean())
    return {name: value for name, value in sorted(values.items(), reverse=True) if abs(value) != float("inf")}


def histogram_bits(
    training: UInt8[Tensor, "others channels height width"], images: Images
) -> Float64[Tensor, " batch"]:
    """Bits per dimension of a coder that knows how often each pixel has each level, and of no two pixels together.

    The pixels are coded one by one with probability (count + 1/256) / (images + 1), as if one more training image had
    had all levels alike. Without any knowledge it is 8.

    Args:
        training: at least 1 image.
        images: to be coded; none of them should be a training image.
    """
    known, coded = training.flatten(1), images.flatten(1).long()
    num_pixels, bits = known.shape[1], torch.zeros(len(images), dtype=torch.float64)
    for start in range(0, num_pixels, MAX_BINS // NUM_LEVELS):
        part = slice(start, start + MAX_BINS // NUM_LEVELS)
        bins = torch.arange(known[:1, part].shape[1]) * NUM_LEVELS
        counts = torch.zeros(len(bins) * NUM_LEVELS, dtype=torch.float64)
        for block in known.split(512):
            counts += torch.bincount((block[:, part].long() + bins).flatten(), minlength=len(counts))
        probabilities = (counts + 1 / NUM_LEVELS) / (len(known) + 1)
        bits -= probabilities.log2()[coded[:, part] + bins].sum(1)
    return bits / num_pixels
