"""The variational bound: its terms written out, its estimate unbiased, its value near the truth for a known case."""

import math

import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.schedulers import DDPMScheduler, Gaussian, bound_terms, variational_bound
from ddpm_hf.schedulers.likelihood import discretized_log_likelihood, gaussian_kl, prior_term

MEAN, STD = 0.1, 0.3


def levels(*shape, seed=0):
    """Images of 256 levels whose pixels are near N(MEAN, STD^2)."""
    x_0 = MEAN + STD * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return (((x_0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1).float()


def gaussian(mean, variance):
    mean, variance = torch.as_tensor(mean), torch.as_tensor(variance)
    return Gaussian(mean.reshape(1, 1, 1, -1), variance.reshape(1, 1, 1, -1), variance.log().reshape(1, 1, 1, -1))


def exact_network(scheduler):
    """E[eps | x_t] for Gaussian images."""

    def predict(x_t, t):
        alpha_bar = scheduler.process.at("sqrt_alpha_bar", t, x_t) ** 2
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() / variance * (x_t - alpha_bar.sqrt() * MEAN)

    return predict


def test_kl_of_gaussians_in_closed_form():
    p, q = gaussian([0.3, -1.0], [0.5, 2.0]), gaussian([0.1, 0.5], [0.7, 1.0])
    expected = [
        0.5 * (math.log(vq / vp) + (vp + (mp - mq) ** 2) / vq - 1)
        for mp, vp, mq, vq in ((0.3, 0.5, 0.1, 0.7), (-1.0, 2.0, 0.5, 1.0))
    ]
    assert_close(gaussian_kl(p, q).flatten(), torch.tensor(expected))
    assert gaussian_kl(p, p).abs().max() == 0


@pytest.mark.parametrize("mean", [-1.2, -0.999, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3])
def test_decoder_is_a_distribution_over_the_levels(mean, std):
    x_0 = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(1, 1, 1, -1)
    log_probability = discretized_log_likelihood(x_0, gaussian([mean] * 256, [std**2] * 256))
    assert log_probability.isfinite().all()
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_decoder_against_arithmetic_written_out():
    def cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    x_0 = torch.tensor([-1.0, 3 / 255 - 1, 1 / 255, 1.0], dtype=torch.float64)
    mean, std = [-0.9, -1.0, 0.02, 0.95], 0.02
    edges = [(None, -254 / 255), (2 / 255 - 1, 4 / 255 - 1), (0, 2 / 255), (254 / 255, None)]
    expected = [
        math.log((1 if high is None else cdf((high - m) / std)) - (0 if low is None else cdf((low - m) / std)))
        for m, (low, high) in zip(mean, edges, strict=True)
    ]
    decoder = gaussian(torch.tensor(mean, dtype=torch.float64), [std**2] * 4)
    got = discretized_log_likelihood(x_0.reshape(1, 1, 1, -1), decoder).flatten()
    assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_decoder_far_in_the_tails_is_finite_with_finite_gradients():
    mean = torch.tensor([-1.0, 1.0, -1.0, 1.0, 0.0]).requires_grad_()
    x_0 = torch.tensor([1.0, -1.0, -1.0, 1.0, 1 / 255]).reshape(1, 1, 1, -1)
    log_variance = torch.full((1, 1, 1, 5), -12.0).requires_grad_()
    decoder = Gaussian(mean.reshape(1, 1, 1, -1), log_variance.exp(), log_variance)
    likelihood = discretized_log_likelihood(x_0, decoder)
    assert likelihood.isfinite().all()
    likelihood.sum().backward()
    assert mean.grad.isfinite().all()
    assert log_variance.grad.isfinite().all()


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_a_term_written_out(variance_type):
    scheduler = DDPMScheduler(variance_type=variance_type, clip_sample=False)
    x_0, eps, guess = levels(1, 1, 2, 2), torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    t = 300
    x_t = scheduler.process.q_sample(x_0, eps, torch.tensor([t]))
    betas = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    a_t, a_s = (math.prod(1 - beta for beta in betas[: i + 1]) for i in (t, t - 1))
    beta_tilde = (1 - a_s) / (1 - a_t) * betas[t]
    variance = beta_tilde if variance_type == "fixed_small" else betas[t]
    # eq. 12: the two means differ by the difference of the noises
    distance = betas[t] ** 2 / (1 - betas[t]) / (1 - a_t) * (eps - guess).double() ** 2
    kl = 0.5 * (math.log(variance / beta_tilde) + (beta_tilde + distance) / variance - 1)
    expected = kl.mean() / math.log(2)
    got = bound_terms(scheduler, guess, x_0, x_t, torch.tensor([t]))
    assert_close(got.double(), expected.reshape(1), rtol=1e-4, atol=1e-6)


def test_prior_term_written_out():
    scheduler, x_0 = DDPMScheduler(num_train_timesteps=100), levels(3, 1, 4, 4)
    a = scheduler.terminal_signal**2
    expected = 0.5 * (-math.log(1 - a) + (1 - a) + a * x_0.double() ** 2 - 1).mean((1, 2, 3)) / math.log(2)
    assert_close(prior_term(scheduler, x_0).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("time_steps", [50, 200])
def test_bound_is_above_the_truth_and_near_it(time_steps):
    """For Gaussian pixels the likelihood is known: that of the level under the discretised data distribution."""
    scheduler = DDPMScheduler(
        num_train_timesteps=time_steps,
        beta_start=0.1 / time_steps,
        beta_end=20 / time_steps,
        variance_type="fixed_large",
        clip_sample=False,
    )
    x_0 = levels(200, 1, 8, 8)
    bound = variational_bound(exact_network(scheduler), scheduler, x_0, range(200))
    truth = -discretized_log_likelihood(x_0, gaussian([MEAN] * 8, [STD**2] * 8)).flatten(1).mean(1) / math.log(2)
    assert_close(bound.total, bound.prior + bound.denoising + bound.decoder)
    assert_close(bound.terms.shape, (200, time_steps))
    gap = (bound.total - truth).mean()
    assert 0 < gap < 10 / time_steps


def test_stratified_estimate_is_unbiased_and_knows_its_error():
    scheduler = DDPMScheduler(num_train_timesteps=200, beta_end=0.1, clip_sample=False)
    network, x_0 = exact_network(scheduler), levels(1, 1, 8, 8).expand(400, -1, -1, -1)
    exact = variational_bound(network, scheduler, x_0[:40], range(1000, 1040))
    estimate = variational_bound(network, scheduler, x_0, range(400), num_timesteps=20)
    assert estimate.terms.shape == (400, 20)
    spread = estimate.denoising.std().item()
    assert abs(estimate.denoising.mean() - exact.denoising.mean()) < 4 * spread / math.sqrt(400) + 4 * (
        exact.denoising.std().item() / math.sqrt(40)
    )
    stated = estimate.standard_error.square().mean().sqrt().item()
    assert spread / 1.5 < stated < 4 * spread


def test_an_image_alone_or_in_a_batch():
    scheduler = DDPMScheduler(num_train_timesteps=50, beta_end=0.3, clip_sample=False)
    x_0, network = levels(3, 1, 4, 4), exact_network(scheduler)
    together = variational_bound(network, scheduler, x_0, [5, 6, 7], num_timesteps=10)
    alone = variational_bound(network, scheduler, x_0[1:2], [6], num_timesteps=10)
    assert_close(alone.total, together.total[1:2], rtol=1e-5, atol=1e-6)


def test_learned_variance_gets_a_gradient():
    scheduler = DDPMScheduler(variance_type="learned_range")
    x_0, timesteps = levels(3, 1, 4, 4), torch.tensor([0, 1, 700])
    x_t = scheduler.process.q_sample(x_0, torch.randn(3, 1, 4, 4), timesteps)
    output = torch.randn(3, 2, 4, 4).requires_grad_()
    bound_terms(scheduler, output, x_0, x_t, timesteps).sum().backward()
    assert output.grad.isfinite().all()
    assert (output.grad[:, 1:].abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("x_0", "seeds", "num_timesteps", "message"),
    [
        (levels(2, 1, 4, 4), [0, 1], 2, "num_timesteps is 2; possible are 3 to 50"),
        (levels(2, 1, 4, 4), [0, 1], 51, "num_timesteps is 51; possible are 3 to 50"),
        (levels(2, 1, 4, 4), [0], 5, "1 seeds for 2 images"),
        (levels(2, 1, 4, 4) * 1.5, [0, 1], 5, "not of 256 levels"),
        (torch.rand(2, 1, 4, 4), [0, 1], 5, "not of 256 levels"),
    ],
)
def test_bad_arguments(x_0, seeds, num_timesteps, message):
    scheduler = DDPMScheduler(num_train_timesteps=50)
    with pytest.raises(ValueError, match=message):
        variational_bound(exact_network(scheduler), scheduler, x_0, seeds, num_timesteps)
