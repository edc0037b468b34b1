"""The residual block, and the levels of the U-Net that are made of it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.models.layers.attention import SelfAttentionBlock
from ddpm_hf.models.layers.checkpointing import CheckpointedBlock
from ddpm_hf.models.layers.elementwise import Dropout, NormSiLU
from ddpm_hf.models.layers.resampling import Downsample, Upsample
from ddpm_hf.models.layers.winograd import Conv3x3

Map = Float[Tensor, "batch in_channels height width"]
MapOut = Float[Tensor, "batch out_channels height width"]
Time = Float[Tensor, "batch time_channels"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, with the timestep added between them (DDPM, appendix B).

    Args:
        in_channels: channels in.
        out_channels: channels out; where they differ, a 1x1 convolution makes the shortcut.
        time_channels: length of the time embedding.
        dropout: probability of dropping an activation before the second convolution, in [0, 1).
        norm_groups: groups of each normalisation.
        norm_eps: added to its variance.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        *,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = NormSiLU(norm_groups, in_channels, norm_eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = NormSiLU(norm_groups, out_channels, norm_eps)
        self.dropout = Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor, time: Time, skip: Tensor | None = None) -> MapOut:
        """Compute the block.

        Args:
            hidden: the features.
            time: SiLU of the time embedding, the same for all blocks.
            skip: further channels of input, from the way down.
        """
        # joined here, inside the block, so that gradient checkpointing need not keep the joined copy
        joined: Map = hidden if skip is None else torch.cat((hidden, skip), dim=1)
        residual = self.conv1(self.norm1(joined))
        # in place: what a convolution gave is needed by nobody's backward pass
        residual = self.norm2(residual.add_(self.time_emb_proj(time)[:, :, None, None]))
        residual = self.conv2(self.dropout(residual))
        return residual.add_(joined if self.conv_shortcut is None else self.conv_shortcut(joined))


class ConvDownBlock(CheckpointedBlock):
    """Residual blocks of one level on the way down, then half the resolution.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        time_channels: length of the time embedding.
        num_layers: residual blocks.
        downsample: end with half the resolution; the coarsest level does not.
        downsample_padding: see `Downsample`.
        dropout, norm_groups, norm_eps: see `ResidualBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        *,
        num_layers: int = 2,
        downsample: bool = True,
        downsample_padding: int = 0,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(
                in_channels if layer == 0 else out_channels,
                out_channels,
                time_channels,
                dropout=dropout,
                norm_groups=norm_groups,
                norm_eps=norm_eps,
            )
            for layer in range(num_layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(out_channels, downsample_padding)] if downsample else [])

    def forward(self, hidden: Map, time: Time) -> tuple[Tensor, list[Tensor]]:
        """Returns the features for the next level, and those of every layer for the way up."""
        skips = []
        for resnet in self.resnets:
            hidden = self.run(resnet, hidden, time)
            skips.append(hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
            skips.append(hidden)
        return hidden, skips


class AttentionDownBlock(ConvDownBlock):
    """`ConvDownBlock` with self-attention after every residual block.

    Args:
        head_dim: see `SelfAttentionBlock`.
        The others: see `ConvDownBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        *,
        head_dim: int | None = None,
        num_layers: int = 2,
        downsample: bool = True,
        downsample_padding: int = 0,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            time_channels,
            num_layers=num_layers,
            downsample=downsample,
            downsample_padding=downsample_padding,
            dropout=dropout,
            norm_groups=norm_groups,
            norm_eps=norm_eps,
        )
        self.attentions = nn.ModuleList(
            SelfAttentionBlock(out_channels, head_dim, norm_groups, norm_eps) for _ in range(num_layers)
        )

    def forward(self, hidden: Map, time: Time) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            hidden = self.run(resnet, hidden, time)
            hidden = self.run(attention, hidden)
            skips.append(hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
            skips.append(hidden)
        return hidden, skips


class MiddleBlock(CheckpointedBlock):
    """Residual block, self-attention, residual block, at the coarsest resolution (DDPM, appendix B).

    Args:
        channels: channels in and out.
        time_channels: length of the time embedding.
        attention: have the attention; the paper does.
        head_dim: see `SelfAttentionBlock`.
        attention_norm_groups: groups of the attention's normalisation.
        dropout, norm_groups, norm_eps: see `ResidualBlock`.
    """

    def __init__(
        self,
        channels: int,
        time_channels: int,
        *,
        attention: bool = True,
        head_dim: int | None = None,
        attention_norm_groups: int = 32,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(
                channels, channels, time_channels, dropout=dropout, norm_groups=norm_groups, norm_eps=norm_eps
            )
            for _ in range(2)
        )
        self.attentions = nn.ModuleList(
            [SelfAttentionBlock(channels, head_dim, attention_norm_groups, norm_eps)] if attention else []
        )

    def forward(self, hidden: Map, time: Time) -> Map:
        hidden = self.run(self.resnets[0], hidden, time)
        for attention in self.attentions:
            hidden = self.run(attention, hidden)
        return self.run(self.resnets[1], hidden, time)


class ConvUpBlock(CheckpointedBlock):
    """Residual blocks of one level on the way up, each fed one skip connection, then twice the resolution.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        time_channels: length of the time embedding.
        skip_channels: channels of the skip connections, in the order of use; one residual block each.
        upsample: end with twice the resolution; the finest level does not.
        dropout, norm_groups, norm_eps: see `ResidualBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        *,
        skip_channels: Sequence[int],
        upsample: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(
                (in_channels if layer == 0 else out_channels) + skip,
                out_channels,
                time_channels,
                dropout=dropout,
                norm_groups=norm_groups,
                norm_eps=norm_eps,
            )
            for layer, skip in enumerate(skip_channels)
        )
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, hidden: Map, skips: list[Tensor], time: Time) -> Tensor:
        """Args: hidden: the features. skips: one per residual block, in the order of use. time: as in ResidualBlock."""
        for resnet, skip in zip(self.resnets, skips, strict=True):
            hidden = self.run(resnet, hidden, time, skip)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden


class AttentionUpBlock(ConvUpBlock):
    """`ConvUpBlock` with self-attention after every residual block.

    Args:
        head_dim: see `SelfAttentionBlock`.
        The others: see `ConvUpBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        *,
        skip_channels: Sequence[int],
        head_dim: int | None = None,
        upsample: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            time_channels,
            skip_channels=skip_channels,
            upsample=upsample,
            dropout=dropout,
            norm_groups=norm_groups,
            norm_eps=norm_eps,
        )
        self.attentions = nn.ModuleList(
            SelfAttentionBlock(out_channels, head_dim, norm_groups, norm_eps) for _ in skip_channels
        )

    def forward(self, hidden: Map, skips: list[Tensor], time: Time) -> Tensor:
        for resnet, attention, skip in zip(self.resnets, self.attentions, skips, strict=True):
            hidden = self.run(resnet, hidden, time, skip)
            hidden = self.run(attention, hidden)
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden
