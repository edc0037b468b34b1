"""The forms for a CPU against the plain layers: values, derivatives, shares."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddpm_hf.models.fast.cpu import FastDropout, FastNormSiLU


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_norm_silu_and_its_derivatives(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = FastNormSiLU(2, 4, eps=1e-3).double()
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
    norm = FastNormSiLU(2, 4).requires_grad_(False)
    hidden = torch.randn(2, 4, 3, 3, requires_grad=True)
    norm(hidden).sum().backward()
    assert hidden.grad is not None and norm.weight.grad is None


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_share_it_should(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = FastDropout(probability)
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
    layer, hidden = FastDropout(0.3), torch.ones(2, 3, 5, 5)
    torch.manual_seed(3)
    first = layer(hidden)
    torch.manual_seed(3)
    assert torch.equal(layer(hidden), first)
