"""The game between the network, which predicts images, and a discriminator, which tells them from real ones."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from ddpm_hf.config.loss import AdversarialConfig
from ddpm_hf.losses.discriminator import PatchDiscriminator
from ddpm_hf.runtime.errors import UserError

Images = Float[Tensor, "batch channels height width"]
Verdicts = Float[Tensor, "batch 1 patches_high patches_wide"]


def hinge(signed: Verdicts) -> Verdicts:
    """max(0, 1 - s), s the verdict with the sign of the truth: how wrong or unsure it is (Lim & Ye 2017)."""
    return F.relu(1 - signed)


def non_saturating(signed: Verdicts) -> Verdicts:
    """-log sigmoid(s), s the verdict with the sign of the truth (Goodfellow et al. 2014)."""
    return F.softplus(-signed)


# by name: the discriminator's loss of a verdict with the sign of the truth, and the network's of a verdict
GAMES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge, torch.neg),
    "non_saturating": (non_saturating, non_saturating),
}


@dataclass(frozen=True)
class AdversaryOutput:
    """What the discriminator makes of a batch.

    Attributes:
        loss: the discriminator's loss, with the gradient penalty.
        terms: means for the log: the verdicts on `real` and `fake` patches, and the `penalty` without its weight.
    """

    loss: Float32[Tensor, ""]
    terms: dict[str, Tensor]


class Adversary(nn.Module):
    """A discriminator with both losses of the game, all in float32.

    Its `forward` is the discriminator's whole loss, so that DistributedDataParallel can wrap it: one forward, one
    backward. Beyond its weights it has no state: what happens at a step follows from the step.

    Args:
        config: the game and the size of the discriminator.
        image_channels: 1 or 3.
        image_size: side of the images, in pixels.

    Raises:
        UserError: if the images are too small for the discriminator's levels.
    """

    def __init__(self, config: AdversarialConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        if image_size < 2**config.num_levels:
            most = image_size.bit_length() - 1
            raise UserError(
                f"num_levels of the adversarial loss: given {config.num_levels}; allowed: 1 to {most}, since images of "
                f"{image_size} pixels can be halved {most} times"
            )
        self.config = config
        self.discriminator_loss, self.network_loss = GAMES[config.loss]
        self.discriminator = PatchDiscriminator(image_channels, config.hidden_channels, config.num_levels)

    def forward(self, predicted_x_0: Images, x_0: Images, timesteps: Int[Tensor, " batch"]) -> AdversaryOutput:
        """The discriminator's loss; no gradient goes to the network that predicted.

        Args:
            predicted_x_0: images that the network stands for, around [-1, 1].
            x_0: the real ones.
            timesteps: at which each was predicted.
        """
        with torch.autocast(x_0.device.type, enabled=False):
            penalized = self.config.gradient_penalty > 0
            real_images = x_0.detach().float().requires_grad_(penalized)
            real = self.discriminator(real_images, timesteps)
            fake = self.discriminator(predicted_x_0.detach().float(), timesteps)
            loss = self.discriminator_loss(real).mean() + self.discriminator_loss(-fake).mean()
            terms = {"real": real.mean().detach(), "fake": fake.mean().detach()}
            if penalized:
                penalty = r1_penalty(real, real_images)
                loss = loss + self.config.gradient_penalty * penalty
                terms["penalty"] = penalty.detach()
        return AdversaryOutput(loss, terms)

    def network_term(
        self, predicted_x_0: Images, x_0: Images, timesteps: Int[Tensor, " batch"]
    ) -> Float32[Tensor, " batch"]:
        """The network's loss of each image: a term for DiffusionLoss. No gradient goes to the discriminator.

        Args:
            predicted_x_0: images that the network stands for, around [-1, 1].
            x_0: does not matter.
            timesteps: at which each was predicted.
        """
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        with torch.autocast(x_0.device.type, enabled=False):
            verdicts = torch.func.functional_call(self.discriminator, weights, (predicted_x_0.float(), timesteps))
            return self.network_loss(verdicts).mean((1, 2, 3))

    def is_active(self, step: int) -> bool:
        """Whether the network is judged at a training step, counted from 0."""
        return step >= self.config.start_step

    def is_trained(self, step: int) -> bool:
        """Whether the discriminator learns at a training step, counted from 0."""
        return self.is_active(step) and (step - self.config.start_step) % self.config.update_every == 0

    def make_optimizer(self) -> torch.optim.Adam:
        """Adam without momentum, as is usual in such games (Mescheder et al. 2018)."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=(0.0, 0.99))


def r1_penalty(verdicts: Verdicts, real_images: Images) -> Float32[Tensor, ""]:
    """E[|grad_x D(x)|^2] / 2 at real images, D the mean verdict on an image (R1, Mescheder et al. 2018, eq. 9)."""
    (gradient,) = torch.autograd.grad(verdicts.mean((1, 2, 3)).sum(), real_images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2
