"""The layers, against their closed or plain forms."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_hf.models.layers.attention import SelfAttentionBlock, attend
from ddpm_hf.models.layers.embeddings import TimeEmbedding, TransformerPositionalEmbedding
from ddpm_hf.models.layers.residual import (
    AttentionDownBlock,
    AttentionUpBlock,
    BlockOptions,
    ConvDownBlock,
    ConvUpBlock,
    Downsample,
    MiddleBlock,
    ResidualBlock,
    Upsample,
)


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


def test_upsampling_repeats_every_pixel_before_its_convolution() -> None:
    torch.manual_seed(0)
    layer, hidden = Upsample(8), torch.randn(2, 8, 3, 5)
    doubled = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(hidden), layer.conv(doubled))


@pytest.mark.parametrize("padding", [0, 1])
def test_downsampling_halves(padding: int) -> None:
    assert Downsample(8, padding)(torch.randn(1, 8, 12, 6)).shape == (1, 8, 6, 3)


def test_attention_is_its_definition() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 10, 4, dtype=torch.float64) for _ in range(3))
    expected = (query @ key.transpose(2, 3) / 2).softmax(-1) @ value
    torch.testing.assert_close(attend(query, key, value), expected, rtol=0, atol=1e-10)


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
    time, options = torch.randn(2, 128), BlockOptions(time_channels=128)
    hidden, skips = ConvDownBlock(32, 64, options)(torch.randn(2, 32, 8, 8), time)
    assert hidden.shape == (2, 64, 4, 4)
    assert [skip.shape[-1] for skip in skips] == [8, 8, 4]
    hidden, more = AttentionDownBlock(64, 64, options, downsample=False)(hidden, time)
    assert len(more) == 2
    hidden = MiddleBlock(64, options)(hidden, time)
    up = AttentionUpBlock(64, 64, options, skip_channels=(64, 64, 64))
    hidden = up(hidden, [more.pop(), more.pop(), skips.pop()], time)
    assert hidden.shape == (2, 64, 8, 8)
    final = ConvUpBlock(64, 32, options, skip_channels=(64, 64), upsample=False)
    assert final(hidden, [skips.pop(), skips.pop()], time).shape == (2, 32, 8, 8)


def test_residual_block_is_its_equation() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, 16, BlockOptions(12, norm_groups=4)).double()
    hidden, time = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)

    def norm_silu(x: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        groups = x.unflatten(1, (4, -1))
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        normalised = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()).flatten(1, 2)
        return F.silu(normalised * norm.weight[:, None, None] + norm.bias[:, None, None])

    first = block.conv1(norm_silu(hidden, block.norm1)) + block.time_emb_proj(time)[:, :, None, None]
    expected = block.conv_shortcut(hidden) + block.conv2(norm_silu(first, block.norm2))
    torch.testing.assert_close(block(hidden, time), expected)
    joined = block(hidden[:, :5], time, hidden[:, 5:])  # as the way up has it
    torch.testing.assert_close(joined, expected)
