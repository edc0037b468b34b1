"""Validation of the network's configuration and input."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# arguments of UNet2DModel with the values that DDPMUNet supports
SUPPORTED: dict[str, Sequence[Any]] = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D", None),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
    "initialization": ("ddpm", "pytorch"),
}
DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")


class UnsupportedError(ValueError):
    """A configuration that `diffusers.UNet2DModel` may have, and DDPMUNet has not."""


def check_config(config: Mapping[str, Any]) -> None:
    """Validate the arguments of `DDPMUNet`.

    Args:
        config: the arguments of `DDPMUNet`.

    Raises:
        UnsupportedError: naming the argument and its possible values.
        ValueError: naming the arguments that contradict each other.
    """
    for name, possible in SUPPORTED.items():
        _check(name, config[name], possible)
    channels = config["block_out_channels"]
    for name, possible in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for block_type in config[name]:
            _check(f"each of {name}", block_type.removeprefix("UNetRes"), possible)
        if len(config[name]) != len(channels):
            raise ValueError(
                f"{name} has {len(config[name])} entries but block_out_channels has {len(channels)}: give one per level"
            )
    groups = config["norm_num_groups"]
    odd = [count for count in channels if count % groups]
    if odd:
        raise ValueError(f"block_out_channels {odd} cannot be split into norm_num_groups={groups} equal groups")


def _check(name: str, value: Any, possible: Sequence[Any]) -> None:
    if value not in possible:
        allowed = " or ".join(map(repr, possible))
        raise UnsupportedError(
            f"{name} must be {allowed} in DDPMUNet, not {value!r}; diffusers.UNet2DModel may have it"
        )


def check_input(
    sample: Tensor,
    timesteps: Tensor,
    class_labels: Tensor | None,
    *,
    in_channels: int,
    side_factor: int,
    num_timesteps: int | None,
    num_classes: int | None,
) -> None:
    """Validate the input of `DDPMUNet`. Values are read only on a CPU: to read them on a GPU would stall it.

    Args:
        sample: noisy images.
        timesteps: of the images, or one for all.
        class_labels: of the images.
        in_channels: channels of the network's input.
        side_factor: height and width must be multiples of it.
        num_timesteps: T; None if unknown.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: naming the expected shape or range, and the given one.
    """
    if sample.ndim != 4 or sample.shape[1] != in_channels:
        raise ValueError(f"sample must have shape (batch, {in_channels}, height, width), not {tuple(sample.shape)}")
    if not sample.is_floating_point():
        raise ValueError(f"sample must be floating point, in [-1, 1] at t = 0; it is {sample.dtype}")
    batch, _, height, width = sample.shape
    if height % side_factor or width % side_factor:
        raise ValueError(f"height and width of sample must be multiples of {side_factor}, not {height} and {width}")
    if timesteps.ndim > 1 or (timesteps.ndim == 1 and timesteps.shape[0] not in (1, batch)):
        raise ValueError(f"timestep must be a number or have shape ({batch},), not {tuple(timesteps.shape)}")
    if timesteps.dtype == torch.bool or timesteps.is_complex():
        raise ValueError(f"timestep must be an integer or real number, not {timesteps.dtype}")
    _check_labels(class_labels, batch, num_classes)
    # values cannot be read while the network is compiled, or transformed by torch.func
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    _check_range("timestep", timesteps, num_timesteps)
    if class_labels is not None:
        _check_range("class_labels", class_labels, num_classes)


def _check_labels(class_labels: Tensor | None, batch: int, num_classes: int | None) -> None:
    if num_classes is None and class_labels is not None:
        raise ValueError("class_labels were given, but the network has no classes: set num_class_embeds, or omit them")
    if num_classes is not None and class_labels is None:
        raise ValueError(f"class_labels are missing: a tensor of shape ({batch},) with values 0 to {num_classes - 1}")
    if class_labels is not None and class_labels.shape != (batch,):
        raise ValueError(f"class_labels must have shape ({batch},), not {tuple(class_labels.shape)}")
    if class_labels is not None and class_labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"class_labels must be int32 or int64, not {class_labels.dtype}")


def _check_range(name: str, values: Tensor, limit: int | None) -> None:
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and (limit is None or high < limit)):
        bounds = "0 or more" if limit is None else f"0 to {limit - 1}"
        raise ValueError(f"{name} must be {bounds}; it reaches from {low} to {high}")
