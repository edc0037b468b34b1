"""Schedules of betas in float64."""

import math

import torch
from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar, rescale_zero_terminal_snr
from jaxtyping import Float64
from torch import Tensor

COSINE = "squaredcos_cap_v2"
"""What diffusers calls the cosine schedule."""
MAX_BETA = 0.999
SCHEDULES = ("linear", "cosine", COSINE, "scaled_linear", "sigmoid", "laplace")


def make_betas(schedule: str, time_steps: int, beta_start: float, beta_end: float) -> Float64[Tensor, " time_steps"]:
    """Compute beta_1 to beta_T of a schedule that diffusers knows by this name.

    "linear" is DDPM's (section 4), "cosine" improved DDPM's (eq. 17, betas capped at 0.999); the others are diffusers'.

    Args:
        schedule: one of `SCHEDULES`.
        time_steps: T.
        beta_start: beta_1 where the schedule goes from one beta to another, in [0, 1).
        beta_end: beta_T likewise.

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


def with_zero_terminal_snr(betas: Float64[Tensor, " time_steps"]) -> Float64[Tensor, " time_steps"]:
    """Rescale betas so that alpha_bar_T = 0: Lin et al., "Common Diffusion Noise Schedules", algorithm 1."""
    return rescale_zero_terminal_snr(betas)
