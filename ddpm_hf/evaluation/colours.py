"""Whether samples have the colours of the images that they are to look like."""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from ddpm_hf.pipelines.images import from_uint8

ROOM = 0.05
"""Difference in [-1, 1] that is no drift however sure it is."""

STANDARD_ERRORS = 5.0
"""Difference from which it is no accident."""


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of each channel, for values in [-1, 1].

    Attributes:
        count: images.
        mean: of each channel, over all images and pixels.
        std: likewise.
        spread: standard deviation, over the images, of their own means.
    """

    count: int
    mean: list[float]
    std: list[float]
    spread: list[float]

    @classmethod
    def of(cls, images: UInt8[Tensor, "num_images channels height width"]) -> "Colours":
        """Measure some images."""
        values = from_uint8(images, torch.float64)
        means = values.mean((2, 3))
        return cls(
            count=len(images),
            mean=values.mean((0, 2, 3)).tolist(),
            std=values.std((0, 2, 3), correction=0).tolist(),
            spread=means.std(0, correction=0).tolist(),
        )

    def drift_from(self, real: "Colours") -> str | None:
        """Say in which channels the images differ from real ones by more than accident allows.

        All of them may be too bright or too dark, or some the one and some the other, whose casts cancel in the mean.

        Args:
            real: the colours of many real images; how much the means of single ones differ decides what is an accident.
        """
        names = ("gray",) if len(self.mean) == 1 else ("red", "green", "blue")
        drifted = [
            f"{name} {ours:+.2f} instead of {theirs:+.2f}"
            for name, ours, theirs, spread in zip(names, self.mean, real.mean, real.spread, strict=True)
            if abs(ours - theirs) > ROOM + STANDARD_ERRORS * spread / self.count**0.5
        ]
        largest = 1 + STANDARD_ERRORS / (2 * self.count) ** 0.5  # the standard error of a standard deviation
        drifted += [
            f"{name} ±{ours:.2f} from image to image instead of ±{theirs:.2f}"
            for name, ours, theirs in zip(names, self.spread, real.spread, strict=True)
            if ours > max(theirs + ROOM, theirs * largest)
        ]
        return ", ".join(drifted) or None

    def figures(self) -> dict[str, list[float]]:
        """For the log."""
        return {
            "channel_mean": [round(value, 4) for value in self.mean],
            "channel_std": [round(value, 4) for value in self.std],
            "channel_spread": [round(value, 4) for value in self.spread],
        }
