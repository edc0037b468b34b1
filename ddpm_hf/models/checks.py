"""What the network refuses, in words that name the mistake and the remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# what UNet2DModel also has; the value that ours has
ONLY: dict[str, Sequence[Any]] = {
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
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


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse what `DDPMUNet` cannot express, or nobody could.

    Args:
        config: the arguments of `DDPMUNet`.

    Raises:
        ValueError: naming the argument, what it may be, and where else to turn.
    """
    for name, possible in ONLY.items():
        _check(name, config[name], possible)
    channels = config["block_out_channels"]
    for name, possible in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for block_type in config[name]:
            _check(f"each of {name}", block_type.removeprefix("UNetRes"), possible)
        if len(config[name]) != len(channels):
            raise ValueError(
                f"{name} has {len(config[name])} entries but block_out_channels has {len(channels)}: give one per level"
            )
    groups, head_dim = config["norm_num_groups"], config["attention_head_dim"]
    odd = [count for count in channels if count % groups]
    if odd:
        raise ValueError(f"block_out_channels {odd} cannot be split into norm_num_groups={groups} equal groups")
    heads = [count for count in attention_channels(config) if head_dim and count % head_dim]
    if heads:
        raise ValueError(f"levels of {heads} channels cannot be split into heads of attention_head_dim={head_dim}")


def attention_channels(config: Mapping[str, Any]) -> set[int]:
    """Give the channels of the levels that have attention, the middle included."""
    channels = config["block_out_channels"]
    down = zip(config["down_block_types"], channels, strict=True)
    up = zip(config["up_block_types"], reversed(channels), strict=True)
    with_attention = {count for block_type, count in (*down, *up) if "Attn" in block_type}
    return with_attention | ({channels[-1]} if config["add_attention"] else set())


def _check(name: str, value: Any, possible: Sequence[Any]) -> None:
    if value not in possible:
        allowed = " or ".join(map(repr, possible))
        raise ValueError(f"{name} must be {allowed} in DDPMUNet, not {value!r}; diffusers.UNet2DModel may have it")


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
    """Refuse input that the network cannot take. Values are looked at only where that does not stall a device.

    Args:
        sample: noisy images.
        timesteps: as the caller gave them, as a tensor.
        class_labels: as the caller gave them.
        in_channels: channels that the network takes.
        side_factor: what the sides must be multiples of.
        num_timesteps: T; None: unknown.
        num_classes: None for an unconditional network.

    Raises:
        ValueError: naming the shape or range that is expected, and what came.
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
