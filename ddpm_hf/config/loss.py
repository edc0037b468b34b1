"""`loss_config`: what the network is trained to make small."""

from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import model_validator
from typing_extensions import Self

from ddpm_hf.config.section import Float, NonNegativeFloat, PositiveFloat, Section, mistakes


class TimeWeightParams(Section):
    """How far the weight of a timestep may go."""

    min_weight: NonNegativeFloat = 0.1
    """Smallest weight of any timestep."""
    max_weight: PositiveFloat = 1.0
    """Largest weight of any timestep."""
    gamma: Annotated[Float, Gt(0)] = 5.0
    """Where `min_snr` clips the signal-to-noise ratio; exponent of `p2`."""
    normalize: bool = False
    """Divide by the mean over all timesteps, so that learning rates carry over from unweighted training."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_weight > self.max_weight:
            mistakes(("min_weight", self.min_weight, f"at most max_weight ({self.max_weight})"))
        return self


class LossConfig(Section):
    """The training loss: terms, and the weight of each timestep."""

    loss_type: Literal["mse", "l1", "huber", "hybrid"] = "mse"
    """One term, or `hybrid`: the sum of all three; each term is multiplied by its own weight."""
    mse_weight: NonNegativeFloat = 1.0
    """Weight of the mean squared error."""
    l1_weight: NonNegativeFloat = 1.0
    """Weight of the mean absolute error."""
    huber_weight: NonNegativeFloat = 1.0
    """Weight of the Huber loss."""
    huber_delta: PositiveFloat = 1.0
    """Error at which the Huber loss turns from quadratic to linear."""
    use_time_weighting: bool = False
    """Weight each timestep by `time_weight_type`; without it every timestep counts the same (DDPM's L_simple)."""
    time_weight_type: Literal["constant", "snr", "linear", "inverse", "min_snr", "p2"] = "snr"
    """The formula of the weight w(t); see docs/losses.md."""
    time_weight_params: TimeWeightParams = TimeWeightParams()
    """Bounds and parameters of that formula."""

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term that is part of the loss, by name."""
        weights = {"mse": self.mse_weight, "l1": self.l1_weight, "huber": self.huber_weight}
        return weights if self.loss_type == "hybrid" else {self.loss_type: weights[self.loss_type]}

    @model_validator(mode="after")
    def _something_to_minimise(self) -> Self:
        if not any(self.term_weights.values()):
            names = ", ".join(f"{name}_weight" for name in self.term_weights)
            mistakes(("loss_type", self.loss_type, f"a loss with a term above 0; set one of {names}"))
        return self
