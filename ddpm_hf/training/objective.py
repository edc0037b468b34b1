"""What a step makes small, and the adversary that is trained beside the network."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from ddpm_hf.checkpoints.format import DISCRIMINATOR, DISCRIMINATOR_OPTIMIZER
from ddpm_hf.config import Config
from ddpm_hf.losses import DiffusionLoss, LossOutput
from ddpm_hf.losses.diffusion import learned_variance_term
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.schedulers import DDPMScheduler
from ddpm_hf.training.batches import Batch
from ddpm_hf.training.state import load_moments, moments_of, save_tensors

if TYPE_CHECKING:
    from ddpm_hf.losses.diffusion import ImageTerm
    from ddpm_hf.losses.perceptual import PerceptualLoss


class Objective:
    """The loss of each step.

    Args:
        config: the run.
        scheduler: adds the noise.
        perceptual: the perceptual loss, if the configuration asks for one.
        accelerator: the processes and devices.

    Attributes:
        plain_loss: without what an adversary says.
        game: the adversary and its optimiser; None without an adversarial loss.
    """

    def __init__(
        self, config: Config, scheduler: DDPMScheduler, perceptual: "PerceptualLoss | None", accelerator: Accelerator
    ) -> None:
        options, device = config.loss, accelerator.device
        self.game = Game(config, accelerator) if options.adversarial.weight else None
        image_terms: dict[str, tuple[float, ImageTerm]] = {}
        if perceptual is not None:
            image_terms["perceptual"] = options.perceptual.weight, perceptual.to(device)
        variance_term = None
        if config.model.variance_type == "learned_range":
            variance_term = learned_variance_term(scheduler)
        process, predicts = scheduler.process, config.model.prediction_type
        self.plain_loss = DiffusionLoss(options, process, predicts, image_terms, variance_term).to(device)
        if self.game is not None:
            image_terms["adversarial"] = options.adversarial.weight, self.game.adversary.network_term
            self._loss_in_game = DiffusionLoss(options, process, predicts, image_terms, variance_term).to(device)

    def loss_at(self, step: int) -> DiffusionLoss:
        """The loss of the network at a step, counted from 0."""
        return self._loss_in_game if self.game is not None and self.game.adversary.is_active(step) else self.plain_loss

    def game_at(self, step: int) -> "Game | None":
        """The game, if the adversary learns at a step."""
        return self.game if self.game is not None and self.game.adversary.is_trained(step) else None


class Game:
    """The adversary, spread over the processes, and its optimiser: always float32, so never scaled.

    Args:
        config: the run.
        accelerator: the processes and devices.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        from ddpm_hf.losses.adversarial import AdversarialLoss  # only where it is asked for

        torch.manual_seed(derive_seed(config.seed, "adversary"))
        self.adversary = AdversarialLoss(config.loss.adversarial, config.model.image_channels, config.model.image_size)
        self.accelerator = accelerator
        self.judge = accelerator.prepare_model(self.adversary)
        self.optimizer = self.adversary.make_optimizer()

    def learn(self, parts: list[Batch], outputs: list[LossOutput]) -> dict[str, Tensor]:
        """Gather the adversary's gradient of a step, to be followed by `optimizer.step()`.

        Args:
            parts: of the batch, in which gradients are accumulated.
            outputs: what the network's loss was of each.

        Returns:
            Figures for the log: its loss, verdicts and penalty (means over this process's images), and grad_norm.
        """
        self.optimizer.zero_grad()
        figures: dict[str, Tensor] = {}
        for part, output in zip(parts, outputs, strict=True):
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(self.judge):
                verdict = self.judge(output.predicted_x_0, part.x_0, part.timesteps)
                (verdict.loss / len(parts)).backward()
            for name, value in {"loss": verdict.loss.detach(), **verdict.terms}.items():
                figures[name] = figures.get(name, 0) + value / len(parts)
        figures["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.adversary.parameters(), math.inf)
        return {f"adversary/{name}": value for name, value in figures.items()}

    def save(self, folder: Path) -> None:
        """Write the adversary and its moments into a folder."""
        save_tensors(self.adversary.state_dict(), folder / DISCRIMINATOR)
        save_tensors(moments_of(self.optimizer), folder / DISCRIMINATOR_OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Go on from a folder; one from before the game leaves the adversary at its beginning."""
        if (folder / DISCRIMINATOR).exists():
            self.adversary.load_state_dict(load_file(folder / DISCRIMINATOR))
            load_moments(self.optimizer, folder / DISCRIMINATOR_OPTIMIZER)


def load_perceptual(config: Config) -> "PerceptualLoss | None":
    """Load the perceptual loss that a run asks for; None where it asks for none.

    Raises:
        UserError: if the backbone or its weights are missing, or do not take such images.
    """
    if not config.loss.perceptual.weight:
        return None
    from ddpm_hf.losses.perceptual import PerceptualLoss  # only where it is asked for

    return PerceptualLoss(config.loss.perceptual, config.model.image_channels, config.model.image_size)
