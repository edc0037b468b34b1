"""Images between the page and the model: enlarged to be seen, cut to size to be used."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_hf.data.decoding import Transform, open_image
from ddpm_hf.demo.limits import Limits
from ddpm_hf.demo.model import DemoModel
from ddpm_hf.pipelines.pictures import image_grid
from ddpm_hf.runtime.errors import UserError

EDITOR_SIDE = 320
"""Pixels of the longer side of the canvas to paint on."""

PICTURE_SIDE = 900
"""Pixels that a grid shall be about as wide as."""


def grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay images out to be seen: small ones enlarged smoothly, so that the whole is about PICTURE_SIDE wide.

    Args:
        images: of one size; at least one.
        columns: in a row; None makes the grid as square as it can be.
    """
    across = columns or int(np.ceil(np.sqrt(len(images))))
    return image_grid(images, columns, min_side=min(PICTURE_SIDE // max(across, 2), 256))


def read_upload(model: DemoModel, file: str | Path | None) -> Image.Image | None:
    """Open an uploaded file and cut its middle to the model's size.

    Args:
        model: whose images it shall be like.
        file: as the page stored it; None if nothing was uploaded.

    Raises:
        UserError: it is too large, or no image.
    """
    if file is None:
        return None
    check_upload(Path(file), model.limits)
    height, width = model.size
    try:
        opened = open_image(Path(file))
    except ValueError as error:
        raise UserError(f"Image: the uploaded file cannot be read as one: {error}") from None
    side = max(height, width)
    square = Transform(side, model.channels)(opened).transpose(1, 2, 0)
    image = Image.fromarray(square[:, :, 0] if model.mode == "L" else square)
    left, top = (side - width) // 2, (side - height) // 2
    return image.crop((left, top, left + width, top + height))


def check_upload(file: Path, limits: Limits) -> None:
    """Refuse a file by its size on disk and the pixels it says it has, before anything is decoded.

    Raises:
        UserError: naming the limit.
    """
    if file.stat().st_size > limits.upload_bytes:
        raise UserError(f"Image: the file has {file.stat().st_size:,} bytes; at most {limits.upload_bytes:,} are read")
    try:
        with Image.open(file) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UserError("Image: the uploaded file is no image that can be read; try a PNG or JPEG") from None
    if width * height > limits.upload_pixels:
        raise UserError(f"Image: {width} x {height} pixels; at most {limits.upload_pixels:,} in all are decoded")


def canvas(image: Image.Image) -> Image.Image:
    """Enlarge an image smoothly to be painted on."""
    factor = max(1, EDITOR_SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC).convert("RGB")


def read_mask(model: DemoModel, layers: Sequence[Image.Image]) -> Image.Image:
    """Make the model's mask of what was painted: white where at least half of a pixel is.

    Args:
        model: of whose size the mask is.
        layers: of the editor, painted where they are not transparent.
    """
    height, width = model.size
    covered = np.zeros((height, width), dtype=np.float32)
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A").point(lambda level: 255 if level else 0)
        covered = np.maximum(covered, np.asarray(alpha.resize((width, height), Image.Resampling.BOX), np.float32))
    return Image.fromarray(np.where(covered >= 127.5, 255, 0).astype(np.uint8))
