"""Winograd's algorithm is a convolution: in value, in derivatives, and within rounding."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from ddpm_hf.models import DDPMUNet
from ddpm_hf.models.fast import accelerate
from ddpm_hf.models.fast.winograd import WinogradConv, conv3x3, gains
from ddpm_hf.models.layers.residual import BlockOptions, ResidualBlock


def operands(*shape: int, features: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    weight = torch.randn(features, shape[1], 3, 3, dtype=dtype) * (9 * shape[1]) ** -0.5
    values = (torch.randn(shape, dtype=dtype), weight, torch.randn(features, dtype=dtype))
    return tuple(value.requires_grad_() for value in values)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few tiles go by Winograd's algorithm, too."""
    monkeypatch.setattr("ddpm_hf.models.fast.winograd.MIN_TILES", 0)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("sides", [(16, 16), (8, 4), (1, 2), (9, 11), (20, 37), (33, 64)])
def test_value_and_gradients_are_those_of_a_convolution(sides: tuple[int, int]) -> None:
    inputs = operands(3, 5, *sides)
    expected, result = F.conv2d(*inputs, padding=1), conv3x3(*inputs)
    torch.testing.assert_close(result, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs, direction), torch.autograd.grad(expected, inputs, direction)
    )


@pytest.mark.usefixtures("any_size")
def test_work_in_pieces_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = operands(5, 3, 20, 24)
    expected = F.conv2d(*inputs, padding=1)
    monkeypatch.setattr("ddpm_hf.models.fast.winograd.PIECE", 2 * 4 * 24 * 24)  # two images at once
    result = conv3x3(*inputs)
    torch.testing.assert_close(result, expected)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs, direction), torch.autograd.grad(expected, inputs, direction)
    )


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("sides", [(5, 6), (17, 4)])
def test_derivatives(sides: tuple[int, int]) -> None:
    inputs = operands(2, 2, *sides, features=3)
    assert torch.autograd.gradcheck(conv3x3, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(conv3x3, inputs, fast_mode=True)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_needed(needed: tuple[int, ...]) -> None:
    inputs = tuple(value.detach().requires_grad_(index in needed) for index, value in enumerate(operands(2, 3, 8, 8)))
    conv3x3(*inputs).square().sum().backward()
    gradients = [value.grad for value in inputs]
    assert [gradient is not None for gradient in gradients] == [index in needed for index in range(3)]
    for value in inputs:
        value.grad = None
    F.conv2d(*inputs, padding=1).square().sum().backward()
    torch.testing.assert_close(gradients, [value.grad for value in inputs])


def test_rounding_stays_near_that_of_a_convolution() -> None:
    """As measured: 1.1e-6 against 2.2e-7, where the points of the paper would give 2.3e-6."""
    inputs = operands(8, 128, 16, 16, features=128, dtype=torch.float32)
    exact = [value.detach().double().requires_grad_() for value in inputs]
    expected, result = F.conv2d(*exact, padding=1), conv3x3(*inputs)
    direction = torch.randn_like(result)
    pairs = zip(
        (result, *torch.autograd.grad(result, inputs, direction)),
        (expected, *torch.autograd.grad(expected, exact, direction.double())),
        strict=True,
    )
    for ours, exactly in pairs:
        assert (ours - exactly).norm() < 2e-6 * exactly.norm()
        assert (ours - exactly).abs().max() < 5e-6 * exactly.abs().max()


def test_twice_the_same_is_the_same() -> None:
    inputs = operands(8, 128, 16, 16, features=128, dtype=torch.float32)
    direction = torch.randn(8, 128, 16, 16)
    first, second = (torch.autograd.grad(conv3x3(*inputs), inputs, direction) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_where_it_is_used() -> None:
    layer, images = WinogradConv(128, 128, 3, padding=1), torch.zeros(8, 128, 16, 16)
    assert gains(images, layer.weight)
    assert not gains(images[:7], layer.weight)  # too little work
    assert not gains(torch.zeros(8, 128, 18, 18), layer.weight)  # tiles would stand over
    assert not gains(torch.zeros(8, 64, 16, 16), WinogradConv(64, 128, 3, padding=1).weight)
    assert not gains(images.contiguous(memory_format=torch.channels_last), layer.weight)
    assert not gains(images.bfloat16(), layer.bfloat16().weight)
    assert not gains(images.double(), layer.double().weight)
    assert not gains(images.to("meta"), layer.to("meta").weight)
    layer = WinogradConv(128, 128, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not gains(images, layer.weight)
    with torch.no_grad():  # an image must not depend on the size of its batch
        assert not gains(images, layer.weight)
        assert torch.equal(layer(images + 1)[:1], layer(images[:1] + 1))


def name_of_graph(output: torch.Tensor) -> str:
    return type(output.grad_fn).__name__


def test_layer_takes_it_and_gives_way() -> None:
    layer, images = WinogradConv(128, 128, 3, padding=1), torch.randn(8, 128, 16, 16)
    assert "conv3x3" in name_of_graph(layer(images))
    assert "Convolution" in name_of_graph(layer(images[:1]))
    assert "Convolution" in name_of_graph(layer(images.contiguous(memory_format=torch.channels_last)))


def test_default_device_and_modes_leave_no_trace() -> None:
    layer, images = WinogradConv(128, 128, 3, padding=1), torch.randn(8, 128, 16, 16)
    with torch.device("meta"):
        first = layer(images)
    with torch.inference_mode():
        conv3x3(images, layer.weight, layer.bias)
    torch.testing.assert_close(layer(images), first, rtol=0, atol=0)
    first.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):  # backward under autocast stays in float32
        (gradient,) = torch.autograd.grad(layer(images.requires_grad_()).sum(), images)
    assert gradient.dtype == torch.float32


def test_checkpointing_copies_and_pickles_change_no_gradient() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(128, 128, BlockOptions(8, dropout=0.3))
    accelerate(block)
    hidden, time = torch.randn(8, 128, 16, 16), torch.randn(8, 8)

    def gradients(block: ResidualBlock, checkpointed: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        output = (
            torch.utils.checkpoint.checkpoint(block, hidden, time, use_reentrant=False)
            if checkpointed
            else block(hidden, time)
        )
        return list(torch.autograd.grad(output.square().sum(), list(block.parameters())))

    expected = gradients(block, checkpointed=False)
    for other, checkpointed in (
        (block, True),
        (copy.deepcopy(block), False),
        (pickle.loads(pickle.dumps(block)), False),
    ):
        assert all(map(torch.equal, gradients(other, checkpointed), expected))


def test_it_keeps_nothing_but_input_and_weights_for_the_backward_pass() -> None:
    layer, images = WinogradConv(128, 128, 3, padding=1), torch.randn(8, 128, 16, 16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(images)
    known = {images.data_ptr(), layer.weight.data_ptr(), layer.bias.data_ptr()}
    assert {tensor.data_ptr() for tensor in kept} <= known


def test_network_wide_enough_for_it_agrees_with_stock() -> None:
    """The tolerances of `test_parity.py`, where Winograd's algorithm computes."""
    torch.manual_seed(0)
    stock = UNet2DModel(
        block_out_channels=(128,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        add_attention=False,
        norm_eps=1e-6,
    ).eval()
    ours = DDPMUNet.from_stock(stock)
    sample, timestep = torch.randn(8, 3, 16, 16), torch.arange(8) * 100
    direction = torch.randn_like(sample)
    results = []
    for network in (stock, ours):
        output = network(sample, timestep).sample
        network.zero_grad()
        (output * direction).sum().backward()
        results.append((output, {name: parameter.grad.clone() for name, parameter in network.named_parameters()}))
    (expected, gradients), (output, found) = results
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        tolerance = 1e-4 * gradient.abs().max() + 1e-6 * largest
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance.item(), msg=name)
