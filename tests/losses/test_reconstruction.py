"""The predicted x_0, and terms of the loss that judge it."""

import pytest
import torch
from tiny import process_of

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.losses import DiffusionLoss

T = 50
ALPHA_BAR = torch.cos(torch.linspace(0.05, 1.5, T, dtype=torch.float64)) ** 2
PREDICTIONS = ("epsilon", "sample", "v_prediction")
PROCESS = process_of(ALPHA_BAR)
SHAPE = (6, 3, 4, 4)


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    x_0, timesteps = x_0.clamp(-1, 1), torch.randint(T, SHAPE[:1], generator=generator)
    return x_0, noise, PROCESS.q_sample(x_0, noise, timesteps), timesteps


def squared(predicted: torch.Tensor, real: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return (predicted - real).square().mean((1, 2, 3))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_target_stands_for_the_image_itself(prediction_type: str) -> None:
    loss = DiffusionLoss(LossConfig(), PROCESS, prediction_type, {"image": (1.0, squared)})
    x_0, noise, x_t, timesteps = batch()
    angle = torch.acos(ALPHA_BAR[timesteps].sqrt()).view(-1, 1, 1, 1).float()
    target = {"epsilon": noise, "sample": x_0, "v_prediction": angle.cos() * noise - angle.sin() * x_0}[prediction_type]
    out = loss(target, x_0, noise, x_t, timesteps)
    torch.testing.assert_close(out.predicted_x_0, x_0, rtol=0, atol=1e-4)
    assert not out.predicted_x_0.requires_grad


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_errors_of_x_0_relate_to_errors_of_the_target(prediction_type: str) -> None:
    """|eps error|^2 = SNR |x_0 error|^2 and |v error|^2 = (SNR + 1) |x_0 error|^2."""
    config = LossConfig(use_time_weighting=False)
    loss = DiffusionLoss(config, PROCESS, prediction_type, {"image": (2.0, squared)})
    x_0, noise, x_t, timesteps = batch()
    plain = DiffusionLoss(config, PROCESS, prediction_type)(torch.zeros(SHAPE), x_0, noise, x_t, timesteps)
    out = loss(torch.zeros(SHAPE), x_0, noise, x_t, timesteps)
    alpha_bar = ALPHA_BAR[timesteps].float()
    snr = alpha_bar / (1 - alpha_bar)
    ratio = {"epsilon": snr, "sample": torch.ones(6), "v_prediction": snr + 1}[prediction_type]
    expected = alpha_bar * plain.per_sample / ratio
    torch.testing.assert_close(out.terms["image"], expected.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.per_sample, plain.per_sample + 2 * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_gradients_stay_bounded_at_hopeless_timesteps(prediction_type: str) -> None:
    process = process_of(torch.tensor([1e-10], dtype=torch.float64))
    loss = DiffusionLoss(
        LossConfig(mse_weight=1e-9), process, prediction_type, {"image": (1.0, lambda p, r, t: p.sum((1, 2, 3)))}
    )
    prediction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    ones, timesteps = torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
    loss(prediction, ones, ones, process.q_sample(ones, ones, timesteps), timesteps).loss.backward()
    assert prediction.grad.abs().max() <= 0.5


def test_without_image_terms_no_image_is_predicted() -> None:
    x_0, noise, x_t, timesteps = batch()
    assert DiffusionLoss(LossConfig(), PROCESS, "epsilon")(noise, x_0, noise, x_t, timesteps).predicted_x_0 is None


def test_an_image_that_eps_does_not_determine_is_refused() -> None:
    process = process_of(torch.tensor([0.5, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="image: "):
        DiffusionLoss(LossConfig(), process, "epsilon", {"image": (1.0, squared)})
    DiffusionLoss(LossConfig(), process, "v_prediction", {"image": (1.0, squared)})
