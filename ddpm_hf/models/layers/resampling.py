"""Halving and doubling of the resolution."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch channels height width"]


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

    def forward(self, hidden: Map) -> Float[Tensor, "batch channels half_height half_width"]:
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

    def forward(self, hidden: Map) -> Float[Tensor, "batch channels 2*height 2*width"]:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
