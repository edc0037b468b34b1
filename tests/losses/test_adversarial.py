"""The adversarial loss: its losses in closed form, who gets which gradient, and that it can be resumed and spread."""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from processes import free_port
from tiny import process_of
from torch import nn

from ddpm_hf.config.loss import AdversarialConfig, LossConfig
from ddpm_hf.losses import DiffusionLoss
from ddpm_hf.losses.adversarial import ADVERSARIAL_LOSSES, AdversarialLoss, PatchDiscriminator, r1_penalty
from ddpm_hf.runtime.errors import UserError

# a network this small spends its time on waiting for threads
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"hidden_channels": 8, "num_levels": 2}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(seed: int = 0, size: int = 8) -> tuple[torch.Tensor, ...]:
    """Fakes are noise, real images are smooth."""
    generator = torch.Generator().manual_seed(seed)
    fake = torch.randn(8, 1, size, size, generator=generator)
    real = torch.randn(8, 1, 1, 1, generator=generator).expand(8, 1, size, size).tanh()
    return fake, real, torch.randint(1000, (8,), generator=generator)


def adversary(**options: object) -> AdversarialLoss:
    torch.manual_seed(0)
    return AdversarialLoss(AdversarialConfig(weight=1, **{**SMALL, **options}), image_channels=1, sides=(8, 8))


@pytest.mark.parametrize(("channels", "size", "levels"), [(1, 8, 2), (3, 32, 3), (3, 9, 1)])
def test_there_is_one_logit_per_patch(channels: int, size: int, levels: int) -> None:
    network = PatchDiscriminator(channels, 8, levels)
    logits = network(torch.zeros(2, channels, size, size), torch.tensor([0, 999]))
    assert logits.shape == (2, 1, size >> levels, size >> levels)


def test_logits_depend_on_image_and_timestep_of_their_own_only() -> None:
    network = PatchDiscriminator(1, 8, 2)
    for parameter in network.film.parameters():
        nn.init.normal_(parameter, std=0.1)
    images, _, _ = batch()
    early, late = network(images, torch.zeros(8, dtype=torch.int64)), network(images, torch.full((8,), 900))
    assert (early - late).abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(network(images[:1], torch.tensor([900])), late[:1])


@pytest.mark.parametrize("adversarial", ADVERSARIAL_LOSSES)
def test_losses_of_the_game_are_the_papers(adversarial: str) -> None:
    loss_of = adversary(loss=adversarial, gradient_penalty=0)
    fake, real, timesteps = batch()
    logits = {name: loss_of.discriminator(each, timesteps) for name, each in (("real", real), ("fake", fake))}

    def written_out(values: torch.Tensor, loss: object) -> float:
        return sum(map(loss, values.flatten().tolist())) / values.numel()

    if adversarial == "hinge":
        expected = written_out(logits["real"], lambda d: max(0, 1 - d))
        expected += written_out(logits["fake"], lambda d: max(0, 1 + d))
        network = [-each.mean().item() for each in logits["fake"]]
    else:
        expected = written_out(logits["real"], lambda d: -math.log(1 / (1 + math.exp(-d))))
        expected += written_out(logits["fake"], lambda d: -math.log(1 - 1 / (1 + math.exp(-d))))
        network = [written_out(each, lambda d: -math.log(1 / (1 + math.exp(-d)))) for each in logits["fake"]]
    out = loss_of(fake, real, timesteps)
    torch.testing.assert_close(out.loss, torch.tensor(expected))
    torch.testing.assert_close(loss_of.network_term(fake, real, timesteps), torch.tensor(network))
    torch.testing.assert_close(out.terms["real"], logits["real"].mean().detach())
    assert set(out.terms) == {"real", "fake"}


def test_penalty_of_a_linear_discriminator_is_half_its_squared_slope() -> None:
    slope = torch.randn(1, 1, 4, 4)
    images = torch.randn(5, 1, 4, 4, requires_grad=True)
    logits = (images * slope).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(r1_penalty(logits, images), slope.square().sum() / 2)


def test_penalty_is_added_and_lowers_the_slope_at_real_images() -> None:
    fake, real, timesteps = batch()
    plain = adversary(gradient_penalty=0, learning_rate=2e-3)
    penalised = adversary(gradient_penalty=3.0, learning_rate=2e-3)
    out = penalised(fake, real, timesteps)
    expected = plain(fake, real, timesteps).loss + 3 * out.terms["penalty"]
    torch.testing.assert_close(out.loss, expected)
    assert out.terms["penalty"] > 0
    trained = {}
    for each in (plain, penalised):
        train(each, range(40))
        images = real.clone().requires_grad_()
        trained[each] = r1_penalty(each.discriminator(images, timesteps), images).item()
    assert trained[penalised] < trained[plain] / 2


def train(
    adversarial: AdversarialLoss, steps: range, optimizer: torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    optimizer = optimizer or adversarial.make_optimizer()
    for step in steps:
        if adversarial.is_trained(step):
            optimizer.zero_grad()
            adversarial(*batch(step)).loss.backward()
            optimizer.step()
    return optimizer


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_discriminator_learns_to_tell_noise_from_smooth_images(loss: str) -> None:
    adversarial = adversary(loss=loss, learning_rate=2e-3)
    train(adversarial, range(80))
    terms = adversarial(*batch(1000)).terms
    assert terms["real"] > 0.2
    assert terms["fake"] < -0.2


def test_each_side_gets_its_own_gradient_only() -> None:
    adversarial = adversary()
    fake, real, timesteps = batch()
    fake.requires_grad_()
    adversarial(fake, real, timesteps).loss.backward()
    assert fake.grad is None
    before = {name: parameter.grad.clone() for name, parameter in adversarial.named_parameters()}
    assert any(gradient.abs().sum() > 0 for gradient in before.values())
    adversarial.network_term(fake, real, timesteps).sum().backward()
    assert fake.grad.abs().sum() > 0
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in adversarial.named_parameters())


def test_following_the_term_makes_fakes_more_real() -> None:
    adversarial = adversary(learning_rate=2e-3)
    train(adversarial, range(40))
    fake, real, timesteps = batch(1000)
    fake.requires_grad_()
    before = adversarial.network_term(fake, real, timesteps)
    (gradient,) = torch.autograd.grad(before.sum(), fake)
    assert (adversarial.network_term(fake.detach() - 0.1 * gradient, real, timesteps) < before).all()


def test_it_is_a_term_of_the_diffusion_loss() -> None:
    adversarial = adversary()
    alpha_bar = torch.linspace(0.99, 0.01, 1000, dtype=torch.float64)
    config = LossConfig(use_time_weighting=False)
    process = process_of(alpha_bar)
    loss = DiffusionLoss(config, process, "v_prediction", {"adversarial": (0.5, adversarial.network_term)})
    prediction, real, timesteps = batch()
    eps = torch.zeros_like(real)
    out = loss(prediction.requires_grad_(), real, eps, process.q_sample(real, eps, timesteps), timesteps)
    expected = alpha_bar[timesteps].float() * adversarial.network_term(out.predicted_x_0, real, timesteps)
    torch.testing.assert_close(out.terms["adversarial"], expected.mean().detach())
    torch.testing.assert_close(out.loss, out.terms["mse"] + 0.5 * out.terms["adversarial"])
    out.loss.backward()
    assert all(parameter.grad is None for parameter in adversarial.parameters())


def test_mixed_precision_leaves_the_loss_in_float32() -> None:
    adversarial = adversary()
    fake, real, timesteps = batch()
    exact = adversarial(fake.bfloat16().float(), real, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        out, term = (
            adversarial(fake.bfloat16(), real, timesteps),
            adversarial.network_term(fake.bfloat16(), real, timesteps),
        )
    assert term.dtype == out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, exact.loss, rtol=0, atol=0)


def test_step_decides_what_happens() -> None:
    adversarial = adversary(start_step=10, update_every=3)
    assert [step for step in range(20) if adversarial.is_trained(step)] == [10, 13, 16, 19]
    assert [step for step in range(13) if adversarial.is_active(step)] == [10, 11, 12]


def test_resuming_is_exact() -> None:
    straight, first = adversary(update_every=2), adversary(update_every=2)
    train(straight, range(11))
    optimizer = train(first, range(5))
    weights, moments = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    second = adversary(update_every=2)
    nn.init.zeros_(second.discriminator.conv_in.weight)
    second.load_state_dict(weights)
    resumed = second.make_optimizer()
    resumed.load_state_dict(moments)
    train(second, range(5, 11), resumed)
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])


def test_images_too_small_for_the_levels_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_levels.* 4"):
        adversary(num_levels=4)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_two_processes_play_the_same_game(tmp_path: Path) -> None:
    alone = adversary()
    given = {"options": alone.config.model_dump(), "weights": alone.state_dict()}
    torch.save({**given, "batches": [batch(step) for step in range(3)]}, tmp_path / "given.pt")
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    command = [sys.executable, str(Path(__file__).with_name("one_of_two.py")), str(tmp_path)]
    players = [subprocess.Popen(command, env={**os.environ, **where, "RANK": str(rank)}) for rank in range(2)]
    train(alone, range(3))
    assert [player.wait(timeout=120) for player in players] == [0, 0]
    expected = alone.state_dict()
    for rank in range(2):
        for name, weight in torch.load(tmp_path / f"weights_of_{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
