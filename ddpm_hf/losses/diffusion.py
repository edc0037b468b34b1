"""The training loss of a diffusion model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int, Num
from torch import Tensor, nn

from ddpm_hf.config.loss import LossConfig
from ddpm_hf.losses.targets import TARGETS
from ddpm_hf.losses.terms import terms_of
from ddpm_hf.losses.weights import PredictionType, weight_table


@dataclass(frozen=True)
class LossOutput:
    """What DiffusionLoss computes for a batch.

    Attributes:
        loss: the mean over the batch of sample weight times `per_sample`; the only value with a gradient.
        per_sample: of each image, w(t) times the weighted sum of its terms, without the sample weight; what an
            importance sampler learns from.
        terms: of each term by name, its mean over the batch with the sample weights, but without w(t) and the term's
            own weight, so that runs with different weights can be compared.
    """

    loss: Float32[Tensor, ""]
    per_sample: Float32[Tensor, " batch"]
    terms: dict[str, Tensor]


class DiffusionLoss(nn.Module):
    """Weighted error of the network's prediction: E_t[w(t) sum_k weight_k L_k(prediction, target_t)] (DDPM, eq. 14).

    Everything is done in float32, whatever the types of the inputs. There are no parameters, and nothing is added to a
    checkpoint.

    Args:
        config: the terms and the weights of terms and timesteps.
        alphas_cumprod: alpha_bar_t for t = 0 … T - 1, of the scheduler that adds the noise; best in float64.
        prediction_type: what the network predicts.

    Raises:
        ValueError: if prediction_type is unknown, or the weights are not finite or all zero.
    """

    weights: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor

    def __init__(self, config: LossConfig, alphas_cumprod: Num[Tensor, " T"], prediction_type: PredictionType) -> None:
        super().__init__()
        if prediction_type not in TARGETS:
            raise ValueError(f"prediction_type: given {prediction_type!r}; allowed: {', '.join(TARGETS)}")
        self.target = TARGETS[prediction_type]
        self.terms = terms_of(config)
        # 1 - alpha_bar_t is about 1e-4 at t = 0: in float32 it would keep three digits
        alpha_bar = alphas_cumprod.detach().to("cpu", torch.float64)
        for name, table in {
            "weights": weight_table(config, alpha_bar, prediction_type),
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        }.items():
            self.register_buffer(name, table.float().to(alphas_cumprod.device), persistent=False)

    def forward(
        self,
        prediction: Float[Tensor, "batch channels height width"],
        x_0: Float[Tensor, "batch channels height width"],
        noise: Float[Tensor, "batch channels height width"],
        timesteps: Int[Tensor, " batch"],
        sample_weights: Float[Tensor, " batch"] | None = None,
    ) -> LossOutput:
        """Compare a prediction with its target.

        Args:
            prediction: the network's output for x_t.
            x_0: images in [-1, 1].
            noise: the eps that was mixed into them.
            timesteps: of each image, in 0 … T - 1.
            sample_weights: what the timestep sampler gave with the timesteps; left out: 1 each.

        Raises:
            ValueError: if the prediction has another shape than the images.
        """
        if prediction.shape != x_0.shape:
            raise ValueError(f"the prediction has shape {tuple(prediction.shape)}, the images {tuple(x_0.shape)}")
        target = self.target(
            x_0.float(),
            noise.float(),
            self.sqrt_alpha_bar[timesteps].view(-1, 1, 1, 1),
            self.sqrt_one_minus_alpha_bar[timesteps].view(-1, 1, 1, 1),
        )
        prediction = prediction.float()
        errors = {name: term(prediction, target) for name, (_, term) in self.terms.items()}
        per_sample = self.weights[timesteps] * sum(self.terms[name][0] * error for name, error in errors.items())
        weights = torch.ones_like(per_sample) if sample_weights is None else sample_weights.float()
        return LossOutput(
            loss=(weights * per_sample).mean(),
            per_sample=per_sample.detach(),
            terms={name: (weights * error).mean().detach() for name, error in errors.items()},
        )
