"""The average of the weights is the one of its formula."""

import pytest
import torch
from torch import nn

from ddpm_hf.training.ema import ExponentialMovingAverage


def moved(network: nn.Linear, amount: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount)


def test_it_is_the_weighted_sum_of_all_weights():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = ExponentialMovingAverage(network, decay=0.9, schedule="constant")
    expected = network.weight.detach().double()
    for step in range(20):
        moved(network, 0.1 * step)
        ema.set_step(step)
        ema.update()
        expected = 0.9 * expected + 0.1 * network.weight.detach().double()
    torch.testing.assert_close(ema.network.weight.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_warm_up_forgets_the_first_weights():
    ema = ExponentialMovingAverage(nn.Linear(1, 1), decay=0.999)
    assert ema.decay_at(0) == pytest.approx(0.1)
    assert ema.decay_at(90) == pytest.approx(0.91)
    assert ema.decay_at(10**6) == 0.999


def test_the_power_form_is_that_of_its_formula():
    ema = ExponentialMovingAverage(nn.Linear(1, 1), decay=0.999, schedule="power", power=2 / 3)
    assert ema.decay_at(0) == 0
    assert ema.decay_at(7) == pytest.approx(1 - 8 ** (-2 / 3))
    assert ema.decay_at(10**6) == 0.999


def test_the_average_is_a_network_apart_in_eval_mode_without_gradients():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    ema = ExponentialMovingAverage(network, decay=0.5)
    before = network[0].weight.clone()
    moved(ema.network[0], 1.0)
    torch.testing.assert_close(network[0].weight, before, rtol=0, atol=0)
    assert network.training
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())


def test_an_average_that_an_update_does_not_apply_to_stays():
    network = nn.Linear(3, 2)
    ema = ExponentialMovingAverage(network, decay=0.9)
    before = ema.network.weight.clone()
    moved(network, 1.0)
    ema.set_step(0)
    ema.update(torch.tensor(0.0))
    torch.testing.assert_close(ema.network.weight, before, rtol=0, atol=0)
    ema.update(torch.tensor(1.0))
    torch.testing.assert_close(ema.network.weight, before + 0.9)


@pytest.mark.cuda
def test_on_a_gpu_the_average_is_the_same():
    networks = [nn.Linear(3, 2), nn.Linear(3, 2).cuda()]
    networks[1].load_state_dict(networks[0].state_dict())
    averages = [ExponentialMovingAverage(network, decay=0.9) for network in networks]
    for step in range(5):
        for network, average in zip(networks, averages, strict=True):
            moved(network, 0.1 * step)
            average.set_step(step)
            average.update()
    torch.testing.assert_close(averages[1].network.weight.cpu(), averages[0].network.weight)
