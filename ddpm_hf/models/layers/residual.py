"""The residual block, and the levels of the U-Net that are made of it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.models.layers.attention import SelfAttentionBlock
from ddpm_hf.models.layers.resampling import Downsample, Upsample

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
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Map, time: Time) -> MapOut:
        """Args: hidden: the features. time: SiLU of the time embedding, the same for all blocks."""
        residual = self.conv1(F.silu(self.norm1(hidden)))
        residual = residual + self.time_emb_proj(time)[:, :, None, None]
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual))))
        shortcut = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        return shortcut + residual


class ConvDownBlock(nn.Module):
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
        self.gradient_checkpointing = False
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
            hidden = resnet(hidden, time)
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
            hidden = attention(resnet(hidden, time))
            skips.append(hidden)
        for downsampler in self.downsamplers:
            hidden = downsampler(hidden)
            skips.append(hidden)
        return hidden, skips


class MiddleBlock(nn.Module):
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
        self.gradient_checkpointing = False
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
        hidden = self.resnets[0](hidden, time)
        for attention in self.attentions:
            hidden = attention(hidden)
        return self.resnets[1](hidden, time)


class ConvUpBlock(nn.Module):
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
        self.gradient_checkpointing = False
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
            hidden = resnet(torch.cat((hidden, skip), dim=1), time)
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
            hidden = attention(resnet(torch.cat((hidden, skip), dim=1), time))
        for upsampler in self.upsamplers:
            hidden = upsampler(hidden)
        return hidden
