"""The image that a prediction stands for: x_0 solved from x_t and the network's output."""

from collections.abc import Callable

from jaxtyping import Float32
from torch import Tensor

Images = Float32[Tensor, "batch channels height width"]
PerImage = Float32[Tensor, "batch 1 1 1"]
Reconstruction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def from_epsilon(x_t: Images, prediction: Images, sqrt_alpha_bar_t: PerImage, sqrt_one_minus: PerImage) -> Images:
    """x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t) (DDPM, eq. 15)."""
    return (x_t - sqrt_one_minus * prediction) / sqrt_alpha_bar_t


def from_sample(x_t: Images, prediction: Images, sqrt_alpha_bar_t: PerImage, sqrt_one_minus: PerImage) -> Images:
    """x_0 itself."""
    return prediction


def from_velocity(x_t: Images, prediction: Images, sqrt_alpha_bar_t: PerImage, sqrt_one_minus: PerImage) -> Images:
    """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v (progressive distillation, app. D)."""
    return sqrt_alpha_bar_t * x_t - sqrt_one_minus * prediction


RECONSTRUCTIONS: dict[str, Reconstruction] = {
    "epsilon": from_epsilon,
    "sample": from_sample,
    "v_prediction": from_velocity,
}
