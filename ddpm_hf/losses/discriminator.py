"""A small network that tells predicted images from real ones, patch by patch."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ddpm_hf.models.layers.embeddings import TimeEmbedding, TransformerPositionalEmbedding


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 with one verdict per patch (PatchGAN, Isola et al. 2017), told the timestep.

    The timestep says how blurry a prediction may be; it scales and shifts the features of each level (FiLM, Perez et
    al. 2018). No normalisation couples images or places.

    Args:
        image_channels: 1 or 3.
        hidden_channels: at full resolution; even.
        num_levels: how often the resolution is halved.
    """

    def __init__(self, image_channels: int, hidden_channels: int = 64, num_levels: int = 2) -> None:
        super().__init__()
        widths = [hidden_channels * min(2**level, 4) for level in range(num_levels + 1)]
        time_channels = 4 * hidden_channels
        self.position = TransformerPositionalEmbedding(hidden_channels)
        self.time = TimeEmbedding(hidden_channels, time_channels)
        self.conv_in = nn.Conv2d(image_channels, hidden_channels, 3, padding=1)
        self.halve = nn.ModuleList(nn.Conv2d(wide, wider, 4, stride=2, padding=1) for wide, wider in pairwise(widths))
        self.film = nn.ModuleList(nn.Linear(time_channels, 2 * wider) for wider in widths[1:])
        self.conv_out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for parameter in self.film.parameters():
            nn.init.zeros_(parameter)  # begins without regard to the timestep

    def forward(
        self, images: Float[Tensor, "batch channels height width"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch 1 patches_high patches_wide"]:
        """The verdict on each patch: above 0 for real.

        Args:
            images: in or around [-1, 1].
            timesteps: at which each was predicted.
        """
        time = F.silu(self.time(self.position(timesteps)))
        features = F.leaky_relu(self.conv_in(images), 0.2)
        for halve, film in zip(self.halve, self.film, strict=True):
            scale, shift = film(time)[:, :, None, None].chunk(2, dim=1)  # per channel, the same at every place
            features = F.leaky_relu(halve(features) * (1 + scale) + shift, 0.2)
        return self.conv_out(features)
