"""Convolutions that keep their weights in oneDNN's layout from one forward pass to the next, for sampling on a CPU.

PyTorch convolves there with oneDNN, whose kernels take weights in blocks. PyTorch reorders them in every call, and
under autocast rounds them as well; with few images that takes a good part of the convolution's time. Sampling makes
many passes with the same weights, which need to be reordered once. What it gains: benchmarks/results/network.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.models.fast.doubling import DoublingConv, transposed_kernel

Map = Float[Tensor, "batch in_channels height width"]
MapOut = Float[Tensor, "batch out_channels out_height out_width"]


@contextmanager
def prepacked(network: nn.Module) -> Iterator[None]:
    """Lay out the weights of convolutions once for all forward passes without gradients within.

    The weights must not change meanwhile, and take twice their memory. Convolutions with a forward pass of their own
    (compiled, offloaded) or weights of another class (sharded, quantised) stay as they are.

    Args:
        network: on a CPU; elsewhere nothing happens.
    """
    modules = list(network.modules())
    compiled = any(module._compiled_call_impl is not None for module in modules)
    taken = [module for module in modules if isinstance(module, nn.Conv2d) and _is_plain(module) and not compiled]
    for module in taken:
        module.forward = _Prepacked(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in taken:
            module.__dict__.pop("forward", None)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution is oneDNN's, with weights and a forward pass of its own."""
    return (
        type(conv.weight) is nn.Parameter
        and conv.weight.device.type == "cpu"
        and conv.groups == 1
        and "forward" not in vars(conv)
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")  # not every build of PyTorch has oneDNN
    )


def _has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in a precision, on this CPU."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Prepacked:
    """The forward pass of a convolution, with weights that are laid out at the first call.

    Memory is channels-last, which oneDNN is fastest on. What lies between convolutions keeps it, as long as nothing is
    to be differentiated.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.packed: dict[torch.dtype, Callable[[Tensor], Tensor]] = {}

    def __call__(self, input: Map) -> MapOut:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.conv.weight.dtype
        if torch.is_grad_enabled() or input.device.type != "cpu" or not _has_kernels(dtype):
            return type(self.conv).forward(self.conv, input)
        if dtype not in self.packed:
            self.packed[dtype] = self._pack(dtype, list(input.shape))
        return self.packed[dtype](input.to(dtype, memory_format=torch.channels_last))

    def _pack(self, dtype: torch.dtype, shape: list[int]) -> Callable[[Tensor], Tensor]:
        conv, operators = self.conv, torch.ops.mkldnn
        weight, bias = conv.weight.detach().to(dtype), None if conv.bias is None else conv.bias.detach().to(dtype)
        geometry: dict[str, Any] = {"padding": conv.padding, "stride": conv.stride, "dilation": conv.dilation}
        reorder, convolve = operators._reorder_convolution_weight, operators._convolution_pointwise
        if isinstance(conv, DoublingConv):
            weight = transposed_kernel(weight)
            geometry = {"padding": (1, 1), "output_padding": (0, 0), "stride": (2, 2), "dilation": (1, 1)}
            reorder = operators._reorder_convolution_transpose_weight
            convolve = operators._convolution_transpose_pointwise
        geometry["groups"] = 1
        weight = reorder(weight, **geometry, input_size=shape)
        return partial(convolve, W=weight, B=bias, **geometry, attr="none", scalars=[], algorithm="")
