"""Draw the timestep weights: python docs/loss_weights.py docs/images/loss_weights.png (shown in docs/losses.md)."""

import argparse
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float64
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_hf.config.loss import LossConfig, TimeWeight
from ddpm_hf.config.model import PredictionType
from ddpm_hf.losses.weights import weight_table

COLOURS = dict(zip(get_args(TimeWeight), ("0.85", "C0", "C1", "C2", "C3", "C4"), strict=True))
TITLES = {"epsilon": "network predicts eps", "sample": "network predicts x_0", "v_prediction": "network predicts v"}


def plot_weights(alphas_cumprod: Float64[Tensor, " T"]) -> Figure:
    """Draw each weight, with its default parameters and bounds, over t for the three prediction types.

    Args:
        alphas_cumprod: alpha_bar_t for t = 0 … T - 1.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for axis, prediction_type in zip(axes, get_args(PredictionType), strict=True):
        for formula, colour in COLOURS.items():
            config = LossConfig(use_time_weighting=True, time_weight_type=formula)
            weights = weight_table(config, alphas_cumprod, prediction_type)
            # wide where others run over it
            axis.plot(weights.numpy(), label=formula, color=colour, linewidth=5 if formula == "constant" else 1.5)
        axis.set(title=TITLES[prediction_type], xlabel="timestep t", yscale="log", ylim=(1e-5, 10))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("weight w(t)")
    axes[0].legend(loc="lower right", ncols=2)
    return figure


def main() -> None:
    """Draw the weights of DDPM's schedule: betas from 1e-4 to 0.02, T = 1000."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("picture", type=Path, help="where the picture goes, such as docs/images/loss_weights.png")
    picture = parser.parse_args().picture
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_weights((1 - betas).cumprod(0)).savefig(picture, dpi=120)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
