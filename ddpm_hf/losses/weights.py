"""The weight w(t) of each timestep in the loss, for t = 0 … T - 1.

Everything follows from alpha_bar_t, the share of the image's variance in x_t = sqrt(alpha_bar_t) x_0 +
sqrt(1 - alpha_bar_t) eps, through the signal-to-noise ratio SNR(t) = alpha_bar_t / (1 - alpha_bar_t). Errors of the
three predictions are one error in three units: |eps error|^2 = SNR |x_0 error|^2 = alpha_bar |v error|^2. So `min_snr`
and `p2`, which the papers define on one of them, take a form of their own for each, and `snr`, `linear`, `inverse` and
`constant` multiply the loss of whatever the network predicts.

The formulas avoid dividing by alpha_bar or 1 - alpha_bar where the limit exists, so schedules that start without noise
or end without signal are as good as any.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Float64, Num
from torch import Tensor

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.config.model import PredictionType
from ddpm_hf.schedulers.process import snr


def constant(alpha_bar: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """w(t) = 1: the loss L_simple of DDPM (eq. 14)."""
    return torch.ones_like(alpha_bar)


def linear(alpha_bar: Float64[Tensor, " T"], low: float, high: float) -> Float64[Tensor, " T"]:
    """w(t) = high + (low - high) t / (T - 1): least for the timesteps with most noise."""
    return torch.linspace(high, low, len(alpha_bar), dtype=torch.float64)


def inverse(alpha_bar: Float64[Tensor, " T"]) -> Float64[Tensor, " T"]:
    """w(t) = 1 / (t + 1)."""
    return 1 / torch.arange(1, len(alpha_bar) + 1, dtype=torch.float64)


def min_snr_epsilon(alpha_bar: Float64[Tensor, " T"], gamma: float) -> Float64[Tensor, " T"]:
    """w(t) = min(SNR, gamma) / SNR, on the error of eps (Min-SNR, Hang et al. 2023, arXiv:2303.09556)."""
    return (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1)


def min_snr_sample(alpha_bar: Float64[Tensor, " T"], gamma: float) -> Float64[Tensor, " T"]:
    """w(t) = min(SNR, gamma), on the error of x_0 (Min-SNR)."""
    return snr(alpha_bar).clamp(max=gamma)


def min_snr_v(alpha_bar: Float64[Tensor, " T"], gamma: float) -> Float64[Tensor, " T"]:
    """w(t) = min(SNR, gamma) / (SNR + 1), on the error of v (Min-SNR)."""
    return torch.minimum(alpha_bar, gamma * (1 - alpha_bar))


def p2_epsilon(alpha_bar: Float64[Tensor, " T"], gamma: float, k: float) -> Float64[Tensor, " T"]:
    """w(t) = 1 / (k + SNR)^gamma, on the error of eps (P2, Choi et al. 2022, arXiv:2204.00227)."""
    return ((1 - alpha_bar) / (k * (1 - alpha_bar) + alpha_bar)) ** gamma


def p2_sample(alpha_bar: Float64[Tensor, " T"], gamma: float, k: float) -> Float64[Tensor, " T"]:
    """w(t) = SNR / (k + SNR)^gamma: P2 on the error of x_0."""
    return alpha_bar * (1 - alpha_bar) ** (gamma - 1) / (k * (1 - alpha_bar) + alpha_bar) ** gamma


def p2_v(alpha_bar: Float64[Tensor, " T"], gamma: float, k: float) -> Float64[Tensor, " T"]:
    """w(t) = alpha_bar / (k + SNR)^gamma: P2 on the error of v."""
    return alpha_bar * p2_epsilon(alpha_bar, gamma, k)


MIN_SNR: dict[str, Callable[..., Tensor]] = {
    "epsilon": min_snr_epsilon,
    "sample": min_snr_sample,
    "v_prediction": min_snr_v,
}
P2: dict[str, Callable[..., Tensor]] = {"epsilon": p2_epsilon, "sample": p2_sample, "v_prediction": p2_v}


def weight_table(
    config: LossConfig, alphas_cumprod: Num[Tensor, " T"], prediction_type: PredictionType
) -> Float32[Tensor, " T"]:
    """Tabulate the weight of every timestep: the formula, bounded, then (if asked for) divided by its mean.

    Args:
        config: names the formula, its bounds and its parameters; without `use_time_weighting` all weights are 1.
        alphas_cumprod: alpha_bar_t for t = 0 … T - 1, in [0, 1].
        prediction_type: what the network predicts.

    Returns:
        The weights, computed in float64. Normalised weights have mean 1 and may lie outside of the bounds, which hold
        before the division.

    Raises:
        ValueError: if a weight is infinite or all are zero; only extreme schedules and bounds can do that.
    """
    alpha_bar = alphas_cumprod.detach().to("cpu", torch.float64)
    if not config.use_time_weighting:
        return constant(alpha_bar).float()
    params, (low, high) = config.time_weight_params, config.weight_bounds
    formulas: dict[str, Callable[[], Tensor]] = {
        "constant": lambda: constant(alpha_bar),
        "snr": lambda: snr(alpha_bar),  # spans many orders of magnitude: the bounds shape it most
        "linear": lambda: linear(alpha_bar, low, high),
        "inverse": lambda: inverse(alpha_bar),
        "min_snr": lambda: MIN_SNR[prediction_type](alpha_bar, params.gamma),
        "p2": lambda: P2[prediction_type](alpha_bar, params.p2_gamma, params.p2_k),
    }
    weights = formulas[config.time_weight_type]().clamp(low, high)
    if params.normalize:
        weights = weights / weights.mean()
    weights = weights.float()
    if not weights.isfinite().all() or not weights.any():
        raise ValueError(
            f"the {config.time_weight_type} weights of this schedule run from {weights.min():g} to {weights.max():g}; "
            "set time_weight_params.min_weight and max_weight so that they are finite and not all zero"
        )
    return weights
