"""The training loss of a diffusion model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int, Num
from torch import Tensor, nn

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.losses.reconstruction import RECONSTRUCTIONS
from ddpm_hf.losses.targets import TARGETS
from ddpm_hf.losses.terms import terms_of
from ddpm_hf.losses.weights import PredictionType, weight_table

ImageTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of the predicted x_0, the real x_0 and the timesteps: a number per image."""

VarianceTerm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of the network's output, x_0, x_t and the timesteps: a number per image, whose gradient reaches the variance only."""


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
        predicted_x_0: the images that the prediction stands for, without a gradient; None without image terms.
    """

    loss: Float32[Tensor, ""]
    per_sample: Float32[Tensor, " batch"]
    terms: dict[str, Tensor]
    predicted_x_0: Float32[Tensor, "batch channels height width"] | None = None


class DiffusionLoss(nn.Module):
    """Weighted error of the network's prediction: E_t[w(t) sum_k weight_k L_k(prediction, target_t)] (DDPM, eq. 14).

    Image terms judge the predicted x_0 instead, and are weighted by alpha_bar_t instead of w(t): at timesteps where
    hardly anything of the image is left, the prediction can only be an average, and its error is divided by
    sqrt(alpha_bar_t).

    Everything is done in float32, whatever the types of the inputs. There are no parameters, and nothing is added to a
    checkpoint.

    Args:
        config: the terms and the weights of terms and timesteps.
        alphas_cumprod: alpha_bar_t for t = 0 … T - 1, of the scheduler that adds the noise; best in float64.
        prediction_type: what the network predicts.
        image_terms: by name, a weight and a function of the predicted x_0, the real x_0 and the timesteps that returns
            a number per image, such as a PerceptualLoss; left out: none, and x_0 is not predicted. Modules among them
            do not become part of this one: they are moved to the device by whoever made them.
        variance_term: of a network with a learned variance, which has twice the channels of the images, what trains
            that half of its output (see `learned_variance_term`), weighted by the configuration's vlb_weight.

    Raises:
        ValueError: if prediction_type is unknown, the weights are not finite or all zero, or image terms are to judge
            an x_0 that eps does not determine.
    """

    weights: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor

    def __init__(
        self,
        config: LossConfig,
        alphas_cumprod: Num[Tensor, " T"],
        prediction_type: PredictionType,
        image_terms: Mapping[str, tuple[float, ImageTerm]] | None = None,
        variance_term: VarianceTerm | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in TARGETS:
            raise ValueError(f"prediction_type: given {prediction_type!r}; allowed: {', '.join(TARGETS)}")
        self.target = TARGETS[prediction_type]
        self.reconstruct = RECONSTRUCTIONS[prediction_type]
        self.terms = terms_of(config)
        self.image_terms = dict(image_terms or {})
        self.variance_term, self.vlb_weight = variance_term, config.vlb_weight
        self.outputs_per_channel = 1 if variance_term is None else 2
        self._add_further = self._judge if image_terms or variance_term else self._leave
        # 1 - alpha_bar_t is about 1e-4 at t = 0: in float32 it would keep three digits
        alpha_bar = alphas_cumprod.detach().to("cpu", torch.float64)
        if self.image_terms and prediction_type == "epsilon" and alpha_bar.min() == 0:
            raise ValueError(
                f"{', '.join(self.image_terms)}: x_0 cannot be solved from eps where alpha_bar_t is 0; "
                "predict sample or v_prediction, or end the schedule above 0"
            )
        for name, table in {
            "weights": weight_table(config, alpha_bar, prediction_type),
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        }.items():
            self.register_buffer(name, table.float().to(alphas_cumprod.device), persistent=False)

    def forward(
        self,
        model_output: Float[Tensor, "batch outputs height width"],
        x_0: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        sample_weights: Float[Tensor, " batch"] | None = None,
    ) -> LossOutput:
        """Compare a prediction with its target.

        Args:
            model_output: the network's output for x_t: its prediction, and as many channels again with a learned
                variance.
            x_0: images in [-1, 1].
            noise: the eps that was mixed into them.
            timesteps: of each image, in 0 … T - 1.
            sample_weights: what the timestep sampler gave with the timesteps; left out: 1 each.

        Raises:
            ValueError: if the output has another shape than the images.
        """
        batch, channels, *sides = x_0.shape
        if model_output.shape != (batch, self.outputs_per_channel * channels, *sides):
            raise ValueError(
                f"the output has shape {tuple(model_output.shape)}, the images {tuple(x_0.shape)}; allowed: "
                f"{self.outputs_per_channel * channels} channels, other sides equal"
            )
        model_output, x_0, eps = model_output.float(), x_0.float(), noise.float()
        prediction = model_output[:, :channels]
        signal = self.sqrt_alpha_bar[timesteps].view(-1, 1, 1, 1)
        spread = self.sqrt_one_minus_alpha_bar[timesteps].view(-1, 1, 1, 1)
        target = self.target(x_0, eps, signal, spread)
        errors = {name: term(prediction, target) for name, (_, term) in self.terms.items()}
        per_sample = self.weights[timesteps] * sum(self.terms[name][0] * error for name, error in errors.items())
        per_sample, predicted_x_0 = self._add_further(per_sample, errors, model_output, x_0, eps, timesteps)
        weights = torch.ones_like(per_sample) if sample_weights is None else sample_weights.float()
        return LossOutput(
            loss=(weights * per_sample).mean(),
            per_sample=per_sample.detach(),
            terms={name: (weights * error).mean().detach() for name, error in errors.items()},
            predicted_x_0=predicted_x_0,
        )

    def _leave(self, per_sample: Tensor, *_: Any) -> tuple[Tensor, None]:
        """Without further terms: the loss as it is."""
        return per_sample, None

    def _judge(
        self,
        per_sample: Float32[Tensor, " batch"],
        errors: dict[str, Tensor],
        model_output: Float32[Tensor, "batch outputs height width"],
        x_0: Float32[Tensor, "batch channels height width"],
        eps: Float32[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
    ) -> tuple[Float32[Tensor, " batch"], Float32[Tensor, "batch channels height width"] | None]:
        """Add the terms of the learned variance and the predicted image to the loss, and their values to `errors`."""
        signal = self.sqrt_alpha_bar[timesteps].view(-1, 1, 1, 1)
        spread = self.sqrt_one_minus_alpha_bar[timesteps].view(-1, 1, 1, 1)
        x_t = signal * x_0 + spread * eps
        if self.variance_term is not None:
            errors["vlb"] = self.variance_term(model_output, x_0, x_t, timesteps)
            per_sample = per_sample + self.vlb_weight * errors["vlb"]
        if not self.image_terms:
            return per_sample, None
        predicted_x_0 = self.reconstruct(x_t, model_output[:, : x_0.shape[1]], signal, spread)
        for name, (weight, term) in self.image_terms.items():
            errors[name] = signal.flatten().square() * term(predicted_x_0, x_0, timesteps)
            per_sample = per_sample + weight * errors[name]
        return per_sample, predicted_x_0.detach()
