"""The diffusion process in closed form: every formula between x_0, x_t, eps and v, the posterior, and the SNR.

Equation numbers without a name are those of Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM).
Timestep t counts from 0 as in diffusers, so x_t here is the paper's x_{t+1}, and the clean image is a case of its own.
Coefficients are computed in float64 and applied in float32 (to float64 images in float64).
"""

import math
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ddpm_hf.config.model import PredictionType

Images = Float[Tensor, "batch channels height width"]
Timesteps = Int[Tensor, "*batch"]

COSINE = "squaredcos_cap_v2"
"""diffusers' name of the cosine schedule."""
MAX_BETA = 0.999
SCHEDULES = ("linear", "cosine", COSINE, "scaled_linear", "sigmoid", "laplace")


def make_betas(schedule: str, time_steps: int, beta_start: float, beta_end: float) -> Float64[Tensor, " time_steps"]:
    """Compute beta_1 to beta_T of a schedule by its name in diffusers, in float64.

    "linear" is DDPM's (section 4), "cosine" improved DDPM's (eq. 17, betas capped at 0.999); the others are diffusers'.

    Args:
        schedule: one of `SCHEDULES`.
        time_steps: T.
        beta_start: beta_1 of the schedules that run from one beta to another, in [0, 1).
        beta_end: beta_T of those schedules.

    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, time_steps, dtype=torch.float64)
    if schedule in ("cosine", COSINE):
        alpha_bar = [math.cos((t / time_steps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(time_steps + 1)]
        steps = zip(alpha_bar[1:], alpha_bar[:-1], strict=True)
        return torch.tensor([min(1 - this / before, MAX_BETA) for this, before in steps], dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, time_steps, dtype=torch.float64) ** 2
    if schedule == "sigmoid":
        grid = torch.linspace(-6, 6, time_steps, dtype=torch.float64)
        return torch.sigmoid(grid) * (beta_end - beta_start) + beta_start
    if schedule == "laplace":
        return betas_for_alpha_bar(time_steps, alpha_transform_type="laplace").double()
    raise ValueError(f"beta_schedule {schedule!r} is unknown; possible are {', '.join(SCHEDULES)}")


def check_betas(betas: Float[Tensor, "*steps"]) -> None:
    """Validate betas: variances of noise, in [0, 1], that are not all zero.

    Raises:
        ValueError: naming the first that is not.
    """
    wrong = betas[~((betas >= 0) & (betas <= 1))]  # also where one is NaN
    if wrong.numel() or not bool(betas.any()):
        given = f"{wrong[0]:g} among them" if wrong.numel() else "all zero"
        raise ValueError(f"betas have {given}; possible are 0 to 1, and one above 0")


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian; each field broadcasts against the images.

    Attributes:
        mean: expected image.
        variance: per pixel.
        log_variance: natural logarithm of the variance, finite where the variance is zero (see `q_posterior`).
    """

    mean: Images
    variance: Float[Tensor, "..."]
    log_variance: Float[Tensor, "..."]


def snr(alpha_bar: Float64[Tensor, "*steps"]) -> Float64[Tensor, "*steps"]:
    """SNR(t) = alpha_bar_t / (1 - alpha_bar_t): Kingma et al., "Variational Diffusion Models", eq. 2."""
    return alpha_bar / (1 - alpha_bar)


def posterior_coefficients(
    alpha_bar_t: Float64[Tensor, "*steps"], alpha_bar_s: Float64[Tensor, "*steps"]
) -> tuple[Float64[Tensor, "*steps"], Float64[Tensor, "*steps"], Float64[Tensor, "*steps"]]:
    """Weights of x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance beta_tilde: eq. 6 and 7 for any s < t.

    Args:
        alpha_bar_t: alpha_bar at t, in [0, 1).
        alpha_bar_s: alpha_bar at s, in (alpha_bar_t, 1]; 1 where s is the clean image.

    Returns:
        The weight of x_0, the weight of x_t, and the variance.
    """
    alpha = alpha_bar_t / alpha_bar_s  # of the single step from s to t
    beta = 1 - alpha
    clean = alpha_bar_s == 1  # x_s is x_0: weights 1 and 0, also where a first beta of 0 would make them 0 / 0
    one_minus_alpha_bar = torch.where(clean, torch.ones_like(beta), 1 - alpha_bar_t)
    weight_x_0 = torch.where(clean, torch.ones_like(beta), alpha_bar_s.sqrt() * beta / one_minus_alpha_bar)
    weight_x_t = alpha.sqrt() * (1 - alpha_bar_s) / one_minus_alpha_bar
    return weight_x_0, weight_x_t, (1 - alpha_bar_s) / one_minus_alpha_bar * beta


class DiffusionProcess:
    """q and its inverses for a batch of images, each at its own timestep.

    Args:
        betas: beta_1 to beta_T, in [0, 1].

    Attributes:
        tables: the coefficients of every timestep, by name.
    """

    def __init__(self, betas: Float64[Tensor, " time_steps"]) -> None:
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alpha_bar_previous = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
        weight_x_0, weight_x_t, beta_tilde = posterior_coefficients(alpha_bar, alpha_bar_previous)
        self.tables: dict[str, Float64[Tensor, " time_steps"]] = {
            "beta": betas,
            "log_beta": betas.log(),
            "alpha_bar": alpha_bar,
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "one_minus_alpha_bar": 1 - alpha_bar,
            "log_one_minus_alpha_bar": (1 - alpha_bar).log(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
            "snr": snr(alpha_bar),
            "weight_x_0": weight_x_0,
            "weight_x_t": weight_x_t,
            "beta_tilde": beta_tilde,
            # beta_tilde_1 = 0 has no logarithm: DDPM's own code puts beta_tilde_2 in its place
            "log_beta_tilde": torch.cat([beta_tilde[1:2], beta_tilde[1:]]).log(),
        }
        self._placed: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def at(self, name: str, timesteps: Timesteps, images: Images) -> Float[Tensor, "..."]:
        """Look a coefficient up for each image, shaped and typed to multiply the images.

        Args:
            name: a key of `tables`.
            timesteps: one per image, or one for all; in [0, T).
            images: what the coefficient will multiply; gives device, dtype and number of dimensions.
        """
        dtype = torch.promote_types(images.dtype, torch.float32)
        key = (name, images.device, dtype)
        if key not in self._placed:
            self._placed[key] = self.tables[name].to(dtype).to(images.device)
        # to a GPU without waiting for it, as a blocking copy would
        values = self._placed[key][timesteps.to(images.device, non_blocking=images.is_cuda)]
        return values.reshape(-1, *[1] * (images.ndim - 1))

    def q_marginal(self, x_0: Images, timesteps: Timesteps) -> Gaussian:
        """q(x_t | x_0), eq. 4."""
        return Gaussian(
            self.at("sqrt_alpha_bar", timesteps, x_0) * x_0,
            self.at("one_minus_alpha_bar", timesteps, x_0),
            self.at("log_one_minus_alpha_bar", timesteps, x_0),
        )

    def q_sample(self, x_0: Images, eps: Images, timesteps: Timesteps) -> Images:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps: eq. 4, reparametrised."""
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self._square_roots(timesteps, x_0)
        return sqrt_alpha_bar * x_0 + sqrt_one_minus_alpha_bar * eps

    def q_step(self, x_s: Images, eps: Images, s: int, t: int) -> Images:
        """Draw x_t from q(x_t | x_s) with the given noise: eq. 2, over any number of steps.

        Args:
            x_s: noisy images at s.
            eps: standard normal.
            s: in [0, t).
            t: in (s, T).
        """
        alpha = self.tables["alpha_bar"][t] / self.tables["alpha_bar"][s]
        return float(alpha.sqrt()) * x_s + float((1 - alpha).sqrt()) * eps

    def q_posterior(self, x_0: Images, x_t: Images, timesteps: Timesteps) -> Gaussian:
        """q(x_{t-1} | x_t, x_0), eq. 6 and 7; at t = 0 its variance is 0 and its log-variance that of t = 1."""
        return Gaussian(
            self.at("weight_x_0", timesteps, x_0) * x_0 + self.at("weight_x_t", timesteps, x_t) * x_t,
            self.at("beta_tilde", timesteps, x_t),
            self.at("log_beta_tilde", timesteps, x_t),
        )

    def velocity(self, x_0: Images, eps: Images, timesteps: Timesteps) -> Images:
        """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0: Salimans and Ho, appendix D."""
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self._square_roots(timesteps, x_0)
        return sqrt_alpha_bar * eps - sqrt_one_minus_alpha_bar * x_0

    def target(self, x_0: Images, eps: Images, timesteps: Timesteps, prediction_type: PredictionType) -> Images:
        """What a network of this prediction type learns to predict at x_t: eps, x_0 or v."""
        if prediction_type == "v_prediction":
            return self.velocity(x_0, eps, timesteps)
        return eps if prediction_type == "epsilon" else x_0

    def predict_x_0(self, output: Images, x_t: Images, timesteps: Timesteps, prediction_type: PredictionType) -> Images:
        """The clean image that an output of the network and x_t imply.

        From eps it is eq. 15: (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t); from v it is
        sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v (Salimans and Ho, appendix D).
        """
        if prediction_type == "sample":
            return output.to(torch.promote_types(output.dtype, torch.float32))
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self._square_roots(timesteps, x_t)
        if prediction_type == "epsilon":
            return (x_t - sqrt_one_minus_alpha_bar * output) / sqrt_alpha_bar
        return sqrt_alpha_bar * x_t - sqrt_one_minus_alpha_bar * output

    def predict_eps(self, output: Images, x_t: Images, timesteps: Timesteps, prediction_type: PredictionType) -> Images:
        """The noise that an output of the network and x_t imply.

        From x_0 it is (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), eq. 4, and 0 where x_t has no noise; from
        v it is sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v (Salimans and Ho, appendix D).
        """
        if prediction_type == "epsilon":
            return output.to(torch.promote_types(output.dtype, torch.float32))
        sqrt_alpha_bar, sqrt_one_minus_alpha_bar = self._square_roots(timesteps, x_t)
        if prediction_type == "sample":
            return (x_t - sqrt_alpha_bar * output) / sqrt_one_minus_alpha_bar.clamp(min=1e-12)
        return sqrt_one_minus_alpha_bar * x_t + sqrt_alpha_bar * output

    def _square_roots(self, timesteps: Timesteps, images: Images) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), to multiply the images."""
        return self.at("sqrt_alpha_bar", timesteps, images), self.at("sqrt_one_minus_alpha_bar", timesteps, images)
