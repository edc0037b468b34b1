"""Doubling and convolution in one against the two after each other."""

import pytest
import torch
import torch.nn.functional as F

from ddpm_hf.models.fast import accelerate
from ddpm_hf.models.fast.doubling import DoublingConv, transposed_kernel
from ddpm_hf.models.layers.residual import Upsample


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (1, 8, 16, 24), (3, 8, 2, 6)])
def test_upsampling_is_doubling_and_convolution(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Upsample(8).double()
    accelerate(layer)
    assert type(layer.conv) is DoublingConv
    hidden = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    doubled = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
    expected = F.conv2d(doubled, layer.conv.weight, layer.conv.bias, padding=1)
    fused = F.conv_transpose2d(hidden, transposed_kernel(layer.conv.weight), layer.conv.bias, stride=2, padding=1)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (hidden, layer.conv.weight), direction)
    for result in (layer(hidden), fused):
        torch.testing.assert_close(result, expected)
        gradients = torch.autograd.grad(result, (hidden, layer.conv.weight), direction)
        torch.testing.assert_close(gradients, wanted)
