"""One update of the weights: DDPM, algorithm 1, on accelerate."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet
from ddpm_hf.losses import LossOutput, make_timestep_sampler
from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.randomness import derive_seed
from ddpm_hf.schedulers import build_scheduler
from ddpm_hf.training.batches import Batches
from ddpm_hf.training.ema import ExponentialMovingAverage
from ddpm_hf.training.learning_rate import learning_rate
from ddpm_hf.training.objective import Objective
from ddpm_hf.training.state import STATE, Progress, load_state, save_state

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss


class Learner:
    """The network, its average and its optimiser, and how a batch changes them.

    Args:
        config: the run.
        images: the training images.
        num_steps: updates of the whole run, over which the learning rate runs.
        accelerator: the processes and devices.
        checkpoint: to go on from; None for the beginning.
        perceptual: the perceptual loss, if the configuration asks for one.

    Attributes:
        pipeline: samples from the averaged weights.
    """

    def __init__(
        self,
        config: Config,
        images: ImageSet,
        num_steps: int,
        accelerator: Accelerator,
        checkpoint: Path | None = None,
        perceptual: "PerceptualLoss | None" = None,
    ) -> None:
        self.config, self.num_steps, self.accelerator = config, num_steps, accelerator
        model, training, device = config.model, config.training, accelerator.device
        self.scheduler = build_scheduler(model)
        self.objective = Objective(config, self.scheduler, perceptual, accelerator)
        self.timestep_sampler = make_timestep_sampler(config.loss.timestep_sampling, model.time_steps)
        self.batches = Batches(
            images, config, self.timestep_sampler, device, accelerator.process_index, accelerator.num_processes
        )
        torch.manual_seed(derive_seed(config.seed, "weights"))
        network = build_network(model).to(device)
        self.parameters = list(network.parameters())
        optimizer = _build_optimizer(self.parameters, config)
        self.ema = ExponentialMovingAverage(network, training.ema_decay, training.ema_warmup)
        self.pipeline = DDPMPipeline(unet=self.ema.network, scheduler=self.scheduler)
        if checkpoint is not None:
            load_state(checkpoint / STATE, network, optimizer, self.timestep_sampler)
            self.ema.network.load_state_dict(load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors"))
            if self.objective.game is not None:
                self.objective.game.load(checkpoint / STATE)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)

    def update(self, step: int) -> dict[str, Tensor | float]:
        """Update the weights and their average once.

        Args:
            step: updates done before.

        Returns:
            Figures of the update: the loss (of this process's images), its terms if it has several (unweighted),
            grad_norm (before clipping), learning_rate, and the adversary's, if it learns at this step.

        Raises:
            FloatingPointError: if the gradient is not finite; nothing is updated then.
        """
        training, accelerator = self.config.training, self.accelerator
        rate = learning_rate(step, self.num_steps, training.learning_rate, training.scheduler)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.config.seed, "dropout", step, accelerator.process_index))
        batch = self.batches.at(step)
        parts = batch.parts(training.gradient_accumulation_steps)
        loss, game = self.objective.loss_at(step), self.objective.game
        losses: list[LossOutput] = []
        for part in parts:
            last = len(losses) == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self.network):
                x_t = self.scheduler.add_noise(part.x_0, part.noise, part.timesteps)
                prediction = self.network(x_t, part.timesteps, part.labels).sample
                losses.append(loss(prediction, part.x_0, part.noise, part.timesteps, part.sample_weights))
                accelerator.backward(losses[-1].loss / len(parts))
        mean_loss = torch.stack([part.loss.detach() for part in losses]).mean()
        grad_norm = accelerator.clip_grad_norm_(self.parameters, training.max_grad_norm or float("inf"))
        self._check_finite(step, mean_loss, grad_norm)
        figures = {"loss": mean_loss, **_mean_terms(losses), "grad_norm": grad_norm, "learning_rate": rate}
        if game is not None and game.adversary.is_trained(step):
            figures |= game.learn(parts, losses)
            self._check_finite(step, figures["adversary/loss"], figures["adversary/grad_norm"])
            game.optimizer.step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            self.ema.update(step)
        if self.timestep_sampler.needs_losses:
            per_sample = torch.cat([part.per_sample for part in losses])
            self.timestep_sampler.update(accelerator.gather(batch.timesteps), accelerator.gather(per_sample))
        return figures

    def _check_finite(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        # the loss scaling of fp16 skips updates with an infinite gradient by itself; a loss that is not finite stays so
        if (loss if self.accelerator.scaler is not None else grad_norm).isfinite():
            return
        raise FloatingPointError(
            f"the loss at step {step:,} is {loss.item():g} and its gradient's norm {grad_norm.item():g}: the weights "
            "are left as they were; a lower training.learning_rate, a lower max_grad_norm or mixed_precision=no helps"
        )

    def save(self, folder: Path, progress: Progress) -> None:
        """Write a pipeline of the averaged weights and, beside it, what training needs to go on.

        Args:
            folder: an empty folder.
            progress: how far the run is.
        """
        self.pipeline.save_pretrained(folder)
        network = self.accelerator.unwrap_model(self.network)
        save_state(folder / STATE, network, self.optimizer.optimizer, self.timestep_sampler, progress)
        if self.objective.game is not None:
            self.objective.game.save(folder / STATE)


def _mean_terms(parts: list[LossOutput]) -> dict[str, Tensor]:
    """The terms of a loss that has several, over the accumulated parts."""
    names = list(parts[0].terms) if len(parts[0].terms) > 1 else []
    return {f"loss/{name}": torch.stack([part.terms[name] for part in parts]).mean() for name in names}


def _build_optimizer(parameters: list[torch.nn.Parameter], config: Config) -> torch.optim.Optimizer:
    training = config.training
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return kind(
        parameters,
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )
