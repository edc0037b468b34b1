"""A network whose weights are laid out for many passes is the network that it was."""

import copy
import pickle

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ddpm_hf.models import DDPMUNet
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import DDPMScheduler

SMALL = {
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": None,
    "initialization": "pytorch",
}
REORDERS = ("mkldnn::_reorder_convolution_weight", "mkldnn::_reorder_convolution_transpose_weight")


@pytest.fixture
def network() -> DDPMUNet:
    torch.manual_seed(0)
    return DDPMUNet(sample_size=16, **SMALL).eval()


@torch.no_grad()
def predict(network: DDPMUNet, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return network(torch.randn(batch, 3, 16, 16), torch.arange(batch)).sample


def replaced(network: DDPMUNet) -> int:
    return sum("forward" in vars(module) for module in network.modules())


def assert_near(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_in_bfloat16_and_under_autocast(network: DDPMUNet) -> None:
    expected, half = predict(network), copy.deepcopy(network).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), network.prepacked():
        assert_near(predict(network).float(), expected, 3e-2)
    with half.prepacked(), torch.no_grad():
        torch.manual_seed(1)
        result = half(torch.randn(2, 3, 16, 16).bfloat16(), torch.arange(2)).sample
    assert result.dtype == torch.bfloat16
    assert_near(result.float(), expected, 3e-2)
    with network.prepacked():  # whichever comes first
        with torch.autocast("cpu", torch.bfloat16):
            predict(network)
        assert_near(predict(network), expected)


def test_a_precision_without_kernels_goes_the_usual_way(network: DDPMUNet) -> None:
    double = copy.deepcopy(network).double()
    with double.prepacked(), torch.no_grad():
        torch.manual_seed(1)
        result = double(torch.randn(2, 3, 16, 16).double(), torch.arange(2)).sample
    assert_near(result.float(), predict(network))


def test_weights_are_laid_out_once(network: DDPMUNet) -> None:
    with network.prepacked(), profile(activities=[ProfilerActivity.CPU]) as told:
        for batch in (2, 2, 1):
            predict(network, batch)
    counts = {event.key: event.count for event in told.key_averages()}
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
    assert sum(counts.get(name, 0) for name in REORDERS) == convolutions


def test_afterwards_new_weights_count(network: DDPMUNet) -> None:
    before = predict(network)
    with network.prepacked():
        predict(network)
    for parameter in network.parameters():
        parameter.data.mul_(1.1)  # which changes neither its version nor its address
    expected = predict(network)
    assert not torch.allclose(expected, before, rtol=1e-2)
    with network.prepacked():
        assert_near(predict(network), expected)


def test_gradients_flow_within(network: DDPMUNet) -> None:
    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        loss = network(torch.randn(2, 3, 16, 16), torch.arange(2)).sample.square().mean()
        return list(torch.autograd.grad(loss, list(network.parameters())))

    expected = gradients()
    with network.prepacked():
        predict(network)
        torch.testing.assert_close(gradients(), expected)


def test_whatever_happens_within_the_network_is_itself_again(network: DDPMUNet) -> None:
    expected = predict(network)
    with pytest.raises(ZeroDivisionError), network.prepacked():
        raise ZeroDivisionError
    assert not replaced(network)
    with network.prepacked():
        with network.prepacked():  # as two threads may
            assert_near(predict(network), expected)
        assert_near(predict(network), expected)
    assert torch.equal(predict(pickle.loads(pickle.dumps(network))), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # PyTorch's own, within torch.compile
def test_what_others_have_taken_over_is_left_to_them(network: DDPMUNet) -> None:
    class Doubled(torch.nn.Parameter):
        """Stands for weights that are sharded or quantised."""

    calls = []
    network.conv_in.forward = lambda input: calls.append(1) or torch.nn.Conv2d.forward(network.conv_in, input)
    network.conv_out.weight = Doubled(network.conv_out.weight.detach())
    expected = predict(network)
    with network.prepacked():
        assert "forward" not in vars(network.conv_out)
        assert_near(predict(network), expected)
    assert len(calls) == 2
    assert replaced(network) == 1
    network.conv_norm_out.compile()
    with network.prepacked():
        assert replaced(network) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_sampling_does_it_and_a_compiled_network_goes_without(network: DDPMUNet) -> None:
    pipeline = DDPMPipeline(network, DDPMScheduler(num_train_timesteps=4))
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    network.register_forward_pre_hook(lambda module, _: seen.append(replaced(module)))
    images = pipeline(seeds=[0], output_type="pt").images
    assert len(seen) == 4
    assert min(seen) > 0
    assert not replaced(network)
    seen.clear()
    pipeline.unet = torch.compile(network, backend="eager")
    with torch.compiler.set_stance("force_eager"):  # the checks of shapes in the tests cannot be compiled
        torch.testing.assert_close(pipeline(seeds=[0], output_type="pt").images, images, rtol=0, atol=1e-5)
    assert set(seen) == {0}
