"""The adversarial loss: a discriminator learns to tell predicted images from real ones, the network to mislead it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from ddpm_hf.config.loss import AdversarialConfig
from ddpm_hf.models.layers.embeddings import TimeEmbedding, TransformerPositionalEmbedding
from ddpm_hf.runtime.errors import UserError

Images = Float[Tensor, "batch channels height width"]
Logits = Float[Tensor, "batch 1 patches_high patches_wide"]


def hinge(signed: Logits) -> Logits:
    """max(0, 1 - s), s the logit of a real patch or minus that of a fake one (Lim & Ye 2017)."""
    return F.relu(1 - signed)


def non_saturating(signed: Logits) -> Logits:
    """-log sigmoid(s), s the logit of a real patch or minus that of a fake one (Goodfellow et al. 2014)."""
    return F.softplus(-signed)


ADVERSARIAL_LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge, torch.neg),
    "non_saturating": (non_saturating, non_saturating),
}
"""By name: the discriminator's loss of a signed logit, and the network's loss of a fake patch's logit."""


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 with one logit per patch (PatchGAN, Isola et al. 2017), conditioned on the timestep.

    The timestep says how blurry a prediction may be; it scales and shifts the features of each level (FiLM, Perez et
    al. 2018). No normalisation couples images or places.

    Args:
        image_channels: 1 or 3.
        hidden_channels: at full resolution; even.
        num_levels: how often the resolution is halved.
    """

    def __init__(self, image_channels: int, hidden_channels: int = 64, num_levels: int = 2) -> None:
        super().__init__()
        widths = [hidden_channels * min(2**level, 4) for level in range(num_levels + 1)]
        time_channels = 4 * hidden_channels
        self.position = TransformerPositionalEmbedding(hidden_channels)
        self.time = TimeEmbedding(hidden_channels, time_channels)
        self.conv_in = nn.Conv2d(image_channels, hidden_channels, 3, padding=1)
        self.halve = nn.ModuleList(nn.Conv2d(wide, wider, 4, stride=2, padding=1) for wide, wider in pairwise(widths))
        self.film = nn.ModuleList(nn.Linear(time_channels, 2 * wider) for wider in widths[1:])
        self.conv_out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for parameter in self.film.parameters():
            nn.init.zeros_(parameter)  # at first the timestep has no effect

    def forward(self, images: Images, timesteps: Int[Tensor, " batch"]) -> Logits:
        """Classify each patch.

        Args:
            images: in or around [-1, 1].
            timesteps: at which each was predicted.

        Returns:
            The logit of each patch, above 0 for real.
        """
        time = F.silu(self.time(self.position(timesteps)))
        features = F.leaky_relu(self.conv_in(images), 0.2)
        for halve, film in zip(self.halve, self.film, strict=True):
            scale, shift = film(time)[:, :, None, None].chunk(2, dim=1)  # per channel, the same at every place
            features = F.leaky_relu(halve(features) * (1 + scale) + shift, 0.2)
        return self.conv_out(features)


@dataclass(frozen=True)
class DiscriminatorOutput:
    """The discriminator's loss of a batch.

    Attributes:
        loss: the discriminator's loss, with the gradient penalty.
        terms: means for the log: the logits of `real` and `fake` patches, and the `penalty` without its weight.
    """

    loss: Float32[Tensor, ""]
    terms: dict[str, Tensor]


class AdversarialLoss(nn.Module):
    """A discriminator, its loss and the network's, all in float32.

    `forward` computes the discriminator's complete loss, so that DistributedDataParallel can wrap it: one forward, one
    backward. Beyond the weights there is no state: what happens at a step follows from the step.

    Args:
        config: the kind of loss, and the size of the discriminator.
        image_channels: 1 or 3.
        sides: height and width of the images, in pixels.

    Raises:
        UserError: the images are too small for the discriminator's levels.
    """

    def __init__(self, config: AdversarialConfig, image_channels: int, sides: tuple[int, int]) -> None:
        super().__init__()
        smaller = min(sides)
        if smaller < 2**config.num_levels:
            most = smaller.bit_length() - 1
            raise UserError(
                f"num_levels of the adversarial loss: given {config.num_levels}; allowed: 1 to {most}, since images of "
                f"{smaller} pixels can be halved {most} times"
            )
        self.config = config
        self.discriminator_loss, self.network_loss = ADVERSARIAL_LOSSES[config.loss]
        self.discriminator = PatchDiscriminator(image_channels, config.hidden_channels, config.num_levels)

    def forward(self, predicted_x_0: Images, x_0: Images, timesteps: Int[Tensor, " batch"]) -> DiscriminatorOutput:
        """Compute the discriminator's loss; no gradient goes to the network that predicted.

        Args:
            predicted_x_0: images that the prediction implies, around [-1, 1].
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
        return DiscriminatorOutput(loss, terms)

    def network_term(
        self, predicted_x_0: Images, x_0: Images, timesteps: Int[Tensor, " batch"]
    ) -> Float32[Tensor, " batch"]:
        """Compute the network's loss of each image, an image term of DiffusionLoss; the discriminator gets no gradient.

        Args:
            predicted_x_0: images that the prediction implies, around [-1, 1].
            x_0: not used.
            timesteps: at which each was predicted.
        """
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        with torch.autocast(x_0.device.type, enabled=False):
            logits = torch.func.functional_call(self.discriminator, weights, (predicted_x_0.float(), timesteps))
            return self.network_loss(logits).mean((1, 2, 3))

    def is_active(self, step: int) -> bool:
        """Whether the network's loss includes `network_term` at a training step, counted from 0."""
        return step >= self.config.start_step

    def is_trained(self, step: int) -> bool:
        """Whether the discriminator is updated at a training step, counted from 0."""
        return self.is_active(step) and (step - self.config.start_step) % self.config.update_every == 0

    def make_optimizer(self) -> torch.optim.Adam:
        """Adam without momentum, as is usual for GANs (Mescheder et al. 2018)."""
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, betas=(0.0, 0.99))


def r1_penalty(logits: Logits, real_images: Images) -> Float32[Tensor, ""]:
    """E[|grad_x D(x)|^2] / 2 at real images, D the mean logit of an image (R1, Mescheder et al. 2018, eq. 9)."""
    (gradient,) = torch.autograd.grad(logits.mean((1, 2, 3)).sum(), real_images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2
