"""Images outside (PIL, numpy, [0, 1]) and inside ([-1, 1], channels first).

Imports nothing of ddpm_hf: it travels beside pipeline.py in a Hub repo.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

OUTPUT_TYPES = ("pil", "np", "pt")
PIL_MODES = {1: "L", 3: "RGB"}

Images = Image.Image | Sequence[Image.Image] | np.ndarray | torch.Tensor


def check_output_type(output_type: str | None, channels: int) -> None:
    """Refuse what `to_output` cannot make, before any work is done.

    Args:
        output_type: asked for.
        channels: of the images.

    Raises:
        ValueError: the type is unknown, or PIL has no mode for so many channels.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; possible are {', '.join(map(repr, OUTPUT_TYPES))}")
    if output_type == "pil" and channels not in PIL_MODES:
        raise ValueError(f"output_type 'pil' is for 1 or 3 channels, the model has {channels}; use 'np' or 'pt'")


def to_output(x_0: torch.Tensor, output_type: str | None) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Turn images in [-1, 1] into what a pipeline returns.

    Args:
        x_0: (batch, channels, height, width); clipped to [-1, 1].
        output_type: "pil", one channel as mode "L"; "np", (batch, height, width, channels) in [0, 1]; "pt", (batch,
            channels, height, width) in [0, 1].
    """
    pixels = (x_0.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return pixels
    pixels = pixels.permute(0, 2, 3, 1).cpu()
    if output_type == "np":
        return pixels.numpy()
    levels = (pixels * 255).round().to(torch.uint8).numpy()
    mode = PIL_MODES[levels.shape[3]]
    return [Image.fromarray(image[:, :, 0] if mode == "L" else image) for image in levels]


def to_input(images: Images, channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Turn images that a person gives into what a model of this shape was trained on.

    Args:
        images: one PIL image or several, of mode "L" or "RGB"; or an array as `to_output` makes it ("np" in [0, 1] or
            uint8, "pt" in [0, 1]).
        channels: of the model.
        size: height and width of the model's images, in pixels.

    Returns:
        (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: the mode, size, number of channels or range is not the model's.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, torch.Tensor):
        pixels = images.float()
    elif isinstance(images, np.ndarray):
        scale = 255 if images.dtype == np.uint8 else 1
        if images.ndim != 4:
            raise ValueError(f"images have shape {images.shape}; possible is (batch, height, width, channels)")
        pixels = torch.from_numpy(images.astype(np.float32) / scale).permute(0, 3, 1, 2)
    else:
        pixels = torch.stack([_pixels(image, channels) for image in images])
    shape = (channels, *size)
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
        given = tuple(pixels.shape[1:]) if pixels.ndim == 4 else f"{pixels.ndim} dimensions"
        raise ValueError(
            f"images have {given}; the model's are {shape} (channels, height, width): resize or crop them first"
        )
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images range from {low:g} to {high:g}; possible is 0 to 1, or uint8 arrays, or PIL images")
    return pixels * 2 - 1


def _pixels(image: Image.Image, channels: int) -> torch.Tensor:
    mode = PIL_MODES.get(channels)
    if image.mode != mode:
        raise ValueError(
            f"an image has mode {image.mode!r}; the model's is {mode!r}: image.convert({mode!r}) makes it so"
        )
    array = np.array(image, dtype=np.float32).reshape(image.height, image.width, channels)
    return torch.from_numpy(array / 255).permute(2, 0, 1)
