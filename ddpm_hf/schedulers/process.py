"""The Gaussian diffusion process of a schedule of betas, in closed form.

Numbers of equations without a name are those of Ho et al., "Denoising Diffusion Probabilistic Models" (DDPM).
Timestep t counts from 0 as in diffusers, so that x_t here is the paper's x_{t+1}, and the clean image is a case of its
own. Every coefficient is computed in float64 and applied in float32 (in float64 to images of float64).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian; each field broadcasts against the images.

    Attributes:
        mean: expected image.
        variance: per pixel.
        log_variance: natural logarithm of the variance, finite where the variance itself is zero (see `posterior`).
    """

    mean: Float[Tensor, "batch channels height width"]
    variance: Float[Tensor, "..."]
    log_variance: Float[Tensor, "..."]


def posterior_coefficients(
    alpha_bar_t: Float64[Tensor, "*steps"], alpha_bar_s: Float64[Tensor, "*steps"]
) -> tuple[Float64[Tensor, "*steps"], Float64[Tensor, "*steps"], Float64[Tensor, "*steps"]]:
    """Weights of x_0 and x_t in the mean of q(x_s | x_t, x_0), and its variance beta_tilde: eq. 6 and 7 for any s < t.

    Args:
        alpha_bar_t: signal left at t, in [0, 1).
        alpha_bar_s: signal left at s, in (alpha_bar_t, 1]; 1 where s is the clean image.

    Returns:
        The weight of x_0, the weight of x_t, and the variance.
    """
    alpha = alpha_bar_t / alpha_bar_s  # of the one step from s to t
    beta = 1 - alpha
    clean = alpha_bar_s == 1  # nothing but x_0 is left: weights 1 and 0, also where a first beta of 0 makes them 0/0
    noise_t = torch.where(clean, torch.ones_like(beta), 1 - alpha_bar_t)
    weight_x_0 = torch.where(clean, torch.ones_like(beta), alpha_bar_s.sqrt() * beta / noise_t)
    weight_x_t = alpha.sqrt() * (1 - alpha_bar_s) / noise_t
    return weight_x_0, weight_x_t, (1 - alpha_bar_s) / noise_t * beta


class GaussianProcess:
    """q and its inverses for a batch of images, each at its own timestep.

    Args:
        betas: beta_1 to beta_T, in [0, 1].
    """

    def __init__(self, betas: Float64[Tensor, " time_steps"]) -> None:
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alpha_bar_previous = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
        weight_x_0, weight_x_t, beta_tilde = posterior_coefficients(alpha_bar, alpha_bar_previous)
        self.tables: dict[str, Float64[Tensor, " time_steps"]] = {
            "beta": betas,
            "alpha_bar": alpha_bar,
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "noise_variance": 1 - alpha_bar,
            "log_noise_variance": (1 - alpha_bar).log(),
            "snr": alpha_bar / (1 - alpha_bar),
            "weight_x_0": weight_x_0,
            "weight_x_t": weight_x_t,
            "beta_tilde": beta_tilde,
            # beta_tilde_1 = 0 has no logarithm: DDPM's own code puts beta_tilde_2 in its place
            "log_beta_tilde": torch.cat([beta_tilde[1:2], beta_tilde[1:]]).log(),
            "log_beta": betas.log(),
        }
        self._placed: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def at(
        self, name: str, timesteps: Int[Tensor, "*batch"], images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "..."]:
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
        values = self._placed[key][timesteps.to(images.device)]
        return values.reshape(-1, *[1] * (images.ndim - 1))

    def marginal(self, x_0: Float[Tensor, "batch channels height width"], timesteps: Int[Tensor, "*batch"]) -> Gaussian:
        """q(x_t | x_0), eq. 4."""
        return Gaussian(
            self.at("signal", timesteps, x_0) * x_0,
            self.at("noise_variance", timesteps, x_0),
            self.at("log_noise_variance", timesteps, x_0),
        )

    def x_t(
        self,
        x_0: Float[Tensor, "batch channels height width"],
        eps: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, "*batch"],
    ) -> Float[Tensor, "batch channels height width"]:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps: eq. 4, reparametrised."""
        return self.at("signal", timesteps, x_0) * x_0 + self.at("noise", timesteps, x_0) * eps

    def v(
        self,
        x_0: Float[Tensor, "batch channels height width"],
        eps: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, "*batch"],
    ) -> Float[Tensor, "batch channels height width"]:
        """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0: Salimans and Ho, appendix D."""
        return self.at("signal", timesteps, x_0) * eps - self.at("noise", timesteps, x_0) * x_0

    def x_0(
        self,
        output: Float[Tensor, "batch channels height width"],
        x_t: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, "*batch"],
        prediction_type: PredictionType,
    ) -> Float[Tensor, "batch channels height width"]:
        """The clean image that an output of the network and x_t imply.

        From eps it is eq. 15: (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t); from v it is
        sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v (Salimans and Ho, appendix D).
        """
        if prediction_type == "sample":
            return output.to(torch.promote_types(output.dtype, torch.float32))
        signal, noise = self.at("signal", timesteps, x_t), self.at("noise", timesteps, x_t)
        if prediction_type == "epsilon":
            return (x_t - noise * output) / signal
        return signal * x_t - noise * output

    def eps(
        self,
        output: Float[Tensor, "batch channels height width"],
        x_t: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, "*batch"],
        prediction_type: PredictionType,
    ) -> Float[Tensor, "batch channels height width"]:
        """The noise that an output of the network and x_t imply.

        From x_0 it is (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), eq. 4; from v it is
        sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v (Salimans and Ho, appendix D).
        """
        if prediction_type == "epsilon":
            return output.to(torch.promote_types(output.dtype, torch.float32))
        signal, noise = self.at("signal", timesteps, x_t), self.at("noise", timesteps, x_t)
        if prediction_type == "sample":
            return (x_t - signal * output) / noise
        return noise * x_t + signal * output

    def posterior(
        self,
        x_0: Float[Tensor, "batch channels height width"],
        x_t: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, "*batch"],
    ) -> Gaussian:
        """q(x_{t-1} | x_t, x_0), eq. 6 and 7; at t = 0 its variance is 0 and its log-variance that of t = 1."""
        return Gaussian(
            self.at("weight_x_0", timesteps, x_0) * x_0 + self.at("weight_x_t", timesteps, x_t) * x_t,
            self.at("beta_tilde", timesteps, x_t),
            self.at("log_beta_tilde", timesteps, x_t),
        )

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """SNR(t) = alpha_bar_t / (1 - alpha_bar_t), Kingma et al., "Variational Diffusion Models", eq. 2."""
        return self.tables["snr"].to(torch.float32).to(timesteps.device)[timesteps]
