"""What one visitor may ask for, so that a page on a public address stays within one machine."""

from dataclasses import dataclass
from typing import Any

from ddpm_hf.runtime.errors import UserError

MAX_SEED = 2**32 - 1

MAX_PIXELS_AT_ONCE = 2**22
"""Of all images of one request: 64 at 256x256."""


@dataclass(frozen=True)
class Limits:
    """The most of everything.

    Attributes:
        images: drawn at once.
        steps: of denoising, for one image.
        frames: of an interpolation.
        variants: of an inpainted image.
        inpainting_steps: RePaint takes each of them ten times.
        upload_bytes: of one uploaded file.
        upload_pixels: of one uploaded image, before it is decoded.
        waiting: requests in the queue; one is worked on at a time.
    """

    images: int = 64
    steps: int = 1000
    frames: int = 16
    variants: int = 16
    inpainting_steps: int = 250
    upload_bytes: int = 10 * 2**20
    upload_pixels: int = 2**24
    waiting: int = 20

    def within(self, time_steps: int, height: int, width: int) -> "Limits":
        """The limits for a model of so many time steps and images of this size."""
        at_once = max(MAX_PIXELS_AT_ONCE // (height * width), 2)
        return Limits(
            images=min(self.images, at_once),
            steps=min(self.steps, time_steps),
            frames=min(self.frames, at_once),
            variants=min(self.variants, at_once),
            inpainting_steps=min(self.inpainting_steps, time_steps),
            upload_bytes=self.upload_bytes,
            upload_pixels=self.upload_pixels,
            waiting=self.waiting,
        )


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Read a whole number that a visitor gives.

    Args:
        name: of the field, for the message.
        value: what came from the page.
        low: least.
        high: greatest.

    Raises:
        UserError: it is none, or not within the limits.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or value != int(value):
        given = "nothing" if value is None else f"{value:,}" if is_number else repr(value)
        raise UserError(f"{name}: given {given}; possible is a whole number from {low:,} to {high:,}")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """Read a number that a visitor gives; see `whole`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name}: given {'nothing' if value is None else value}; possible is {low:g} to {high:g}")
    return float(value)
