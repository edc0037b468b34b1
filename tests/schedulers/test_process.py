"""The diffusion process against arithmetic written out in float64, closed forms and Monte Carlo."""

import math

import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.schedulers import DDPMScheduler, DiffusionProcess

T = 1000
BETAS = [1e-4 + t * (0.02 - 1e-4) / (T - 1) for t in range(T)]


def process(**config):
    return DDPMScheduler(**config).process


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alpha_bar(t):
    """Written out; -1 is the clean image."""
    return math.prod(1 - beta for beta in BETAS[: t + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_different_timesteps_against_arithmetic_written_out(dtype):
    timesteps = torch.tensor([0, 1, 17, 500, 999])
    x_0, eps = normal(5, 2, 3, 3, dtype=dtype), normal(5, 2, 3, 3, seed=1, dtype=dtype)
    q = process()
    x_t = q.q_sample(x_0, eps, timesteps)
    marginal, posterior = q.q_marginal(x_0, timesteps), q.q_posterior(x_0, x_t, timesteps)
    exact = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
    for i, t in enumerate(timesteps.tolist()):
        a_t, a_s, beta = alpha_bar(t), alpha_bar(t - 1), BETAS[t]
        assert_close(x_t[i], math.sqrt(a_t) * x_0[i] + math.sqrt(1 - a_t) * eps[i], **exact)
        assert_close(marginal.mean[i], math.sqrt(a_t) * x_0[i], **exact)
        assert marginal.variance[i].item() == pytest.approx(1 - a_t, rel=1e-6)
        assert marginal.log_variance[i].item() == pytest.approx(math.log(1 - a_t), rel=1e-6)
        mean = (math.sqrt(a_s) * beta * x_0[i] + math.sqrt(1 - beta) * (1 - a_s) * x_t[i]) / (1 - a_t)
        assert_close(posterior.mean[i], mean, **exact)
        beta_tilde = (1 - a_s) / (1 - a_t) * beta
        assert posterior.variance[i].item() == pytest.approx(beta_tilde, rel=1e-6, abs=0)
        clipped = beta_tilde or (1 - alpha_bar(0)) / (1 - alpha_bar(1)) * BETAS[1]
        assert posterior.log_variance[i].item() == pytest.approx(math.log(clipped), rel=1e-6)
        assert DDPMScheduler().snr(timesteps)[i].item() == pytest.approx(a_t / (1 - a_t), rel=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_conversions_are_inverses(schedule, prediction_type):
    q, timesteps = process(beta_schedule=schedule), torch.tensor([0, 3, 500, 990])
    x_0, eps = normal(4, 1, 3, 3, dtype=torch.float64), normal(4, 1, 3, 3, seed=1, dtype=torch.float64)
    x_t, v = q.q_sample(x_0, eps, timesteps), q.velocity(x_0, eps, timesteps)
    output = {"epsilon": eps, "sample": x_0, "v_prediction": v}[prediction_type]
    assert_close(q.predict_x_0(output, x_t, timesteps, prediction_type), x_0)
    assert_close(q.predict_eps(output, x_t, timesteps, prediction_type), eps)


def test_v_is_the_derivative_along_the_angle():
    """x_t = cos(phi) x_0 + sin(phi) eps, and v = d x_t / d phi."""
    q, t = process(), torch.tensor([400])
    x_0, eps = normal(1, 1, 3, 3, dtype=torch.float64), normal(1, 1, 3, 3, seed=1, dtype=torch.float64)
    phi = math.acos(math.sqrt(alpha_bar(400)))
    step = 1e-5
    ahead, behind = (math.cos(p) * x_0 + math.sin(p) * eps for p in (phi + step, phi - step))
    assert_close(q.velocity(x_0, eps, t), (ahead - behind) / (2 * step), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_posterior_is_bayes_rule(schedule):
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add."""
    q, timesteps = process(beta_schedule=schedule), torch.arange(1, 1000, 37)
    x_0, x_t = (normal(len(timesteps), 1, 1, 1, seed=i, dtype=torch.float64) for i in range(2))
    before, beta = q.q_marginal(x_0, timesteps - 1), q.at("beta", timesteps, x_0)
    precision = (1 - beta) / beta + 1 / before.variance
    mean = ((1 - beta).sqrt() / beta * x_t + before.mean / before.variance) / precision
    posterior = q.q_posterior(x_0, x_t, timesteps)
    assert_close(posterior.variance, 1 / precision, rtol=1e-9, atol=0)
    assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-12)


def moments_agree(samples, mean, variance):
    """First two moments within four standard errors."""
    n = samples.numel()
    assert abs(samples.mean().item() - mean) < 4 * math.sqrt(variance / n)
    assert abs(samples.var().item() - variance) < 4 * variance * math.sqrt(2 / (n - 1))


def test_marginal_by_monte_carlo():
    """Forty single steps q(x_t | x_{t-1}), eq. 2, one after the other."""
    n, q = 100_000, process(num_train_timesteps=40, beta_end=0.2)
    x = torch.full((n, 1, 1, 1), 0.7, dtype=torch.float64)
    for t in range(40):
        beta = q.tables["beta"][t]
        x = (1 - beta).sqrt() * x + beta.sqrt() * normal(n, 1, 1, 1, seed=t, dtype=torch.float64)
    end = q.q_marginal(torch.full((1, 1, 1, 1), 0.7), torch.tensor([39]))
    moments_agree(x, end.mean.item(), end.variance.item())


def test_two_jumps_are_one():
    """q(x_t | x_s) after q(x_s | x_0) has the mean and the variance of q(x_t | x_0)."""
    q, s, t = process(), 100, 700
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    marginal = q.q_marginal(one, torch.tensor([t]))
    assert_close(q.q_step(q.q_sample(one, zero, torch.tensor([s])), zero, s, t), marginal.mean)
    before = q.q_step(q.q_sample(zero, one, torch.tensor([s])), zero, s, t)
    assert_close(before**2 + q.q_step(zero, one, s, t) ** 2, marginal.variance)


def test_posterior_by_monte_carlo():
    """Of pairs (x_{t-1}, x_t) drawn forwards, those that end near a given x_t."""
    q, t, n = process(num_train_timesteps=20, beta_end=0.3), 10, 2_000_000
    before = q.q_marginal(torch.full((1, 1, 1, 1), 0.5), torch.tensor([t - 1]))
    x_s = before.mean.item() + before.variance.sqrt().item() * normal(n, dtype=torch.float64)
    beta = q.tables["beta"][t].item()
    x_t = math.sqrt(1 - beta) * x_s + math.sqrt(beta) * normal(n, seed=1, dtype=torch.float64)
    near = x_s[(x_t - 0.9).abs() < 0.01]
    posterior = q.q_posterior(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.9), torch.tensor([t]))
    moments_agree(near, posterior.mean.item(), posterior.variance.item())


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_step_by_monte_carlo(variance_type):
    """x_s drawn by the scheduler, over a gap of many timesteps, has eq. 7's mean and the variance of its type."""
    scheduler = DDPMScheduler(variance_type=variance_type, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(10)
    t, s, n = 500, 400, 200_000
    x_0, x_t = torch.full((n, 1, 1, 1), 0.3), torch.full((n, 1, 1, 1), -0.4)
    x_s = scheduler.step(x_0, t, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
    a_t, a_s = alpha_bar(t), alpha_bar(s)
    beta = 1 - a_t / a_s
    mean = (math.sqrt(a_s) * beta * 0.3 + math.sqrt(1 - beta) * (1 - a_s) * -0.4) / (1 - a_t)
    variance = beta if variance_type == "fixed_large" else (1 - a_s) / (1 - a_t) * beta
    moments_agree(x_s.double(), mean, variance)


def test_learned_variance_lies_between_its_ends():
    """Improved DDPM, eq. 15: -1 is beta_tilde, 1 is beta, and the logarithm is linear between them."""
    scheduler, timesteps = DDPMScheduler(variance_type="learned_range"), torch.tensor([1, 500, 999])
    x_t = normal(3, 1, 2, 2)
    log_variances = [
        scheduler.reverse(torch.cat([x_t, torch.full_like(x_t, v)], dim=1), x_t, timesteps)[0].log_variance
        for v in (-1.0, 0.0, 1.0)
    ]
    q = scheduler.process
    assert_close(log_variances[0], q.at("log_beta_tilde", timesteps, x_t).expand_as(x_t))
    assert_close(log_variances[2], q.at("log_beta", timesteps, x_t).expand_as(x_t))
    assert_close(log_variances[1], (log_variances[0] + log_variances[2]) / 2)


def test_half_precision_images_get_float32_coefficients():
    x_0 = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    q = process()
    assert q.at("sqrt_one_minus_alpha_bar", torch.tensor([0]), x_0).dtype == torch.float32
    assert q.q_sample(x_0, x_0, torch.tensor([0])).dtype == torch.float32


def test_a_first_beta_of_zero_leaves_no_nan():
    q = DiffusionProcess(torch.linspace(0, 0.02, 10, dtype=torch.float64))
    x = normal(2, 1, 2, 2)
    posterior = q.q_posterior(x, x, torch.tensor([0, 1]))
    assert posterior.mean.isfinite().all()
    assert_close(posterior.mean[0], x[0])


def test_snr_falls():
    for schedule in ("linear", "cosine"):
        snr = DDPMScheduler(beta_schedule=schedule).snr(torch.arange(1000))
        assert (snr.diff() < 0).all()
