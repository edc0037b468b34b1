"""The layers, against their closed or plain forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf.models.layers.attention import SelfAttentionBlock, attend
from ddpm_hf.models.layers.elementwise import Dropout, NormSiLU
from ddpm_hf.models.layers.embeddings import TimeEmbedding, TransformerPositionalEmbedding
from ddpm_hf.models.layers.resampling import Downsample, Upsample, transposed_kernel
from ddpm_hf.models.layers.residual import AttentionDownBlock, AttentionUpBlock, ConvDownBlock, ConvUpBlock


def test_positional_embedding_is_sines_then_cosines() -> None:
    t = torch.tensor([0, 1, 500, 999])
    result = TransformerPositionalEmbedding(6)(t)
    frequencies = torch.tensor([1.0, 1e-2, 1e-4])  # 10000 ** -(0, 1/2, 1)
    angles = t[:, None] * frequencies
    torch.testing.assert_close(result, torch.cat((angles.sin(), angles.cos()), 1), rtol=1e-4, atol=1e-5)
    flipped = TransformerPositionalEmbedding(6, flip_sin_to_cos=True)(t)
    torch.testing.assert_close(flipped, result.roll(3, 1), rtol=0, atol=0)


def test_odd_embedding_ends_with_zero() -> None:
    assert not TransformerPositionalEmbedding(7)(torch.tensor([3]))[:, -1].any()


def test_time_embedding_shape() -> None:
    assert TimeEmbedding(8, 32)(torch.randn(5, 8)).shape == (5, 32)


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (1, 8, 16, 24), (3, 8, 2, 6)])
def test_upsampling_is_doubling_and_convolution(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = Upsample(8).double()
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


@pytest.mark.parametrize("padding", [0, 1])
def test_downsampling_halves(padding: int) -> None:
    assert Downsample(8, padding)(torch.randn(1, 8, 12, 6)).shape == (1, 8, 6, 3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_norm_silu_and_its_derivatives(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = NormSiLU(2, 4, eps=1e-3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    hidden = torch.randn(2, 4, 3, 3, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    expected = F.silu(F.group_norm(hidden, 2, norm.weight, norm.bias, 1e-3))
    torch.testing.assert_close(norm(hidden), expected)
    inputs = (hidden, norm.weight, norm.bias)

    def function(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_frozen_norm_still_passes_the_gradient_on() -> None:
    norm = NormSiLU(2, 4).requires_grad_(False)
    hidden = torch.randn(2, 4, 3, 3, requires_grad=True)
    norm(hidden).sum().backward()
    assert hidden.grad is not None and norm.weight.grad is None


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_share_it_should(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = Dropout(probability)
    hidden = torch.ones(7, 13, 50, 51, dtype=dtype, requires_grad=True)
    result = layer(hidden)
    dropped = (result == 0).double().mean().item()
    assert abs(dropped - probability) < 5 * math.sqrt(probability * (1 - probability) / hidden.numel())
    torch.testing.assert_close(
        result.detach().unique(), torch.tensor([0, 1 / (1 - probability)], dtype=dtype), rtol=1e-3, atol=0
    )
    result.sum().backward()
    torch.testing.assert_close(hidden.grad, result.detach())
    # neighbours share a draw of 64 bits, yet are independent
    flat = (result == 0).double().flatten()
    assert abs((flat[1:] * flat[:-1]).mean().item() - probability**2) < 0.005
    assert layer.eval()(hidden) is hidden
    assert not torch.equal(layer.train()(hidden), layer(hidden))


def test_dropout_follows_the_seed() -> None:
    layer, hidden = Dropout(0.3), torch.ones(2, 3, 5, 5)
    torch.manual_seed(3)
    first = layer(hidden)
    torch.manual_seed(3)
    assert torch.equal(layer(hidden), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_is_its_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 10, 4, dtype=dtype) for _ in range(3))
    scores = query.double() @ key.double().transpose(2, 3) / 2
    expected = scores.softmax(-1) @ value.double()
    tolerance = 1e-10 if dtype == torch.float64 else 0.02
    torch.testing.assert_close(attend(query, key, value).double(), expected, rtol=0, atol=tolerance)


def test_attention_block_starts_from_its_input() -> None:
    block = SelfAttentionBlock(16, head_dim=4, norm_groups=4)
    torch.nn.init.zeros_(block.to_out[0].weight)
    torch.nn.init.zeros_(block.to_out[0].bias)
    hidden = torch.randn(2, 16, 4, 6)
    torch.testing.assert_close(block(hidden), hidden, rtol=0, atol=0)


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_images_never_have_a_matrix_of_scores(dtype: torch.dtype) -> None:
    block = SelfAttentionBlock(8, norm_groups=4).to(dtype)
    hidden = torch.randn(1, 8, 64, 64, dtype=dtype, requires_grad=True)
    with _Largest() as largest:
        block(hidden).sum().backward()
    assert largest.elements <= 8 * 64 * 64


def test_blocks_alone_as_a_reader_would_call_them() -> None:
    time = torch.randn(2, 128)
    hidden, skips = ConvDownBlock(32, 64, 128)(torch.randn(2, 32, 8, 8), time)
    assert hidden.shape == (2, 64, 4, 4)
    assert [skip.shape[-1] for skip in skips] == [8, 8, 4]
    hidden, more = AttentionDownBlock(64, 64, 128, downsample=False)(hidden, time)
    assert len(more) == 2
    up = AttentionUpBlock(64, 64, 128, skip_channels=(64, 64, 64))
    hidden = up(hidden, [more.pop(), more.pop(), skips.pop()], time)
    assert hidden.shape == (2, 64, 8, 8)
    final = ConvUpBlock(64, 32, 128, skip_channels=(64, 64), upsample=False)
    assert final(hidden, [skips.pop(), skips.pop()], time).shape == (2, 32, 8, 8)
