"""The variational bound on the likelihood of images, in bits per dimension (DDPM, eq. 5)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ddpm_hf.runtime.randomness import draw_normal, generator_at
from ddpm_hf.schedulers.ddpm import DDPMScheduler
from ddpm_hf.schedulers.process import Gaussian, Images

NUM_LEVELS = 256


@dataclass(frozen=True)
class Bound:
    """The bound on the negative log-likelihood of each image, and its terms, all in bits per dimension.

    Attributes:
        total: L_T plus all L_t plus L_0.
        prior: L_T, how far x_T is from pure noise; nothing that training could change.
        denoising: the sum of L_1 to L_{T-1}.
        decoder: L_0, what the discretised decoder pays for the exact levels of the image.
        terms: L_t at each timestep that was evaluated, (images, timesteps): column 0 is the decoder's, L_0.
        standard_error: of `denoising`, over the drawing of timesteps and noise; neighbouring strata differ by that and
            by their place, so it errs on the safe side.
    """

    total: Float[Tensor, " batch"]
    prior: Float[Tensor, " batch"]
    denoising: Float[Tensor, " batch"]
    decoder: Float[Tensor, " batch"]
    terms: Float[Tensor, "batch steps"]
    standard_error: Float[Tensor, " batch"]


def gaussian_kl(p: Gaussian, q: Gaussian) -> Images:
    """KL(p || q) of each pixel, in nats; variances by their logarithms, so that none is divided by zero."""
    ratio = (p.log_variance - q.log_variance).exp()
    distance = (p.mean - q.mean) ** 2 * (-q.log_variance).exp()
    return 0.5 * (q.log_variance - p.log_variance + ratio + distance - 1)


def discretized_log_likelihood(x_0: Images, decoder: Gaussian) -> Images:
    """Log-probability, in nats, of the level of each pixel under a Gaussian divided into 256 bins: DDPM, eq. 13.

    Args:
        x_0: images of 256 levels, evenly from -1 to 1; the bins of the ends reach to infinity.
        decoder: p(x_0 | x_1).
    """
    # In float64 the difference of two nearly equal probabilities keeps its digits.
    precision = (-0.5 * decoder.log_variance.double()).exp()
    half_bin, centred = 1 / (NUM_LEVELS - 1), x_0.double() - decoder.mean.double()
    upper, lower = (centred + half_bin) * precision, (centred - half_bin) * precision
    # Beyond its mean a Gaussian's tail is exact on the other side only: mirror it there.
    is_above = centred > 0
    upper, lower = torch.where(is_above, -lower, upper), torch.where(is_above, -upper, lower)
    open_below = torch.where(is_above, x_0 > 1 - half_bin, x_0 < -1 + half_bin)
    open_above = torch.where(is_above, x_0 < -1 + half_bin, x_0 > 1 - half_bin)
    log_upper = torch.where(open_above, torch.zeros_like(upper), torch.special.log_ndtr(upper))
    log_lower = torch.where(open_below, torch.full_like(lower, -math.inf), torch.special.log_ndtr(lower))
    return (log_upper + torch.log(-torch.expm1(torch.clamp(log_lower - log_upper, max=-1e-15)))).to(x_0.dtype)


def bound_terms(
    scheduler: DDPMScheduler,
    model_output: Float[Tensor, "batch outputs height width"],
    x_0: Images,
    x_t: Images,
    timesteps: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """L_t of each image, in bits per dimension: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or L_0 where t = 0.

    It is differentiable: improved DDPM's hybrid loss (eq. 16) adds 0.001 T times its mean, with the gradient stopped
    through the prediction, to train the variance of a network of twice the channels.

    Args:
        scheduler: the process and its reverse.
        model_output: the network's output at x_t.
        x_0: clean images of 256 levels, evenly from -1 to 1.
        x_t: noisy images.
        timesteps: one per image, in [0, T).
    """
    reverse, _ = scheduler.reverse(model_output, x_t, timesteps)
    kl = gaussian_kl(scheduler.process.q_posterior(x_0, x_t, timesteps), reverse)
    nll = -discretized_log_likelihood(x_0, reverse)
    return _bits(torch.where(timesteps.reshape(-1, 1, 1, 1) == 0, nll, kl))


def prior_term(scheduler: DDPMScheduler, x_0: Images) -> Float[Tensor, " batch"]:
    """L_T of each image, in bits per dimension: KL(q(x_T | x_0) || N(0, 1))."""
    T = scheduler.config["num_train_timesteps"]
    zero = torch.zeros_like(x_0)
    return _bits(gaussian_kl(scheduler.process.q_marginal(x_0, torch.tensor([T - 1])), Gaussian(zero, zero + 1, zero)))


@torch.no_grad()
def variational_bound(
    network: Callable[[Tensor, Tensor], Tensor],
    scheduler: DDPMScheduler,
    x_0: Images,
    seeds: Sequence[int],
    num_timesteps: int | None = None,
) -> Bound:
    """Bound the negative log-likelihood of images, -log p(x_0), from above: DDPM, eq. 5.

    L_0 is always evaluated. Timesteps 1 to T - 1 are divided into equal strata, and one of each is drawn at random, so
    that the estimate is unbiased. Its standard error comes from the differences of neighbouring strata.

    Args:
        network: from x_t and timesteps to the network's output, in evaluation mode.
        scheduler: the process that the network was trained for.
        x_0: clean images of 256 levels, evenly from -1 to 1.
        seeds: one per image: the noise and timesteps of an image are a function of its seed.
        num_timesteps: evaluations of the network per image, 3 to T; None is T, for the sum over every timestep.

    Raises:
        ValueError: the number of timesteps or seeds is not possible, or an image is not of 256 levels.
    """
    T = scheduler.config["num_train_timesteps"]
    count = T if num_timesteps is None else num_timesteps
    if not 3 <= count <= T:
        raise ValueError(f"num_timesteps is {count}; possible are 3 to {T}, of which one is for L_0")
    if len(seeds) != len(x_0):
        raise ValueError(f"{len(seeds)} seeds for {len(x_0)} images; give one for each image")
    levels = (x_0 + 1) * (NUM_LEVELS - 1) / 2
    if not bool((x_0.abs() <= 1).all()) or not torch.allclose(levels, levels.round(), rtol=0, atol=1e-2):
        raise ValueError(f"images are not of {NUM_LEVELS} levels, evenly from -1 to 1; round them before")

    # Of count - 1 strata; where each holds a single timestep, the edges are whole numbers.
    edges = torch.linspace(1, T, count, dtype=torch.float64)
    generators = [generator_at(seed, "likelihood") for seed in seeds]
    offsets = torch.stack([torch.rand(count - 1, generator=generator, dtype=torch.float64) for generator in generators])
    drawn = (edges[:-1] + offsets * (edges[1:] - edges[:-1])).long().clamp(1, T - 1)
    timesteps = torch.cat([torch.zeros(len(x_0), 1, dtype=torch.long), drawn], dim=1).to(x_0.device)

    terms = []
    for t in timesteps.unbind(dim=1):
        noise = draw_normal(x_0.shape, generators, x_0.device).to(x_0.dtype)
        x_t = scheduler.process.q_sample(x_0, noise, t)
        terms.append(bound_terms(scheduler, network(x_t, t), x_0, x_t, t))
    stacked = torch.stack(terms, dim=1)

    weight = (T - 1) / (count - 1)
    strata = stacked[:, 1:] * weight
    error = (0.5 * strata.diff(dim=1).square().mean(dim=1) * strata.shape[1]).sqrt()
    prior, denoising = prior_term(scheduler, x_0), strata.sum(dim=1)
    return Bound(prior + denoising + stacked[:, 0], prior, denoising, stacked[:, 0], stacked, error)


def _bits(nats: Images) -> Float[Tensor, " batch"]:
    return nats.flatten(1).mean(dim=1) / math.log(2)
