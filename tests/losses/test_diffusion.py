"""The loss against closed forms, for all terms and prediction types."""

import dataclasses
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import process_of

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.losses import DiffusionLoss, LossOutput
from ddpm_hf.schedulers import DiffusionProcess

T = 50
ALPHA_BAR = torch.cos(torch.linspace(0.05, 1.5, T, dtype=torch.float64)) ** 2
PREDICTIONS = ("epsilon", "sample", "v_prediction")
PROCESS = process_of(ALPHA_BAR)
SHAPE = (6, 3, 4, 5)
ALL_TERMS = {"loss_type": "hybrid", "mse_weight": 0.5, "l1_weight": 2.0, "huber_weight": 3.0, "huber_delta": 0.7}
PLAIN = {"use_time_weighting": False}
SNR = {"time_weight_type": "snr"}


def batch(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    prediction, x_0, noise = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    x_0, timesteps = x_0.clamp(-1, 1), torch.randint(T, SHAPE[:1], generator=generator)
    return prediction, x_0, noise, PROCESS.q_sample(x_0, noise, timesteps), timesteps


def target_of(prediction_type: str, x_0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """The target; v as the derivative of x_t = cos(angle) x_0 + sin(angle) eps by the angle, not by its formula."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x_0
    angle = torch.acos(ALPHA_BAR[timesteps].sqrt()).view(-1, 1, 1, 1)
    before, after = (torch.cos(angle + h) * x_0 + torch.sin(angle + h) * noise for h in (-1e-5, 1e-5))
    return ((after - before) / 2e-5).float()


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("options", [PLAIN, SNR, {**ALL_TERMS, **PLAIN}, {**ALL_TERMS, **SNR}])
def test_loss_is_the_weighted_mean_of_its_terms(prediction_type: str, options: dict) -> None:
    loss = DiffusionLoss(LossConfig(**options), PROCESS, prediction_type)
    prediction, x_0, noise, x_t, timesteps = batch()
    out = loss(prediction, x_0, noise, x_t, timesteps)

    expected, means = [], dict.fromkeys(out.terms, 0.0)
    target = target_of(prediction_type, x_0, noise, timesteps)
    for i, t in enumerate(timesteps.tolist()):
        errors = (prediction[i] - target[i]).double().flatten().tolist()
        delta = ALL_TERMS["huber_delta"]
        terms = {
            "mse": sum(e * e for e in errors) / len(errors),
            "l1": sum(abs(e) for e in errors) / len(errors),
            "huber": sum(e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2) for e in errors) / len(errors),
        }
        weights = {name: options.get(f"{name}_weight", 1.0) for name in means}
        w = min(max(ALPHA_BAR[t].item() / (1 - ALPHA_BAR[t].item()), 0.1), 1.0) if "time_weight_type" in options else 1
        expected.append(w * sum(weights[name] * terms[name] for name in means))
        means = {name: mean + terms[name] / SHAPE[0] for name, mean in means.items()}

    assert set(out.terms) == ({"mse", "l1", "huber"} if "loss_type" in options else {"mse"})
    torch.testing.assert_close(out.per_sample, torch.tensor(expected))
    torch.testing.assert_close(out.loss, torch.tensor(math.fsum(expected) / SHAPE[0]))
    for name, mean in means.items():
        torch.testing.assert_close(out.terms[name], torch.tensor(mean))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_targets_agree_with_diffusers(prediction_type: str) -> None:
    """The target, given to a diffusers scheduler as the network's output, leads it to exactly x_0."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    process = DiffusionProcess(scheduler.betas.double())
    _, x_0, noise, _, _ = batch()
    x_0, noise = x_0[:1], noise[:1]
    for t in (0, 10, 500, 999):
        target = process.target(x_0, noise, torch.tensor([t]), prediction_type)
        x_t = scheduler.add_noise(x_0, noise, torch.tensor([t]))
        assert prediction_type != "v_prediction" or torch.allclose(
            target, scheduler.get_velocity(x_0, noise, torch.tensor([t])), atol=1e-4
        )
        got = scheduler.step(target, t, x_t, generator=torch.Generator().manual_seed(0)).pred_original_sample
        torch.testing.assert_close(got, x_0, rtol=0, atol=2e-3)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_perfect_prediction_has_no_loss(prediction_type: str) -> None:
    loss = DiffusionLoss(LossConfig(**ALL_TERMS, **SNR), PROCESS, prediction_type)
    _, x_0, noise, x_t, timesteps = batch()
    out = loss(target_of(prediction_type, x_0, noise, timesteps), x_0, noise, x_t, timesteps)
    torch.testing.assert_close(out.loss, torch.tensor(0.0), rtol=0, atol=1e-6)


def test_gradient_of_mse_is_two_errors_over_the_number_of_values() -> None:
    loss = DiffusionLoss(LossConfig(**SNR), PROCESS, "epsilon")
    prediction, x_0, noise, x_t, timesteps = batch()
    prediction.requires_grad_()
    sample_weights = torch.linspace(0.5, 2, SHAPE[0])
    loss(prediction, x_0, noise, x_t, timesteps, sample_weights).loss.backward()
    w = (loss.weights[timesteps] * sample_weights).view(-1, 1, 1, 1)
    torch.testing.assert_close(prediction.grad, 2 * w * (prediction.detach() - noise) / prediction.numel())


def test_only_the_loss_carries_a_gradient() -> None:
    loss = DiffusionLoss(LossConfig(**ALL_TERMS), PROCESS, "sample")
    prediction, x_0, noise, x_t, timesteps = batch()
    out = loss(prediction.requires_grad_(), x_0, noise, x_t, timesteps)
    assert out.loss.requires_grad
    assert not any(value.requires_grad for value in (out.per_sample, *out.terms.values()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.loss = out.loss * 2


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_half_precision_predictions_are_compared_in_float32(prediction_type: str) -> None:
    loss = DiffusionLoss(LossConfig(**ALL_TERMS, **SNR), PROCESS, prediction_type)
    prediction, x_0, noise, x_t, timesteps = batch()
    rounded = prediction.bfloat16()
    exact = loss(rounded.float(), x_0, noise, x_t, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        out = loss(rounded.requires_grad_(), x_0, noise, x_t, timesteps)
    assert out.loss.dtype == out.per_sample.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in out.terms.values())
    torch.testing.assert_close(out.loss, exact.loss, rtol=0, atol=0)
    out.loss.backward()
    assert rounded.grad.dtype == torch.bfloat16


def test_sample_weights_multiply_loss_and_terms_but_not_per_sample() -> None:
    loss = DiffusionLoss(LossConfig(**SNR), PROCESS, "epsilon")
    plain = loss(*batch())
    sample_weights = torch.rand(SHAPE[0]) + 0.5
    weighted = loss(*batch(), sample_weights)
    torch.testing.assert_close(weighted.per_sample, plain.per_sample)
    torch.testing.assert_close(weighted.loss, (plain.per_sample * sample_weights).mean())
    torch.testing.assert_close(
        weighted.terms["mse"], (plain.per_sample / loss.weights[batch()[4]] * sample_weights).mean()
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 10), parts=st.sampled_from([1, 2, 3]))
def test_scaling_errors_scales_terms_and_parts_average_to_the_whole(seed: int, scale: float, parts: int) -> None:
    loss = DiffusionLoss(LossConfig(loss_type="hybrid", **SNR), PROCESS, "epsilon")
    prediction, x_0, noise, x_t, timesteps = batch(seed)
    whole = loss(prediction, x_0, noise, x_t, timesteps)
    scaled = loss(noise + scale * (prediction - noise), x_0, noise, x_t, timesteps)
    torch.testing.assert_close(scaled.terms["mse"], scale**2 * whole.terms["mse"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scaled.terms["l1"], scale * whole.terms["l1"], rtol=1e-4, atol=1e-6)
    assert whole.terms["huber"] <= min(whole.terms["mse"] / 2, whole.terms["l1"]) + 1e-6
    chunks = zip(*(tensor.chunk(parts) for tensor in (prediction, x_0, noise, x_t, timesteps)), strict=True)
    torch.testing.assert_close(torch.stack([loss(*chunk).loss for chunk in chunks]).mean(), whole.loss)


def test_terms_of_weight_zero_are_not_computed() -> None:
    loss = DiffusionLoss(LossConfig(loss_type="hybrid", l1_weight=0), PROCESS, "epsilon")
    assert set(loss(*batch()).terms) == {"mse", "huber"}


def test_it_holds_no_parameters_and_nothing_to_save() -> None:
    loss = DiffusionLoss(LossConfig(**SNR), PROCESS, "v_prediction")
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32}


def test_wrong_channels_are_refused_instead_of_broadcast() -> None:
    loss = DiffusionLoss(LossConfig(), PROCESS, "epsilon")
    prediction, x_0, noise, x_t, timesteps = batch()
    without_type_checks = inspect.unwrap(DiffusionLoss.forward)
    with pytest.raises(ValueError, match=r"\(6, 1, 4, 5\)"):
        without_type_checks(loss, prediction[:, :1], x_0, noise, x_t, timesteps)


def test_unknown_prediction_type_is_refused() -> None:
    without_type_checks = inspect.unwrap(DiffusionLoss.__init__)
    with pytest.raises(ValueError, match="'eps'"):
        without_type_checks(DiffusionLoss.__new__(DiffusionLoss), LossConfig(), PROCESS, "eps")


def test_output_is_what_it_says() -> None:
    assert isinstance(DiffusionLoss(LossConfig(), PROCESS, "epsilon")(*batch()), LossOutput)
