"""The training objective: the loss of each step, and the discriminator that is updated beside the network."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm_hf.config import Config
from ddpm_hf.losses import DiffusionLoss, LossOutput
from ddpm_hf.losses.diffusion import ImageTerm, learned_variance_term
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.schedulers import DDPMScheduler
from ddpm_hf.training.batches import Batch

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss


class Objective:
    """The loss of the network at each step.

    Args:
        config: of the run.
        scheduler: of the forward process.
        perceptual: the perceptual loss, if the configuration uses one.
        discriminator: of the adversarial loss, if the configuration uses one.
        device: of the loss.

    Attributes:
        plain_loss: without the adversarial term.
    """

    def __init__(
        self,
        config: Config,
        scheduler: DDPMScheduler,
        perceptual: "PerceptualLoss | None",
        discriminator: "DiscriminatorStep | None",
        device: torch.device,
    ) -> None:
        process, predicts, self._discriminator = scheduler.process, config.model.prediction_type, discriminator
        learns_variance = config.model.variance_type == "learned_range"
        variance_term = learned_variance_term(scheduler) if learns_variance else None

        def make_loss(terms: dict[str, tuple[float, ImageTerm]]) -> DiffusionLoss:
            return DiffusionLoss(config.loss, process, predicts, terms, variance_term).to(device)

        terms: dict[str, tuple[float, ImageTerm]] = {}
        if perceptual is not None:
            terms["perceptual"] = config.loss.perceptual.weight, perceptual.to(device)
        self.plain_loss = make_loss(terms)
        if discriminator is not None:
            adversarial = config.loss.adversarial.weight, discriminator.loss.network_term
            self._adversarial_loss = make_loss({**terms, "adversarial": adversarial})

    def at(self, step: int) -> DiffusionLoss:
        """The loss at a step, counted from 0."""
        adversarial = self._discriminator is not None and self._discriminator.loss.is_active(step)
        return self._adversarial_loss if adversarial else self.plain_loss


class DiscriminatorStep:
    """The discriminator of the adversarial loss and its optimizer, in float32 at any precision of the network.

    Args:
        config: of the run.
        accelerator: the processes and devices.

    Attributes:
        loss: the adversarial loss, with the discriminator in it.
        network: the same, prepared by accelerate.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        from ddpm_hf.losses.adversarial import AdversarialLoss  # imported only if the configuration uses it

        torch.manual_seed(derive_seed(config.seed, "adversary"))
        self.loss = AdversarialLoss(config.loss.adversarial, config.model.image_channels, config.model.sides)
        self.accelerator = accelerator
        self.network = accelerator.prepare_model(self.loss)
        self.optimizer = self.loss.make_optimizer()

    def backward(self, step: int, micro_batches: Sequence[Batch], outputs: Sequence[LossOutput]) -> dict[str, Tensor]:
        """Compute the discriminator's gradient if it is updated at this step.

        Args:
            step: updates done before.
            micro_batches: of the batch.
            outputs: the network's loss of each.

        Returns:
            The loss, the mean logits, the penalty (means over this process's images) and the gradient norm, for the
            log; empty if the discriminator is not updated at this step.
        """
        if not self.loss.is_trained(step):
            return {}
        self.optimizer.zero_grad()
        metrics: dict[str, Tensor] = {}
        for micro_batch, output in zip(micro_batches, outputs, strict=True):
            with nullcontext() if micro_batch is micro_batches[-1] else self.accelerator.no_sync(self.network):
                result = self.network(output.predicted_x_0, micro_batch.x_0, micro_batch.timesteps)
                (result.loss / len(micro_batches)).backward()
            for name, value in {"loss": result.loss.detach(), **result.terms}.items():
                metrics[name] = metrics.get(name, 0) + value / len(micro_batches)
        metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.loss.parameters(), math.inf)
        return {f"adversary/{name}": value for name, value in metrics.items()}

    def update(self, step: int) -> None:
        """Apply the gradient, if the discriminator is updated at this step."""
        if self.loss.is_trained(step):
            self.optimizer.step()


def load_perceptual(config: Config) -> "PerceptualLoss | None":
    """Load the perceptual loss of a run; None if the configuration uses none.

    Raises:
        UserError: if the backbone or its weights are missing, or do not take such images.
    """
    if not config.loss.perceptual.weight:
        return None
    from ddpm_hf.losses.perceptual import PerceptualLoss  # imported only if the configuration uses it

    return PerceptualLoss(config.loss.perceptual, config.model.image_channels, config.model.sides)
