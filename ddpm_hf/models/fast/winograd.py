"""3x3 convolution by Winograd's minimal filtering: a quarter of the multiplications, for training in float32 on a CPU.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016), here F(4x4, 3x3): each tile of 4x4
outputs comes from 6x6 inputs d and 3x3 weights g as A^T [(G g G^T) * (B^T d B)] A, whose sums over the channels are 36
matrix products. Three things differ from the paper:

- The points of the interpolation are 0, +-sqrt(1/2), +-sqrt(2) and infinity rather than 0, +-1, +-2 and infinity, which
  halves the rounding error.
- B^T d B of all tiles in a row of tiles is one product of the image with a banded matrix along its width and another
  along its height, and so is A^T m A: no tile is ever cut out, and padding and cropping lie in these matrices.
- The backward pass transforms the input again instead of keeping 9/4 of its size.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.models.fast.cpu import runs_eagerly_on_cpu

Map = Float[Tensor, "batch in_channels height width"]
MapOut = Float[Tensor, "batch out_channels height width"]
Weight = Float[Tensor, "out_channels in_channels 3 3"]
Tiles = Float[Tensor, "36 tiles channels"]

TILE, POINTS = 4, 6
# outputs along a side of what is transformed at once: the banded matrices are mostly zeros beyond
BLOCK = 16
# numbers in a transformed piece: 8 MiB, so that it stays in a cache
PIECE = 2**21
# where it gains, as measured: benchmarks/results/network_limits.md
MIN_CHANNELS, MIN_TILES = 128, 128
# which PyTorch 2.6 cannot tell from compiling
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class WinogradConv(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1 that trains by Winograd's algorithm where that is faster."""

    def forward(self, input: Map) -> MapOut:
        if self.bias is None or not gains(input, self.weight):
            return super().forward(input)
        return conv3x3(input, self.weight, self.bias)


def gains(input: Map, weight: Weight) -> bool:
    """Whether Winograd's algorithm is faster, and allowed.

    It is allowed in training alone: an image must not depend on the size of its batch when sampling. In bfloat16 its
    error would be twice that of a convolution. An exported network has PyTorch's own operators only.

    Args:
        input: of the convolution. Under torch.compile, which would compile once for each answer, its batch is ignored;
            `conv3x3` looks at it.
        weight: of the convolution.
    """
    compiling = torch.compiler.is_compiling()
    if not torch.is_grad_enabled() or _is_exporting() or torch.is_autocast_enabled("cpu"):
        return False
    if input.device.type != "cpu" or not (compiling or runs_eagerly_on_cpu(input)):
        return False
    height, width = input.shape[2:]
    suits = (
        input.dtype == weight.dtype == torch.float32
        and height % TILE == width % TILE == 0
        and min(weight.shape[:2]) >= MIN_CHANNELS
    )
    return suits and (compiling or (input.is_contiguous() and _has_enough_tiles(input)))


def _has_enough_tiles(input: Map) -> bool:
    batch, _, height, width = input.shape
    return batch * height * width >= MIN_TILES * TILE**2


# Both are operators of PyTorch's, since the compiler cannot look into them: it sees their shapes but for the batch, by
# whose size they choose the algorithm.


@torch.library.custom_op("ddpm_hf::conv3x3", mutates_args=())
def conv3x3(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve with stride 1 and padding 1, by Winograd's algorithm if the batch has enough tiles."""
    if _has_enough_tiles(input):
        return _output(input.contiguous(), weight, bias)
    return F.conv2d(input, weight, bias, padding=1).contiguous()


@torch.library.custom_op("ddpm_hf::conv3x3_backward", mutates_args=())
def conv3x3_backward(
    grad: Tensor, input: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `conv3x3`, of which those that are not needed are empty."""
    gradients = _gradients if _has_enough_tiles(input) else _direct_gradients
    found = gradients(grad.contiguous(), input.contiguous(), weight, needed)
    of_input, of_weight, of_bias = (grad.new_empty(0) if each is None else each.contiguous() for each in found)
    return of_input, of_weight, of_bias


@conv3x3.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], weight.shape[0], *input.shape[2:])


@conv3x3_backward.register_fake
def _(grad: Tensor, input: Tensor, weight: Tensor, needed: Sequence[bool]) -> tuple[Tensor, ...]:
    shapes = (input.shape, weight.shape, weight.shape[:1])
    return tuple(grad.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needed, strict=True))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    if torch.is_grad_enabled():  # to be differentiated once more, as PyTorch's own operator can be
        return _direct_gradients(grad, input, weight, ctx.needs_input_grad)
    gradients = conv3x3_backward(grad, input, weight, ctx.needs_input_grad)
    return tuple(each if need else None for each, need in zip(gradients, ctx.needs_input_grad, strict=True))


conv3x3.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0], inputs[1])
)


def _direct_gradients(
    grad: Tensor, input: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return torch.ops.aten.convolution_backward(
        grad, input, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(needed)
    )


def _output(input: Map, weight: Weight, bias: Tensor) -> MapOut:
    transformed = _transform_weight(weight)
    output = bias[:, None, None].expand(len(input), -1, *input.shape[2:]).contiguous()
    for images, down, across in _pieces(input, weight):
        tiles = _to_tiles(input[images, :, down.seen, across.seen], down.analysis, across.analysis)
        made = output[images, :, down.made, across.made]
        _add_from_tiles(torch.bmm(tiles, transformed.mT), down.synthesis, across.synthesis, made)
    return output


def _gradients(grad: MapOut, input: Map, weight: Weight, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Compute the gradients of input, weight and bias that are needed."""
    for_input, for_weight, for_bias = needed
    # autocast must not reach the products if backward() is called under it
    with torch.autocast("cpu", enabled=False):
        grad_input = torch.zeros_like(input) if for_input else None
        grad_transformed = weight.new_zeros(POINTS**2, *weight.shape[:2]) if for_weight else None
        transformed = _transform_weight(weight)
        # each step is the transpose of one in the forward pass
        for images, down, across in _pieces(input, weight):
            grad_made = grad[images, :, down.made, across.made]
            grad_tiles = _to_tiles(grad_made, down.synthesis, across.synthesis)
            if grad_transformed is not None:
                tiles = _to_tiles(input[images, :, down.seen, across.seen], down.analysis, across.analysis)
                grad_transformed.baddbmm_(grad_tiles.mT, tiles)
            if grad_input is not None:
                grad_seen = grad_input[images, :, down.seen, across.seen]
                _add_from_tiles(torch.bmm(grad_tiles, transformed), down.analysis, across.analysis, grad_seen)
        grad_weight = None if grad_transformed is None else _transform_weight_back(grad_transformed)
    return grad_input, grad_weight, grad.sum((0, 2, 3)) if for_bias else None


@dataclass(frozen=True)
class _Span:
    """A piece of an axis: the outputs made there, the inputs seen by them, and the matrices between these and tiles."""

    made: slice
    seen: slice
    analysis: Float[Tensor, "rows seen"]
    synthesis: Float[Tensor, "rows made"]


def _pieces(input: Map, weight: Weight) -> Iterator[tuple[slice, _Span, _Span]]:
    """Split the work into pieces that fit a cache: some images, some rows and some columns of them."""
    batch, _, height, width = input.shape
    rows, columns = ([_span(start, side, input) for start in range(0, side, BLOCK)] for side in (height, width))
    numbers = max(weight.shape[:2]) * len(rows[0].analysis) * len(columns[0].analysis)
    step = max(1, PIECE // numbers)
    for start in range(0, batch, step):
        for down in rows:
            for across in columns:
                yield slice(start, start + step), down, across


def _span(start: int, side: int, like: Tensor) -> _Span:
    made, seen = slice(start, min(start + BLOCK, side)), slice(max(start - 1, 0), min(start + BLOCK + 1, side))
    analysis, synthesis = _band_matrices(-(-(made.stop - start) // TILE))
    # the band begins one before the first output, with the padding where that is the edge
    analysis = analysis[:, seen.start - start + 1 : seen.stop - start + 1]
    synthesis = synthesis[:, : made.stop - start]
    return _Span(made, seen, _tensor(analysis, like), _tensor(synthesis, like))


@functools.cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T, G and B^T of F(4, 3): evaluation at the points, and its inverse, transposed (Lavin and Gray, 5.3)."""
    points = np.array([0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])
    evaluation = np.zeros((POINTS, POINTS))
    evaluation[:-1] = points[:, None] ** np.arange(POINTS)
    evaluation[-1, -1] = 1
    inverse = np.linalg.inv(evaluation).T
    # a polynomial's value at infinity is its leading coefficient
    values = {terms: np.vstack((evaluation[:-1, :terms], np.eye(terms)[-1:])) for terms in (TILE, 3)}
    scale = np.abs(inverse).max(1, keepdims=True)
    return values[TILE].T, values[3] * scale, inverse / scale


@functools.cache
def _band_matrices(tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """B^T and A of a row of tiles: (points * tiles, inputs with padding) and (points * tiles, outputs)."""
    output, _, input = _matrices()
    analysis = np.zeros((POINTS, tiles, tiles * TILE + 2))
    for tile in range(tiles):
        analysis[:, tile, tile * TILE : tile * TILE + POINTS] = input
    synthesis = np.einsum("op,tu->ptuo", output, np.eye(tiles))
    return analysis.reshape(POINTS * tiles, -1), synthesis.reshape(POINTS * tiles, -1)


def _weight_matrix(like: Tensor) -> Float[Tensor, "36 9"]:
    _, weight, _ = _matrices()
    # the order of points is that of the tiles: across, down
    both = np.einsum("ai,bj->baij", weight, weight).reshape(POINTS**2, 9)
    return _tensor(both, like)


def _tensor(matrix: np.ndarray, like: Tensor) -> Tensor:
    # never kept: a tensor belongs to the modes it was made under (no gradients, a default device, fake tensors)
    return torch.tensor(matrix, dtype=like.dtype, device=like.device)


def _transform_weight(weight: Weight) -> Float[Tensor, "36 out_channels in_channels"]:
    return (_weight_matrix(weight) @ weight.flatten(2).flatten(0, 1).T).view(-1, *weight.shape[:2])


def _transform_weight_back(grad: Float[Tensor, "36 out_channels in_channels"]) -> Weight:
    nine = _weight_matrix(grad).T @ grad.flatten(1)  # in this order, since the other takes twice as long
    return nine.T.contiguous().view(*grad.shape[1:], 3, 3)


def _to_tiles(maps: Map, down: Tensor, across: Tensor) -> Tiles:
    """Multiply the columns of every map by one matrix and its rows by another: down @ map @ across.T, tile by tile.

    Args:
        maps: a piece of the input, or of the gradient of the output.
        down: (points * tiles, height).
        across: (points * tiles, width).
    """
    channels, height = maps.shape[1:3]
    planes = maps.permute(2, 3, 0, 1).flatten(2)  # height, width, images * channels: still a view
    rows = torch.bmm(across.expand(height, -1, -1), planes).view(height, POINTS, -1)
    tiles = torch.bmm(down.expand(POINTS, -1, -1), rows.transpose(0, 1))
    return tiles.view(POINTS**2, -1, channels)  # point across * point down, tile down * tile across * image, channel


def _add_from_tiles(tiles: Tiles, down: Tensor, across: Tensor, maps: Map) -> None:
    """Add down.T @ tiles @ across to every map: the transpose of `_to_tiles`.

    Args:
        tiles: as `_to_tiles` gives them.
        down: (points * tiles, height).
        across: (points * tiles, width).
        maps: a piece of the output, or of the gradient of the input; changed in place.
    """
    height = maps.shape[2]
    columns = tiles.view(POINTS, len(down), -1)
    rows = tiles.new_empty(height, POINTS, columns.shape[2])
    torch.bmm(down.T.expand(POINTS, -1, -1), columns, out=rows.transpose(0, 1))
    planes = maps.permute(2, 0, 1, 3).flatten(1, 2)  # height, images * channels, width: still a view
    planes.baddbmm_(rows.view(height, len(across), -1).mT, across.expand(height, -1, -1))
