"""The timestep as a vector: DDPM, appendix B."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

MAX_PERIOD = 10_000


class TransformerPositionalEmbedding(nn.Module):
    """Sines and cosines of a position at geometrically spaced frequencies (Attention Is All You Need, section 3.5).

    Args:
        dimension: length of the embedding.
        flip_sin_to_cos: cosines first; the paper has sines first.
        freq_shift: how many steps before the last one the slowest frequency, 1/10000, would be reached: 1 in DDPM, so
            that the last frequency is exactly that; 0 in the transformer.

    Raises:
        ValueError: if there are `freq_shift` frequencies only, whose spacing would divide by zero.
    """

    def __init__(self, dimension: int, flip_sin_to_cos: bool = False, freq_shift: float = 1) -> None:
        super().__init__()
        if dimension // 2 == freq_shift:
            raise ValueError(
                f"an embedding of the timestep of {dimension} channels divides by zero with freq_shift {freq_shift}; "
                f"possible are at least {2 * freq_shift + 2:g} channels, in block_out_channels, or another freq_shift"
            )
        self.dimension = dimension
        self.flip_sin_to_cos = flip_sin_to_cos
        self.freq_shift = freq_shift

    def forward(self, timestep: Real[Tensor, " batch"]) -> Float[Tensor, "batch dimension"]:
        half = self.dimension // 2
        # computed anew each time: a buffer would be garbage after meta-device loading, and be rounded by .half()
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(-math.log(MAX_PERIOD) * steps / (half - self.freq_shift))
        angles = timestep.float()[:, None] * frequencies
        sine, cosine = angles.sin(), angles.cos()
        embedding = torch.cat((cosine, sine) if self.flip_sin_to_cos else (sine, cosine), dim=1)
        return F.pad(embedding, (0, self.dimension % 2))


class TimeEmbedding(nn.Module):
    """Two linear layers with SiLU between them, on the positional embedding of the timestep (DDPM, appendix B).

    Args:
        in_channels: length of the positional embedding.
        time_channels: length of the result, 4 * in_channels in the paper.
    """

    def __init__(self, in_channels: int, time_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, time_channels)
        self.linear_2 = nn.Linear(time_channels, time_channels)

    def forward(self, embedding: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch time_channels"]:
        return self.linear_2(F.silu(self.linear_1(embedding)))
