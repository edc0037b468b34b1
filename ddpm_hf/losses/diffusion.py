"""The training loss of a diffusion model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.config.model import PredictionType
from ddpm_hf.losses.weights import weight_table
from ddpm_hf.schedulers import DDPMScheduler, DiffusionProcess, bound_terms

Images = Float32[Tensor, "batch channels height width"]
PerImage = Float32[Tensor, " batch"]

Term = Callable[[Tensor, Tensor], Tensor]
"""From the prediction and its target to a number per image."""

ImageTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the predicted x_0, the real x_0 and the timesteps to a number per image."""

VarianceTerm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From the network's output, x_0, x_t and the timesteps to a number per image; only the variance gets a gradient."""


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
    """The terms of a configuration by name, each with its weight; terms of weight 0 are omitted."""
    terms: dict[str, Term] = {
        "mse": mse,
        "l1": l1,
        "huber": lambda prediction, target: huber(prediction, target, config.huber_delta),
    }
    return {name: (weight, terms[name]) for name, weight in config.term_weights.items() if weight > 0}


def learned_variance_term(scheduler: DDPMScheduler) -> VarianceTerm:
    """Make L_vlb of improved DDPM, eq. 16: T L_t, whose mean over the timesteps is the bound in bits per dimension.

    No gradient goes to the prediction, which L_simple alone trains.

    Args:
        scheduler: of the model, with variance_type learned_range.
    """
    T = scheduler.config["num_train_timesteps"]

    def term(model_output: Tensor, x_0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        prediction, values = model_output.chunk(2, dim=1)
        return T * bound_terms(scheduler, torch.cat([prediction.detach(), values], dim=1), x_0, x_t, timesteps)

    return term


@dataclass(frozen=True)
class LossOutput:
    """What DiffusionLoss computes for a batch.

    Attributes:
        loss: the mean over the batch of sample weight times `per_sample`; the only value with a gradient.
        per_sample: of each image, the weighted sum of its terms, without the sample weight; what an importance sampler
            learns from.
        terms: of each term by name, its mean over the batch with the sample weights, but without w(t) and the term's
            own weight, so that runs with different weights can be compared; image terms with alpha_bar_t; `vlb` is an
            estimate of the variational bound in bits per dimension.
        predicted_x_0: the images that the prediction implies, without a gradient; None without image terms.
    """

    loss: Float32[Tensor, ""]
    per_sample: Float32[Tensor, " batch"]
    terms: dict[str, Tensor]
    predicted_x_0: Float32[Tensor, "batch channels height width"] | None = None


class DiffusionLoss(nn.Module):
    """Weighted error of the network's prediction: E_t[w(t) sum_k weight_k L_k(prediction, target_t)] (DDPM, eq. 14).

    Image terms compare the predicted x_0 with the real one, and are weighted by alpha_bar_t instead of w(t): where
    hardly anything of the image is left in x_t, the prediction can only be an average, and its error is divided by
    sqrt(alpha_bar_t).

    Everything is computed in float32, whatever the types of the inputs. There are no parameters, and nothing is added
    to a checkpoint.

    Args:
        config: the terms, and the weights of terms and timesteps.
        process: makes the x_t that the network sees.
        prediction_type: what the network predicts.
        image_terms: a weight and a function by name, such as a PerceptualLoss; None for no such terms, and then
            x_0 is not predicted. Modules among them do not become part of this one: the caller moves them to the
            device.
        variance_term: trains the second half of the output of a network with a learned variance, weighted by the
            configuration's vlb_weight (see `learned_variance_term`); None for a network without one.

    Raises:
        ValueError: prediction_type is unknown, the weights are not finite or all zero, or there are image terms for an
            x_0 that eps does not determine.
    """

    weights: Tensor

    def __init__(
        self,
        config: LossConfig,
        process: DiffusionProcess,
        prediction_type: PredictionType,
        image_terms: Mapping[str, tuple[float, ImageTerm]] | None = None,
        variance_term: VarianceTerm | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in get_args(PredictionType):
            raise ValueError(
                f"prediction_type: given {prediction_type!r}; allowed: {', '.join(get_args(PredictionType))}"
            )
        self.process, self.prediction_type = process, prediction_type
        self.terms = terms_of(config)
        self.image_terms = dict(image_terms or {})
        self.variance_term, self.vlb_weight = variance_term, config.vlb_weight
        alpha_bar = process.tables["alpha_bar"]
        if self.image_terms and prediction_type == "epsilon" and alpha_bar.min() == 0:
            raise ValueError(
                f"{', '.join(self.image_terms)}: x_0 cannot be solved from eps where alpha_bar_t is 0; "
                "predict sample or v_prediction, or end the schedule above 0"
            )
        self.register_buffer("weights", weight_table(config, alpha_bar, prediction_type), persistent=False)

    def forward(
        self,
        model_output: Float[Tensor, "batch outputs height width"],
        x_0: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        x_t: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        sample_weights: Float[Tensor, " batch"] | None = None,
    ) -> LossOutput:
        """Compare a prediction with its target.

        Args:
            model_output: the network's output at x_t: its prediction, and as many channels again with a learned
                variance.
            x_0: images in [-1, 1].
            noise: the eps that was mixed into them.
            x_t: the mixture, `process.q_sample(x_0, noise, timesteps)`.
            timesteps: of each image, in [0, T).
            sample_weights: drawn with the timesteps by the timestep sampler; None for 1 each.

        Returns:
            The loss with its gradient, and its parts for the log.

        Raises:
            ValueError: the output does not have the channels and sides that the images ask for.
        """
        batch, channels, *sides = x_0.shape
        num_outputs = channels if self.variance_term is None else 2 * channels
        if model_output.shape != (batch, num_outputs, *sides):
            raise ValueError(
                f"the output has shape {tuple(model_output.shape)}, the images {tuple(x_0.shape)}; allowed: "
                f"{num_outputs} channels, other sides equal"
            )
        model_output, x_0, noise, x_t = model_output.float(), x_0.float(), noise.float(), x_t.float()
        prediction = model_output[:, :channels]
        target = self.process.target(x_0, noise, timesteps, self.prediction_type)
        errors = {name: term(prediction, target) for name, (_, term) in self.terms.items()}
        per_sample = self.weights[timesteps] * sum(self.terms[name][0] * error for name, error in errors.items())

        if self.variance_term is not None:
            errors["vlb"] = self.variance_term(model_output, x_0, x_t, timesteps)
            per_sample = per_sample + self.vlb_weight * errors["vlb"]
        predicted_x_0 = None
        if self.image_terms:
            predicted_x_0 = self.process.predict_x_0(prediction, x_t, timesteps, self.prediction_type)
            alpha_bar = self.process.at("alpha_bar", timesteps, x_0).flatten()
            for name, (weight, term) in self.image_terms.items():
                errors[name] = alpha_bar * term(predicted_x_0, x_0, timesteps)
                per_sample = per_sample + weight * errors[name]

        weights = torch.ones_like(per_sample) if sample_weights is None else sample_weights.float()
        return LossOutput(
            loss=(weights * per_sample).mean(),
            per_sample=per_sample.detach(),
            terms={name: (weights * error).mean().detach() for name, error in errors.items()},
            predicted_x_0=None if predicted_x_0 is None else predicted_x_0.detach(),
        )
