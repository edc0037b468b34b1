"""What a visitor may ask for and upload, checked so that a page on a public address stays within one machine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.pixels import open_image
from ddpm_hf.pipelines.images import as_trained
from ddpm_hf.runtime.errors import UserError

MAX_SEED = 2**32 - 1

MAX_PIXELS_AT_ONCE = 2**22
"""In all images of one request: 64 at 256x256."""


@dataclass(frozen=True)
class Limits:
    """The largest request.

    Attributes:
        images: drawn at once.
        steps: of denoising, per image.
        frames: of an interpolation.
        variants: of an inpainted image.
        inpainting_steps: of denoising; RePaint takes each of them ten times.
        upload_bytes: of one uploaded file.
        upload_pixels: of one uploaded image, checked before it is decoded.
        evaluations: of the network, counted for each image: images times steps, twice with guidance.
        seconds: that one request may take, once it is begun.
        waiting: requests in the queue; one is worked on at a time.
        jobs: of one visitor that wait or run.
        uploads: of one visitor within a minute; each stroke of the brush is several.
        stored_bytes: of all uploads and results together; beyond it the oldest are removed.
    """

    images: int = 64
    steps: int = 1000
    frames: int = 16
    variants: int = 16
    inpainting_steps: int = 250
    upload_bytes: int = 10 * 2**20
    upload_pixels: int = 2**24
    evaluations: int = 20_000
    seconds: float = 120
    waiting: int = 20
    jobs: int = 3
    uploads: int = 120
    stored_bytes: int = 2**28

    def within(self, time_steps: int, height: int, width: int) -> "Limits":
        """The limits for a model with this number of time steps and images of this size."""
        at_once = max(MAX_PIXELS_AT_ONCE // (height * width), 2)
        return replace(
            self,
            images=min(self.images, at_once),
            steps=min(self.steps, time_steps),
            frames=min(self.frames, at_once),
            variants=min(self.variants, at_once),
            inpainting_steps=min(self.inpainting_steps, time_steps),
        )

    def check_cost(self, count: int, evaluations: int) -> None:
        """Refuse a request whose parts are allowed, but not their product.

        Args:
            count: number of images.
            evaluations: of the network for each of them.

        Raises:
            UserError: if it takes too many evaluations.
        """
        if count * evaluations > self.evaluations:
            raise UserError(
                f"{count} images of {evaluations:,} network evaluations each: {count * evaluations:,} in all; at most "
                f"{self.evaluations:,} are done for one request; choose fewer images or fewer steps"
            )


def number(name: str, value: Any, low: float, high: float, whole: bool = True) -> Any:
    """Read a number that a visitor gives.

    Args:
        name: of the field, for the message.
        value: what the page sent.
        low: least.
        high: greatest.
        whole: whether it has to be a whole number, and becomes an int.

    Raises:
        UserError: if it is not one, or outside the limits.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        given = "nothing" if value is None else f"{value:,}" if is_number else repr(value)
        kind = "a whole number from " if whole else ""
        raise UserError(f"{name}: given {given}; possible is {kind}{low:,} to {high:,}")
    return int(value) if whole else float(value)


def read_upload(
    file: str | Path | None, size: tuple[int, int], mode: str, limits: Limits, dataset: DatasetConfig | None = None
) -> Image.Image | None:
    """Open an uploaded file, and convert it as the model's training images were.

    Args:
        file: as the page stored it; None if nothing was uploaded.
        size: height and width of the model's images.
        mode: PIL's mode of them, L or RGB.
        limits: of bytes and pixels, checked before the image is decoded.
        dataset: the options that the model was trained with; None for the defaults.

    Raises:
        UserError: if it is too large, or not an image.
    """
    if file is None:
        return None
    file = Path(file)
    if file.stat().st_size > limits.upload_bytes:
        raise UserError(f"Image: the file has {file.stat().st_size:,} bytes; at most {limits.upload_bytes:,} are read")
    try:
        with Image.open(file) as unread:
            across, down = unread.size
        opened = open_image(file) if across * down <= limits.upload_pixels else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("Image: the uploaded file cannot be read as an image; try a PNG or JPEG") from error
    if opened is None:
        raise UserError(f"Image: {across} x {down} pixels; at most {limits.upload_pixels:,} in all are decoded")
    return as_trained(opened, size, len(mode), dataset or DatasetConfig())


def read_mask(layers: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Turn what was painted into a mask of the model's size: white where at least half of a pixel is covered.

    Args:
        layers: of the editor, painted where they are not transparent.
        size: height and width of the model's images.
    """
    height, width = size
    covered = np.zeros((height, width), dtype=np.float32)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda level: 255 if level else 0)
        covered = np.maximum(covered, np.asarray(alpha.resize((width, height), Image.Resampling.BOX), np.float32))
    return Image.fromarray(np.where(covered >= 127.5, 255, 0).astype(np.uint8))
