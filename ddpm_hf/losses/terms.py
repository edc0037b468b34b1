"""The terms of the loss: how far a prediction is from its target, one number per image."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

from ddpm_hf.config.loss import LossConfig

Images = Float32[Tensor, "batch channels height width"]
PerImage = Float32[Tensor, " batch"]
Term = Callable[[Tensor, Tensor], Tensor]


def mse(prediction: Images, target: Images) -> PerImage:
    """Mean of e^2 over an image's values, e the error (DDPM, eq. 14)."""
    return F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))


def l1(prediction: Images, target: Images) -> PerImage:
    """Mean of |e| over an image's values."""
    return F.l1_loss(prediction, target, reduction="none").mean((1, 2, 3))


def huber(prediction: Images, target: Images, delta: float) -> PerImage:
    """Mean of e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond, over an image's values (Huber 1964)."""
    return F.huber_loss(prediction, target, reduction="none", delta=delta).mean((1, 2, 3))


def terms_of(config: LossConfig) -> dict[str, tuple[float, Term]]:
    """The terms that a configuration asks for, each with its weight; those of weight 0 are left out."""
    terms: dict[str, Term] = {
        "mse": mse,
        "l1": l1,
        "huber": lambda prediction, target: huber(prediction, target, config.huber_delta),
    }
    return {name: (weight, terms[name]) for name, weight in config.term_weights.items() if weight > 0}
