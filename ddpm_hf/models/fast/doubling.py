"""Doubling of the resolution and the 3x3 convolution after it in one, on any device."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.models.layers.residual import Upsample

Map = Float[Tensor, "batch channels height width"]

# positions in a batch from which deriving the fused kernel costs less than it saves, on a CPU
FUSED_FROM_POSITIONS = 256


class FusedUpsample(Upsample):
    """`Upsample` whose convolution doubles the resolution by itself."""

    def forward(self, hidden: Map) -> Float[Tensor, "batch channels 2*height 2*width"]:
        return self.conv(hidden)


class DoublingConv(nn.Conv2d):
    """A 3x3 convolution of the doubled input, as one transposed 4x4 convolution of the input itself.

    Every output pixel sees only 2x2 different input pixels, so 4/9 of the products suffice: those of the weights that
    meet the same input pixel are summed beforehand.
    """

    def forward(self, input: Map) -> Float[Tensor, "batch features 2*height 2*width"]:
        batch, _, height, width = input.shape
        # only eager training asks how large the batch is: an image must not depend on the size of its batch when
        # sampling, and the compiler would compile once for each answer
        images = batch if torch.is_grad_enabled() and not torch.compiler.is_compiling() else 4
        if images * height * width < FUSED_FROM_POSITIONS:
            return super().forward(F.interpolate(input, scale_factor=2.0, mode="nearest"))
        kernel = transposed_kernel(self.weight)
        return F.conv_transpose2d(input, kernel, self.bias, stride=2, padding=1)


def transposed_kernel(weight: Float[Tensor, "out in_ 3 3"]) -> Float[Tensor, "in_ out 4 4"]:
    """Sum the weights w of a 3x3 convolution after doubling into those of a transposed convolution of stride 2.

    Along each axis: (w2, w1 + w2, w0 + w1, w0).

    Args:
        weight: of the convolution.
    """
    # each output tap as a sum of pairs of the flipped weights, padded with zero: w2 | w2 + w1 | w1 + w0 | w0
    pairs = F.avg_pool1d(torch.eye(3, dtype=weight.dtype, device=weight.device).flip(1), 2, 1, 1) * 2
    # one matrix product over the nine taps, far quicker than sums of slices three elements long
    return F.linear(weight.flatten(2), torch.kron(pairs.T, pairs.T)).unflatten(2, (4, 4)).transpose(0, 1)
