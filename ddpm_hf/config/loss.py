"""`loss_config`: what the network is trained to make small."""

import math
from typing import Any, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from ddpm_hf.config.image_loss import AdversarialConfig, PerceptualConfig
from ddpm_hf.config.section import NonNegativeFloat, PositiveFloat, Section, mistakes

TimeWeight = Literal["constant", "snr", "linear", "inverse", "min_snr", "p2"]
TimestepSampling = Literal["uniform", "stratified", "importance"]

# Formulas that run over many orders of magnitude are bounded unless told otherwise; the papers' own are left alone.
_BOUNDED = ("snr", "linear", "inverse")


class TimeWeightParams(Section):
    """How far the weight of a timestep may go, and the parameters of its formula."""

    min_weight: NonNegativeFloat | None = None
    """Smallest weight of any timestep; null: 0.1 for snr, linear and inverse, 0 for the others."""
    max_weight: PositiveFloat | None = None
    """Largest weight of any timestep; null: 1.0 for snr, linear and inverse, no bound for the others."""
    gamma: PositiveFloat = 5.0
    """Signal-to-noise ratio at which `min_snr` clips."""
    p2_gamma: PositiveFloat = 1.0
    """Exponent of `p2`: how much the timesteps with little noise are held back."""
    p2_k: PositiveFloat = 1.0
    """Added to the signal-to-noise ratio in `p2`, which bounds the weight where there is only noise."""
    normalize: bool = False
    """Divide the bounded weights by their mean over all timesteps, so that learning rates carry over from unweighted
    training."""

    @field_validator("max_weight")
    @classmethod
    def _above_min(cls, max_weight: float | None, info: Any) -> float | None:
        # A check of a field, not of the section, is reported beside the mistakes of other fields. (`info` is pydantic's
        # ValidationInfo, a protocol that the tests' run-time type checks cannot look into.)
        min_weight = info.data.get("min_weight")
        if min_weight is not None and max_weight is not None and min_weight > max_weight:
            raise PydanticCustomError("order", "at least min_weight ({min_weight})", {"min_weight": min_weight})
        return max_weight


class LossConfig(Section):
    """The training loss: its terms, the weight of each timestep, and how timesteps are drawn."""

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
    use_time_weighting: bool = True
    """Weight each timestep by `time_weight_type`; false: every timestep counts the same (DDPM's L_simple)."""
    time_weight_type: TimeWeight = "min_snr"
    """The formula of the weight w(t); see docs/losses.md."""
    time_weight_params: TimeWeightParams = TimeWeightParams()
    """Bounds and parameters of that formula."""
    timestep_sampling: TimestepSampling = "uniform"
    """How the timesteps of a batch are drawn: independently and uniformly; one from each of batch_size equal parts of
    the schedule; or more often where the loss has been large (improved DDPM, section 3.3). The expected loss is the
    same, its noise is not."""
    vlb_weight: NonNegativeFloat = 0.001
    """lambda of the variational bound that trains a learned variance (improved DDPM, eq. 16); only for a model with
    variance_type learned_range."""
    perceptual: PerceptualConfig = PerceptualConfig()
    """How much the predicted image must look like the real one."""
    adversarial: AdversarialConfig = AdversarialConfig()
    """How hard the predicted image must be to tell from a real one."""

    @property
    def term_weights(self) -> dict[str, float]:
        """The weight of each term that is part of the loss, by name."""
        weights = {"mse": self.mse_weight, "l1": self.l1_weight, "huber": self.huber_weight}
        return weights if self.loss_type == "hybrid" else {self.loss_type: weights[self.loss_type]}

    @property
    def weight_bounds(self) -> tuple[float, float]:
        """Smallest and largest weight of any timestep; infinity where there is no bound."""
        return _bounds(self.time_weight_type, self.time_weight_params)

    @field_validator("mse_weight", "l1_weight", "huber_weight")
    @classmethod
    def _something_to_minimise(cls, weight: float, info: Any) -> float:
        loss_type, term = info.data.get("loss_type"), str(info.field_name).removesuffix("_weight")
        if weight == 0 and loss_type == term:
            raise PydanticCustomError("no_loss", "above 0, since the only term is {term}", {"term": term})
        # huber_weight is the last of the three: the others are known by then
        others = [info.data.get("mse_weight", 1), info.data.get("l1_weight", 1)]
        if weight == 0 and loss_type == "hybrid" and term == "huber" and not any(others):
            raise PydanticCustomError("no_loss", "above 0, or mse_weight or l1_weight above 0")
        return weight

    @field_validator("time_weight_params")
    @classmethod
    def _bounds_in_order(cls, params: TimeWeightParams, info: Any) -> TimeWeightParams:
        formula = info.data.get("time_weight_type")
        low, high = _bounds(formula, params) if formula else (0.0, math.inf)
        mistakes(
            ("min_weight", low, f"at most max_weight, which is {high} for {formula} unless it is set")
            if low > high and params.max_weight is None
            else None,
            ("max_weight", high, f"at least min_weight, which is {low} for {formula} unless it is set")
            if low > high and params.min_weight is None
            else None,
        )
        return params


def _bounds(formula: TimeWeight, params: TimeWeightParams) -> tuple[float, float]:
    low, high = (0.1, 1.0) if formula in _BOUNDED else (0.0, math.inf)
    return (
        low if params.min_weight is None else params.min_weight,
        high if params.max_weight is None else params.max_weight,
    )
