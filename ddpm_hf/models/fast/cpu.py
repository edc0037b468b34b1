"""Normalisation and dropout in forms that cost a CPU less memory or time.

Under torch.compile the plain forms run, since the compiler fuses them itself. What each is worth:
benchmarks/results/network_limits.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ddpm_hf.models.layers.residual import NormSiLU

Map = Float[Tensor, "batch channels height width"]


def runs_eagerly_on_cpu(input: Tensor) -> bool:
    """Whether operators run one by one on a CPU, with nobody to transform them.

    torch.compile, torch.export and the transforms of torch.func (grad, vjp, jvp, vmap) see plain operators instead,
    whose rules they know.

    Args:
        input: of a layer.
    """
    if torch.compiler.is_compiling():
        return False
    return input.device.type == "cpu" and not torch._C._are_functorch_transforms_active()


class FastNormSiLU(NormSiLU):
    """`NormSiLU` that keeps x alone for the backward pass, instead of x and the normalised x."""

    def forward(self, input: Map) -> Map:
        if not runs_eagerly_on_cpu(input):
            return super().forward(input)
        if not torch.is_grad_enabled():
            return F.silu(nn.GroupNorm.forward(self, input), inplace=True)
        return _NormSiLU.apply(input, self.weight, self.bias, self.num_groups, self.eps)


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        normalised, mean, rstd = _group_norm(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps  # type: ignore[attr-defined]
        return F.silu(normalised, inplace=True)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors  # type: ignore[attr-defined]
        groups, eps = ctx.groups, ctx.eps  # type: ignore[attr-defined]
        if torch.is_grad_enabled():  # differentiated once more: mean and rstd must be seen to depend on x
            out = F.silu(F.group_norm(x, groups, weight, bias, eps))
            return *torch.autograd.grad(out, (x, weight, bias), grads, create_graph=True), None, None
        normalised, _, _ = _group_norm(x, weight, bias, groups, eps)
        grad = torch.ops.aten.silu_backward(grads[0], normalised)
        batch, channels, height, width = x.shape
        wanted = list(ctx.needs_input_grad[:3])  # type: ignore[attr-defined]
        grads = torch.ops.aten.native_group_norm_backward(
            grad.contiguous(), x.contiguous(), mean, rstd, weight, batch, channels, height * width, groups, wanted
        )
        return *grads, None, None


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = x.shape
    # contiguous: the backward of PyTorch's CPU kernel is 6 to 20 times slower on channels-last memory
    return torch.native_group_norm(x.contiguous(), weight, bias, batch, channels, height * width, groups, eps)


class FastDropout(nn.Dropout):
    """Dropout whose mask takes a third of the time.

    The mask comes from 16 random bits per element, four elements to a draw: p is rounded to a multiple of 1 / 65536,
    and the scale of what is kept agrees with the rounded p.
    """

    def forward(self, input: Map) -> Map:
        dropped = round(self.p * 65536)
        if not (self.training and dropped and runs_eagerly_on_cpu(input)):
            return super().forward(input)
        count = input.numel()
        draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[:count].ge_(dropped - 2**15)
        scaled = kept.to(input.dtype).mul_(65536 / (65536 - dropped))
        return input * scaled.view(input.shape)
