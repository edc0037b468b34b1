"""Every change between images outside (uint8, PIL, [0, 1]) and inside ([-1, 1], channels first)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.image_loading import make_transform

OUTPUT_TYPES = ("pil", "np", "pt")
PIL_MODES = {1: "L", 3: "RGB"}

Images = Image.Image | Sequence[Image.Image] | np.ndarray | torch.Tensor
OutputImages = list[Image.Image] | np.ndarray | torch.Tensor


def from_uint8(images: UInt8[Tensor, "..."], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Map 0 to 255 linearly to [-1, 1], the range of DDPM, section 3.3.

    Args:
        images: 0 to 255.
        dtype: of the result.

    Returns:
        The images in [-1, 1], on the same device.
    """
    return images.to(dtype).div_(127.5).sub_(1.0)


def to_uint8(images: Shaped[Tensor, "..."], value_range: tuple[float, float] | None = None) -> UInt8[Tensor, "..."]:
    """Round images to the nearest of 256 levels.

    Args:
        images: uint8, which stay as they are, or floating point.
        value_range: black and white of floating-point images, such as (0, 1) or (-1, 1). It is never guessed: a batch
            in [-1, 1] without a dark pixel looks like one in [0, 1].

    Returns:
        The images in 0 to 255, on the same device.

    Raises:
        ValueError: floating-point images have no value_range, exceed it or are not finite.
    """
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images of {images.dtype}; possible are uint8, or floating point with its value_range")
    if value_range is None:
        raise ValueError("floating-point images without value_range; give (0, 1) or (-1, 1), as they are")
    low, high = value_range
    least, most = float(images.min()), float(images.max())
    slack = 1e-4 * (high - low)
    if not (least >= low - slack and most <= high + slack):  # also where one of them is NaN
        raise ValueError(
            f"images reach from {least:g} to {most:g}; possible with value_range {value_range} is {low:g} to {high:g}:"
            " clip them, or give the range that they have"
        )
    return ((images.double() - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)


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


def to_output(x_0: torch.Tensor, output_type: str | None) -> OutputImages:
    """Turn images in [-1, 1] into what a pipeline returns.

    Args:
        x_0: (batch, channels, height, width); clipped to [-1, 1].
        output_type: "pil", one channel as mode "L"; "np", (batch, height, width, channels) in [0, 1]; "pt", (batch,
            channels, height, width) in [0, 1]; of both, values that are not finite are NaN.

    Raises:
        FloatingPointError: if "pil" is asked for and values are not finite, since a picture would hide it.
    """
    x_0 = x_0.float()
    pixels = (x_0 / 2 + 0.5).clamp(0, 1).where(x_0.isfinite(), torch.nan)
    if output_type == "pt":
        return pixels
    pixels = pixels.permute(0, 2, 3, 1).cpu()
    if output_type == "np":
        return pixels.numpy()
    if broken := int((~pixels.isfinite()).flatten(1).any(1).sum()):
        raise FloatingPointError(
            f"{broken} of {len(pixels)} images hold values that are NaN or infinite: the weights are broken, "
            "have diverged in training, or overflow in half precision"
        )
    levels = to_uint8(pixels, (0, 1)).numpy()
    mode = PIL_MODES[levels.shape[3]]
    return [Image.fromarray(image[:, :, 0] if mode == "L" else image) for image in levels]


def to_input(images: Images, channels: int, size: tuple[int, int], what: str = "images") -> torch.Tensor:
    """Turn images that a person gives into what a model of this shape was trained on.

    Args:
        images: one PIL image or several, of mode "L" or "RGB"; or an array as `to_output` makes it ("np" in [0, 1] or
            uint8, "pt" in [0, 1]).
        channels: of the model.
        size: height and width of the model's images, in pixels.
        what: what to call them in an error.

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
        if images.ndim != 4:
            raise ValueError(f"{what}: shape {images.shape}; possible is (batch, height, width, channels)")
        scale = 255 if images.dtype == np.uint8 else 1
        pixels = torch.from_numpy(images.astype(np.float32) / scale).permute(0, 3, 1, 2)
    elif isinstance(images, list | tuple) and images and all(isinstance(image, Image.Image) for image in images):
        pixels = torch.stack([_pixels(image, channels, size, what) for image in images])
    else:
        kinds = {type(image).__name__ for image in images} if isinstance(images, list | tuple) else {repr(images)}
        given = ", ".join(sorted(kinds)) or "none"
        raise ValueError(f"{what}: given {given}; possible are PIL images, one or more, an array or a tensor")
    if tuple(pixels.shape[1:]) != (channels, *size):
        raise ValueError(
            f"{what}: shape {tuple(pixels.shape)}; possible is (batch, {channels}, {size[0]}, {size[1]}), the model's"
            " (batch, channels, height, width): resize or crop first"
        )
    if not len(pixels):
        raise ValueError(f"{what}: none were given; possible are one or more")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{what}: values from {low:g} to {high:g}; possible is 0 to 1, or uint8 arrays, or PIL images")
    return pixels * 2 - 1


def as_trained(image: Image.Image, size: tuple[int, int], channels: int, dataset: DatasetConfig) -> Image.Image:
    """Convert an image of any mode and size as those that a model was trained on.

    Args:
        image: as it was opened.
        size: height and width of the model's images, in pixels.
        channels: of the model: 1 or 3.
        dataset: the options that the model was trained with; for other models, the defaults.

    Returns:
        An image of mode "L" or "RGB".

    Raises:
        UserError: it has 16 bits or floats, and `dataset.value_range` is auto and its own values do not tell the range.
    """
    pixels = make_transform(dataset, size, channels)(image).transpose(1, 2, 0)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def _pixels(image: Image.Image, channels: int, size: tuple[int, int], what: str) -> torch.Tensor:
    mode = PIL_MODES.get(channels)
    if image.mode != mode:
        raise ValueError(
            f"{what}: mode {image.mode!r}; possible is {mode!r}, the model's: image.convert({mode!r}) makes it so"
        )
    if (image.height, image.width) != size:
        raise ValueError(
            f"{what}: {image.width} x {image.height} pixels; possible is {size[1]} x {size[0]}, the model's:"
            f" image.resize({size[::-1]}) makes it so"
        )
    array = np.array(image, dtype=np.float32).reshape(*size, channels)
    return torch.from_numpy(array / 255).permute(2, 0, 1)
