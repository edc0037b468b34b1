"""The residual block, and the levels of the U-Net that are made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.models.layers.attention import SelfAttentionBlock

Map = Float[Tensor, "batch in_channels height width"]
MapOut = Float[Tensor, "batch out_channels height width"]
Time = Float[Tensor, "batch time_channels"]


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network share.

    Args:
        time_channels: length of the time embedding.
        dropout: probability of zeroing an activation before the second convolution, in [0, 1).
        norm_groups: groups of each normalisation.
        norm_eps: added to the variance by each normalisation.
        head_dim: see `SelfAttentionBlock`.
    """

    time_channels: int
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-6
    head_dim: int | None = None

    def attention(self, channels: int, norm_groups: int | None = None) -> SelfAttentionBlock:
        """Make the self-attention of a block.

        Args:
            channels: channels in and out.
            norm_groups: groups of its normalisation, if they differ from those of the other layers.
        """
        return SelfAttentionBlock(channels, self.head_dim, norm_groups or self.norm_groups, self.norm_eps)


class NormSiLU(nn.GroupNorm):
    """silu(group_norm(x)), which comes before each convolution.

    Args: as of `nn.GroupNorm`.
    """

    def forward(self, input: Map) -> Map:
        return F.silu(super().forward(input))


class Downsample(nn.Module):
    """3x3 convolution of stride 2: half the height and width.

    Args:
        channels: channels in and out.
        padding: 1 pads all four sides; 0 pads only right and bottom, as the original DDPM did.
    """

    def __init__(self, channels: int, padding: int = 0) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, hidden: Map) -> Float[Tensor, "batch in_channels half_height half_width"]:
        if self.padding == 0:
            hidden = F.pad(hidden, (0, 1, 0, 1))
        return self.conv(hidden)


class Upsample(nn.Module):
    """Nearest-neighbour doubling of height and width, then a 3x3 convolution.

    Args:
        channels: channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Map) -> Float[Tensor, "batch in_channels 2*height 2*width"]:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, with the timestep added between them (DDPM, appendix B).

    Args:
        in_channels: channels in.
        out_channels: channels out; where they differ, a 1x1 convolution makes the shortcut.
        options: shared by the network's blocks.
    """

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm1 = NormSiLU(options.norm_groups, in_channels, options.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(options.time_channels, out_channels)
        self.norm2 = NormSiLU(options.norm_groups, out_channels, options.norm_eps)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor, time: Time, skip: Tensor | None = None) -> MapOut:
        """Compute the block.

        Args:
            hidden: the features.
            time: SiLU of the time embedding, which all blocks begin with.
            skip: features of the way down, joined to `hidden` as further channels.

        Returns:
            The features that the block makes.
        """
        # joined inside the block, so that gradient checkpointing need not keep the joined copy
        joined: Map = hidden if skip is None else torch.cat((hidden, skip), dim=1)
        residual = self.conv1(self.norm1(joined))
        residual = residual + self.time_emb_proj(time)[:, :, None, None]
        residual = self.conv2(self.dropout(self.norm2(residual)))
        return residual + (joined if self.conv_shortcut is None else self.conv_shortcut(joined))


class CheckpointedBlock(nn.Module):
    """A block of layers, whose gradient checkpointing `DDPMUNet.enable_gradient_checkpointing` turns on."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def run(self, layer: nn.Module, *args: Any) -> Tensor:
        """Call one layer.

        Args:
            layer: the layer.
            args: its inputs, all that gradient checkpointing keeps of it for the backward pass.

        Returns:
            The layer's output.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)


class ConvDownBlock(CheckpointedBlock):
    """Residual blocks of one level on the way down, then half the resolution.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        options: shared by the network's blocks.
        num_layers: number of residual blocks.
        downsample: end with half the resolution; the coarsest level does not.
        downsample_padding: see `Downsample`.
    """

    has_attention = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: BlockOptions,
        *,
        num_layers: int = 2,
        downsample: bool = True,
        downsample_padding: int = 0,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(ResidualBlock(channels, out_channels, options) for channels in inputs)
        self.downsamplers = nn.ModuleList([Downsample(out_channels, downsample_padding)] if downsample else [])
        self.attentions = nn.ModuleList(options.attention(out_channels) for _ in inputs if self.has_attention)

    def forward(self, hidden: Map, time: Time) -> tuple[Tensor, list[Tensor]]:
        """Compute the level.

        Args:
            hidden: features of the level above.
            time: SiLU of the time embedding.

        Returns:
            The features for the level below, and those of every layer, which the way up joins to its own.
        """
        skips = []
        for index, resnet in enumerate(self.resnets):
            hidden = self.run(resnet, hidden, time)
            if self.has_attention:
                hidden = self.run(self.attentions[index], hidden)
            skips.append(hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
            skips.append(hidden)
        return hidden, skips


class AttentionDownBlock(ConvDownBlock):
    """`ConvDownBlock` with self-attention after every residual block."""

    has_attention = True


class MiddleBlock(CheckpointedBlock):
    """Residual block, self-attention, residual block, at the coarsest resolution (DDPM, appendix B).

    Args:
        channels: channels in and out.
        options: shared by the network's blocks.
        attention: have the attention; the paper does.
        attention_norm_groups: groups of the attention's normalisation; None is those of the options.
    """

    def __init__(
        self, channels: int, options: BlockOptions, *, attention: bool = True, attention_norm_groups: int | None = None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, options) for _ in range(2))
        self.attentions = nn.ModuleList([options.attention(channels, attention_norm_groups)] if attention else [])

    def forward(self, hidden: Map, time: Time) -> Map:
        """Compute the level.

        Args:
            hidden: features of the coarsest level.
            time: SiLU of the time embedding.

        Returns:
            Features of the same shape.
        """
        hidden = self.run(self.resnets[0], hidden, time)
        for attention in self.attentions:
            hidden = self.run(attention, hidden)
        return self.run(self.resnets[1], hidden, time)


class ConvUpBlock(CheckpointedBlock):
    """Residual blocks of one level on the way up, each joined by one skip connection, then twice the resolution.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        options: shared by the network's blocks.
        skip_channels: channels of the skip connections, in the order of use; one residual block each.
        upsample: end with twice the resolution; the finest level does not.
    """

    has_attention = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: BlockOptions,
        *,
        skip_channels: Sequence[int],
        upsample: bool = True,
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            ResidualBlock(channels + skip, out_channels, options)
            for channels, skip in zip(inputs, skip_channels, strict=True)
        )
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])
        self.attentions = nn.ModuleList(options.attention(out_channels) for _ in inputs if self.has_attention)

    def forward(self, hidden: Map, skips: list[Tensor], time: Time) -> Tensor:
        """Compute the level.

        Args:
            hidden: features of the level below.
            skips: features of the way down in the order of use, one for each residual block.
            time: SiLU of the time embedding.

        Returns:
            The features for the level above.
        """
        for index, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            hidden = self.run(resnet, hidden, time, skip)
            if self.has_attention:
                hidden = self.run(self.attentions[index], hidden)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden


class AttentionUpBlock(ConvUpBlock):
    """`ConvUpBlock` with self-attention after every residual block."""

    has_attention = True
