"""One update of the weights: DDPM, algorithm 1, on accelerate."""

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from ddpm_hf.checkpoints.format import OPTIMIZER, STATE, UNET, WEIGHTS, Progress
from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet
from ddpm_hf.losses import DiffusionLoss, LossOutput, make_timestep_sampler
from ddpm_hf.models import DDPMUNet, build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.runtime.distributed import max_over_processes
from ddpm_hf.runtime.memory import first_that_fits
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.schedulers import build_scheduler
from ddpm_hf.training.batches import Batch, Batches
from ddpm_hf.training.ema import ExponentialMovingAverage
from ddpm_hf.training.learning_rate import learning_rate
from ddpm_hf.training.metrics import Update
from ddpm_hf.training.objective import Objective
from ddpm_hf.training.sharding import gather, whole
from ddpm_hf.training.state import load_moments, load_state, moments_of, save_state

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss

logger = logging.getLogger(__name__)


class Learner:
    """The network, its averages and its optimiser, and how a batch changes them.

    Args:
        config: the run.
        images: the training images.
        num_steps: updates of the whole run, over which the learning rate runs.
        accelerator: the processes and devices.
        checkpoint: to go on from; None for the beginning.
        perceptual: the perceptual loss, if the configuration asks for one.

    Attributes:
        pipeline: samples from the averaged weights.
        num_parts: into which each process cuts its share of the batch, to save memory.
        num_skipped: updates left out because something was not finite.
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
        self.averages = [
            ExponentialMovingAverage(network, decay, training.ema_schedule, training.ema_power)
            for decay in (training.ema_decay, *training.ema_extra_decays)
        ]
        self.pipeline = DDPMPipeline(unet=self.averages[0].network, scheduler=self.scheduler)
        self.num_parts, self.num_skipped = training.gradient_accumulation_steps, 0
        if checkpoint is not None:
            self._load(checkpoint, network)
        if training.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if training.channels_last:
            network.to(memory_format=torch.channels_last)
        if training.compile:
            network.compile_repeated_blocks(dynamic=True)
        optimizer = _build_optimizer(list(network.parameters()), config)
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        self.parameters = list(self.network.parameters())  # which may be shards now
        for average in self.averages:
            average.follow(self.parameters)
        if checkpoint is not None:
            load_moments(self.optimizer.optimizer, checkpoint / STATE / OPTIMIZER)

    def update(self, step: int) -> Update:
        """Update the weights and their averages once.

        Args:
            step: updates done before.

        Returns:
            Figures of the update: the loss (of this process's images), its terms if it has several (unweighted),
            grad_norm (before clipping), learning_rate, data_seconds, and the adversary's, if it learns at this step.
            Of an update that was left out, the learning_rate only.

        Raises:
            FloatingPointError: if the loss or gradient is not finite, and no more updates may be left out; nothing is
                updated then.
        """
        training, accelerator = self.config.training, self.accelerator
        rate = learning_rate(step, self.num_steps, training.learning_rate, training.scheduler)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derive_seed(self.config.seed, "dropout", step, accelerator.process_index))
        started = time.perf_counter()
        batch = self.batches.at(step)
        data_seconds = time.perf_counter() - started
        parts = batch.parts(self.num_parts)
        loss, game = self.objective.loss_at(step), self.objective.game_at(step)
        outputs: list[LossOutput] = []
        for part in parts:
            with nullcontext() if part is parts[-1] else accelerator.no_sync(self.network):
                outputs.append(self._backward(part, loss, len(parts)))
        mean_loss = torch.stack([output.loss.detach() for output in outputs]).mean()
        grad_norm = whole(accelerator.clip_grad_norm_(self.parameters, training.max_grad_norm or float("inf")))
        figures = {"loss": mean_loss, **_mean_terms(outputs), "grad_norm": grad_norm}
        if game is not None:
            figures |= game.learn(parts, outputs)
        if not self._may_update(step, figures):
            self.optimizer.zero_grad()
            return Update({"learning_rate": rate})
        if game is not None:
            game.optimizer.step()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not self.optimizer.step_was_skipped:
            for average in self.averages:
                average.update(step)
        losses = torch.cat([output.per_sample for output in outputs])
        if self.timestep_sampler.needs_losses:
            self.timestep_sampler.update(accelerator.gather(batch.timesteps), accelerator.gather(losses))
        return Update(figures | {"learning_rate": rate, "data_seconds": data_seconds}, batch.timesteps, losses)

    def _backward(self, part: Batch, loss: DiffusionLoss, num_parts: int) -> LossOutput:
        """Add the gradient of one part of a batch."""
        x_t = self.scheduler.add_noise(part.x_0, part.noise, part.timesteps)
        if self.config.training.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():  # which accelerate adds by itself only to a network that is whole
            prediction = self.network(x_t, part.timesteps, part.labels).sample.float()
        output = loss(prediction, part.x_0, part.noise, x_t, part.timesteps, part.sample_weights)
        self.accelerator.backward(output.loss / num_parts)
        return output

    def _may_update(self, step: int, figures: dict[str, Tensor]) -> bool:
        """Whether all that an update rests on is finite; all processes agree.

        Raises:
            FloatingPointError: if it is not, and no more updates may be left out.
        """
        # the loss scaling of fp16 skips updates with an infinite gradient by itself; a loss that is not finite stays
        # so, and is that of one process, where gradients are the same in all
        scaled = self.accelerator.scaler is not None
        decisive = [self.accelerator.reduce(figures["loss"]) if scaled else figures["grad_norm"]]
        if "adversary/grad_norm" in figures:
            decisive.append(figures["adversary/grad_norm"])
        if torch.stack(decisive).isfinite().all():
            return True
        told = (
            f"the loss at step {step:,} is {figures['loss'].item():g} and its gradient's norm "
            f"{figures['grad_norm'].item():g}"
        )
        if self.num_skipped < self.config.training.max_skipped_updates:
            self.num_skipped += 1
            logger.warning("%s: the update is left out, the %d. so far", told, self.num_skipped)
            return False
        raise FloatingPointError(
            f"{told}: the weights are left as they were; a lower training.learning_rate, a lower max_grad_norm or "
            "mixed_precision=no helps"
        )

    def fit_memory(self) -> None:
        """Cut the batch into as many parts as memory asks for; trying changes no weight and no moment."""
        share = self.config.training.batch_size // self.accelerator.num_processes
        counts = [count for count in range(self.num_parts, share + 1) if share % count == 0]
        needed = max_over_processes(first_that_fits(counts, self._try_parts))
        if needed != self.num_parts:
            logger.warning(
                "not enough memory for training.gradient_accumulation_steps=%d: going on with %d, and %d images per "
                "update as before",
                self.num_parts,
                needed,
                self.config.training.batch_size,
            )
            self.num_parts = needed

    def _try_parts(self, count: int) -> None:
        """Use as much memory as an update in so many parts, moments that are yet to come included."""
        moments = [] if self.optimizer.state else [torch.empty_like(each) for each in [*self.parameters] * 2]
        try:
            with self.accelerator.no_sync(self.network):
                self._backward(self.batches.at(0).parts(count)[0], self.objective.loss_at(self.num_steps), count)
        finally:
            self.optimizer.zero_grad()
            del moments

    def complete_averages(self) -> None:
        """Bring the averages up to date, before the pipeline is used; to be called on every process."""
        for average in self.averages:
            average.complete()

    def gather(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The trained weights and the moments by name, as `save` takes them; to be called on every process."""
        network = self.accelerator.unwrap_model(self.network)
        weights, moments = network.state_dict(), moments_of(self.optimizer.optimizer)
        return gather(weights, self.accelerator), gather(moments, self.accelerator)

    def save(self, folder: Path, progress: Progress, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Write a pipeline of the averaged weights and, beside it, what training needs to go on.

        Args:
            folder: an empty folder.
            progress: how far the run is.
            weights: the trained ones; see `gather`.
            moments: of the optimiser.
        """
        self.save_pipeline(folder)
        save_state(folder, weights, moments, self.timestep_sampler, progress)
        if self.objective.game is not None:
            self.objective.game.save(folder / STATE)

    def save_pipeline(self, folder: Path) -> None:
        """Write a pipeline of the averaged weights, with the further averages as variants of them."""
        self.pipeline.save_pretrained(folder)
        for average in self.averages[1:]:
            average.network.save_pretrained(folder / UNET, variant=_variant(average.decay))

    def _load(self, checkpoint: Path, network: DDPMUNet) -> None:
        """Go on from a checkpoint; an average that it does not have begins as the first one."""
        load_state(checkpoint, network, self.timestep_sampler)
        first = checkpoint / UNET / f"{WEIGHTS}.safetensors"
        self.averages[0].network.load_state_dict(load_file(first))
        for average in self.averages[1:]:
            own = first.with_name(f"{WEIGHTS}.{_variant(average.decay)}.safetensors")
            average.network.load_state_dict(load_file(own if own.exists() else first))
        if self.objective.game is not None:
            self.objective.game.load(checkpoint / STATE)
        progress = Progress.read(checkpoint)
        self.num_skipped = progress.num_skipped
        before = (progress.num_processes, progress.config["training"]["gradient_accumulation_steps"])
        if before == (self.accelerator.num_processes, self.num_parts):
            self.num_parts = progress.num_accumulation_steps  # which fit_memory may have found


def _variant(decay: float) -> str:
    """The name of an average among the weights of a pipeline; diffusers finds none with a dot in it."""
    return f"ema-{decay:g}".replace(".", "_")


def _mean_terms(outputs: list[LossOutput]) -> dict[str, Tensor]:
    """The terms of a loss that has several, over the accumulated parts."""
    names = list(outputs[0].terms) if len(outputs[0].terms) > 1 else []
    return {f"loss/{name}": torch.stack([output.terms[name] for output in outputs]).mean() for name in names}


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
