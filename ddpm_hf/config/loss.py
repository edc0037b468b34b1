"""`loss_config`: what the network is trained to minimise."""

import math
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import model_validator
from typing_extensions import Self

from ddpm_hf.config.section import (
    EmbeddingChannels,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)

TimeWeight = Literal["constant", "snr", "linear", "inverse", "min_snr", "p2"]
TimestepSampling = Literal["uniform", "stratified", "importance"]

BOUNDED = ("snr", "linear", "inverse")
"""Time weights that span many orders of magnitude and have bounds by default; the papers' own have none."""

LPIPS_BACKBONES = ("lpips-alex", "lpips-vgg", "lpips-squeeze")


class TimeWeightParams(Section):
    """Bounds of the weight of a timestep, and the parameters of its formula."""

    min_weight: NonNegativeFloat | None = None
    """Smallest weight of any timestep; null: 0.1 for snr, linear and inverse, 0 for the others."""
    max_weight: PositiveFloat | None = None
    """Largest weight of any timestep; null: 1.0 for snr, linear and inverse, no bound for the others."""
    gamma: PositiveFloat = 5.0
    """Signal-to-noise ratio at which `min_snr` clips."""
    p2_gamma: PositiveFloat = 1.0
    """Exponent of `p2`: how strongly timesteps with little noise are down-weighted."""
    p2_k: PositiveFloat = 1.0
    """Added to the signal-to-noise ratio in `p2`, which bounds the weight where there is only noise."""
    normalize: bool = False
    """Divide the bounded weights by their mean over all timesteps, so that learning rates of unweighted training
    remain valid."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.min_weight, self.max_weight
        are_swapped = low is not None and high is not None and low > high
        return self.refuse((are_swapped, "max_weight", f"at least min_weight ({low})"))


class PerceptualConfig(Section):
    """How much the predicted image must look like the real one to a frozen network."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term; 0: no perceptual loss, and nothing is loaded."""
    backbone: str | None = None
    """`lpips-alex`, `lpips-vgg` or `lpips-squeeze` (LPIPS, needs torchvision); the Hub id or local folder of an image
    backbone of transformers, such as microsoft/resnet-18; or `digits`, a small network trained on the built-in digits
    when it is first needed."""
    stages: Annotated[tuple[NonNegativeInt, ...], Len(min_length=1)] | None = None
    """Stages of the backbone whose features are compared, 0 being the stem; null: all but the stem. Not for LPIPS."""
    image_size: PositiveInt | None = None
    """Side to which images are resized for the backbone, in pixels; null: their own, but at least 64."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        backbone, stages, lpips = self.backbone, list(self.stages or ()), ", ".join(LPIPS_BACKBONES)
        is_lpips = backbone is not None and backbone.startswith("lpips")
        return self.refuse(
            (
                self.weight and backbone is None,
                "backbone",
                f"{lpips}, digits, or the Hub id or folder of an image backbone, since weight is above 0",
            ),
            (is_lpips and backbone not in LPIPS_BACKBONES, "backbone", lpips),
            (stages and is_lpips, "stages", "null for a backbone of LPIPS, whose stages are fixed"),
            (stages != sorted(set(stages)), "stages", "each stage once, in increasing order"),
        )


class AdversarialConfig(Section):
    """How hard it must be for a discriminator to tell predicted images from real ones."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term; 0: no adversarial loss, and no discriminator."""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """The losses of discriminator and network (Lim & Ye 2017; Goodfellow et al. 2014)."""
    start_step: NonNegativeInt = 0
    """Training step at which the adversarial loss begins; before it predictions are too blurry to learn from."""
    update_every: PositiveInt = 1
    """Steps of the network per step of the discriminator."""
    gradient_penalty: NonNegativeFloat = 1.0
    """Weight of R1, half the squared gradient of the discriminator at real images (Mescheder et al. 2018); 0: none."""
    learning_rate: PositiveFloat = 2e-4
    """Of the discriminator's Adam, constant."""
    hidden_channels: EmbeddingChannels = 64
    """Channels of the discriminator at full resolution, at least 4; twice as many per level, four times at most."""
    num_levels: PositiveInt = 2
    """Times that the discriminator halves the resolution; it gives one logit per remaining patch."""


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
    """Weight each timestep by `time_weight_type`; false: all timesteps count the same (DDPM's L_simple)."""
    time_weight_type: TimeWeight = "min_snr"
    """The formula of the weight w(t); see docs/losses.md."""
    time_weight_params: TimeWeightParams = TimeWeightParams()
    """Bounds and parameters of that formula."""
    timestep_sampling: TimestepSampling = "uniform"
    """How the timesteps of a batch are drawn: independently and uniformly; one from each of batch_size equal intervals
    of the schedule; or more often where the loss has been large (improved DDPM, section 3.3). The expected loss is the
    same, its variance is not."""
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
        params, (low, high) = self.time_weight_params, (0.1, 1.0) if self.time_weight_type in BOUNDED else (0, math.inf)
        return (
            low if params.min_weight is None else params.min_weight,
            high if params.max_weight is None else params.max_weight,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        term, is_zero, params = self.loss_type, not any(self.term_weights.values()), self.time_weight_params
        low, high = self.weight_bounds
        of_formula = f"of time_weight_type {self.time_weight_type}"
        return self.refuse(
            (is_zero and term != "hybrid", f"{term}_weight", f"above 0, since loss_type {term} has no other term"),
            (is_zero and term == "hybrid", "huber_weight", "above 0, or mse_weight or l1_weight above 0"),
            (
                low > high and params.max_weight is None,
                "time_weight_params.min_weight",
                f"at most {high}, the default maximum {of_formula}",
            ),
            (
                low > high and params.min_weight is None,
                "time_weight_params.max_weight",
                f"at least {low}, the default minimum {of_formula}",
            ),
        )
