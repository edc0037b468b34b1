"""The fast forms go in and out of a network, which stays the same to everything that looks at it."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ddpm_hf.models import DDPMUNet
from ddpm_hf.models.fast import FORMS, accelerate, restore
from ddpm_hf.models.layers.residual import BlockOptions, ResidualBlock

SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "initialization": "pytorch",
}


def make(**changes: object) -> DDPMUNet:
    torch.manual_seed(0)
    return DDPMUNet(**SMALL | changes)


def plain(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    restore(twin)
    return twin


def forms(network: nn.Module) -> set[type]:
    return {type(module) for module in network.modules()} & set(FORMS)


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, 16, 16, generator=generator), torch.arange(3) * 100


def gradients_of(network: nn.Module) -> list[torch.Tensor]:
    loss = network(*images()).sample.square().mean()
    return list(torch.autograd.grad(loss, list(network.parameters())))


def assert_near(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_in_and_out_again() -> None:
    network = make()
    assert forms(network) == set(FORMS)
    names, parameters = list(network.state_dict()), dict(network.named_parameters())
    restore(network)
    assert not any(type(module).__module__.startswith("ddpm_hf.models.fast") for module in network.modules())
    assert list(network.state_dict()) == names
    assert all(network.get_parameter(name) is parameter for name, parameter in parameters.items())
    accelerate(network)
    accelerate(network)
    assert forms(network) == set(FORMS)
    assert list(network.state_dict()) == names


def test_layers_that_are_not_plain_stay_as_they_are() -> None:
    class Quantised(nn.Conv2d):
        pass

    network = plain(make())
    block, upsample = network.mid_block.resnets[0], network.up_blocks[0].upsamplers[0]
    block.conv1.__class__ = upsample.conv.__class__ = Quantised
    before = {name: type(module) for name, module in upsample.named_modules()}
    accelerate(network)
    assert type(block.conv1) is Quantised
    assert {name: type(module) for name, module in upsample.named_modules()} == before


def test_same_values_and_gradients_as_the_plain_network() -> None:
    network = make()
    other = plain(network)
    assert_near(network(*images()).sample, other(*images()).sample)
    assert_near(gradients_of(network), gradients_of(other))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_fast_too(copied: Callable[[nn.Module], nn.Module]) -> None:
    network = make(dropout=0.3).train()
    twin = copied(network)
    assert forms(twin) == set(FORMS)
    torch.manual_seed(2)
    expected = gradients_of(network)
    torch.manual_seed(2)
    assert all(map(torch.equal, gradients_of(twin), expected))
    with torch.no_grad():  # parameters of its own
        twin.conv_in.weight.zero_()
    assert network.conv_in.weight.any()


def test_second_derivatives_are_those_of_the_plain_network() -> None:
    """A gradient penalty, say."""
    network = make().double()

    def penalty(network: nn.Module) -> list[torch.Tensor]:
        sample, timestep = images()
        sample = sample[:, :, :8, :8].double().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # PyTorch's other kernels are differentiable only once
            output = network(sample, timestep).sample
        (slope,) = torch.autograd.grad(output.square().sum(), sample, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), network.conv_in.weight))

    assert_near(penalty(network), penalty(plain(network)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's attention under vmap
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, within jvp
def test_transforms_of_torch_func() -> None:
    network = make().eval()
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
    sample, timestep = images()

    def loss(parameters: dict[str, torch.Tensor], sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return functional_call(network, parameters, (sample, timestep)).sample.square().mean()

    expected = dict(zip(parameters, gradients_of(network), strict=True))
    assert_near(grad(loss)(parameters, sample, timestep), expected)
    _, pull_back = vjp(lambda parameters: loss(parameters, sample, timestep), parameters)
    assert_near(pull_back(torch.tensor(1.0))[0], expected)

    def of_one(parameters: dict, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return loss(parameters, sample[None], timestep)

    each = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, sample, timestep)
    assert_near({name: gradients.mean(0) for name, gradients in each.items()}, expected)

    direction = torch.randn_like(sample)
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's other kernels have no forward derivative
        _, slope = jvp(lambda sample: loss(parameters, sample, timestep), (sample,), (direction,))
    assert_near(slope, (grad(loss, argnums=1)(parameters, sample, timestep) * direction).sum())


def test_transforms_where_winograd_s_algorithm_would_compute() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(128, 128, BlockOptions(8, dropout=0.1)).eval()
    accelerate(block)
    hidden, time = torch.randn(8, 128, 16, 16, requires_grad=True), torch.randn(8, 8)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return block(hidden, time).square().mean()

    assert "conv3x3" in str(type(block.conv1(hidden).grad_fn))
    (expected,) = torch.autograd.grad(loss(hidden), hidden)
    torch.testing.assert_close(grad(loss)(hidden), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's attention under vmap
def test_dropout_of_each_image_under_vmap() -> None:
    network = make(dropout=0.5).train()
    sample, timestep = images()
    draw = vmap(lambda x, t: network(x[None], t).sample[0], randomness="different")
    first = draw(sample[:1].expand(3, -1, -1, -1), timestep[:1].expand(3))
    assert not torch.equal(first[0], first[1])
