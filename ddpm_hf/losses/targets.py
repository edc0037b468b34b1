"""What the network is to predict, from the image x_0 and the noise eps that were mixed into x_t."""

from collections.abc import Callable

from jaxtyping import Float32
from torch import Tensor

Images = Float32[Tensor, "batch channels height width"]
PerImage = Float32[Tensor, "batch 1 1 1"]
Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def epsilon(x_0: Images, eps: Images, sqrt_alpha_bar_t: PerImage, sqrt_one_minus_alpha_bar_t: PerImage) -> Images:
    """eps: the noise (DDPM, eq. 14)."""
    return eps


def sample(x_0: Images, eps: Images, sqrt_alpha_bar_t: PerImage, sqrt_one_minus_alpha_bar_t: PerImage) -> Images:
    """x_0: the image."""
    return x_0


def velocity(x_0: Images, eps: Images, sqrt_alpha_bar_t: PerImage, sqrt_one_minus_alpha_bar_t: PerImage) -> Images:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (progressive distillation, Salimans & Ho 2022, app. D)."""
    return sqrt_alpha_bar_t * eps - sqrt_one_minus_alpha_bar_t * x_0


TARGETS: dict[str, Target] = {"epsilon": epsilon, "sample": sample, "v_prediction": velocity}
