"""One update of the weights (DDPM, algorithm 1)."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ddpm_hf.data import ImageSet
from ddpm_hf.losses import DiffusionLoss, LossOutput
from ddpm_hf.runtime.distributed import max_over_processes
from ddpm_hf.runtime.memory import first_that_fits
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.training.accelerator import full_tensor
from ddpm_hf.training.batches import Batch, Batches
from ddpm_hf.training.learning_rate import learning_rate
from ddpm_hf.training.objective import Objective
from ddpm_hf.training.state import TrainState

if TYPE_CHECKING:
    from ddpm_hf.losses.perceptual import PerceptualLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepOutput:
    """The metrics of an update in one process.

    Attributes:
        metrics: means over this process's images, by name.
        timesteps: of these images; None if the update was skipped.
        losses: of these images.
    """

    metrics: Mapping[str, Tensor | float]
    timesteps: Int64[Tensor, " batch"] | None = None
    losses: Float32[Tensor, " batch"] | None = None


class TrainStep:
    """How a batch changes the training state.

    Args:
        state: is changed.
        images: the training images.
        num_steps: updates of the whole run, over which the learning rate is scheduled.
        perceptual: the perceptual loss, if the configuration uses one.

    Attributes:
        objective: the loss of each step.
    """

    def __init__(
        self, state: TrainState, images: ImageSet, num_steps: int, perceptual: "PerceptualLoss | None" = None
    ) -> None:
        self.state, self.num_steps, config, accelerator = state, num_steps, state.config, state.accelerator
        self.config, self.accelerator = config, accelerator
        self.objective = Objective(config, state.scheduler, perceptual, state.discriminator, accelerator.device)
        self.batches = Batches(
            images,
            config,
            state.timestep_sampler,
            accelerator.device,
            accelerator.process_index,
            accelerator.num_processes,
        )

    def update(self, step: int) -> StepOutput:
        """Update the weights and their averages once.

        Args:
            step: updates done before.

        Returns:
            The loss, its terms if it has several (unweighted), grad_norm (before clipping), learning_rate,
            data_seconds, and the discriminator's metrics if it is updated. A skipped update has only learning_rate.

        Raises:
            FloatingPointError: if the loss or a gradient is not finite, and no more updates may be skipped.
        """
        state, rate = self.state, self._set_learning_rate(step)
        torch.manual_seed(derive_seed(self.config.seed, "dropout", step, self.accelerator.process_index))
        started = time.perf_counter()
        batch = self.batches.at(step)
        data_seconds = time.perf_counter() - started

        micro_batches, loss = batch.split(state.num_accumulation_steps), self.objective.at(step)
        outputs = [self._backward(each, loss, len(micro_batches), each is micro_batches[-1]) for each in micro_batches]
        metrics = _means(outputs) | {"grad_norm": self._clip_gradients()}
        if state.discriminator is not None:
            metrics |= state.discriminator.backward(step, micro_batches, outputs)

        if not self._is_finite(step, metrics):
            state.optimizer.zero_grad()
            return StepOutput({"learning_rate": rate})
        if state.discriminator is not None:
            state.discriminator.update(step)
        state.optimizer.step()
        state.optimizer.zero_grad()
        if not state.optimizer.step_was_skipped:  # by the gradient scaler of fp16
            for average in state.averages:
                average.update(step)

        losses = torch.cat([output.per_sample for output in outputs])
        self._update_timestep_sampler(batch, losses)
        return StepOutput(metrics | {"learning_rate": rate, "data_seconds": data_seconds}, batch.timesteps, losses)

    def fit_memory(self) -> None:
        """Find the smallest number of accumulation steps that fits in memory; no weight changes."""
        configured, batch_size = self.state.num_accumulation_steps, self.config.training.batch_size
        share = batch_size // self.accelerator.num_processes
        candidates = [count for count in range(configured, share + 1) if share % count == 0]
        needed = max_over_processes(first_that_fits(candidates, self._try_accumulation))
        if needed != configured:
            logger.warning(
                "Out of memory with training.gradient_accumulation_steps=%d: using %d, with %d images per update as "
                "before.",
                configured,
                needed,
                batch_size,
            )
            self.state.num_accumulation_steps = needed

    def _backward(self, micro_batch: Batch, loss: DiffusionLoss, count: int, is_last: bool) -> LossOutput:
        """Add the gradient of one of `count` micro-batches; the processes exchange gradients at the last one."""
        x_t = self.state.scheduler.add_noise(micro_batch.x_0, micro_batch.noise, micro_batch.timesteps)
        if self.config.training.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with nullcontext() if is_last else self.accelerator.no_sync(self.state.network):
            # accelerate itself adds autocast only to a network that is not sharded
            with self.accelerator.autocast():
                prediction = self.state.network(x_t, micro_batch.timesteps, micro_batch.labels).sample.float()
            x_0, noise, timesteps = micro_batch.x_0, micro_batch.noise, micro_batch.timesteps
            output = loss(prediction, x_0, noise, x_t, timesteps, micro_batch.sample_weights)
            self.accelerator.backward(output.loss / count)
        return output

    def _set_learning_rate(self, step: int) -> float:
        training = self.config.training
        rate = learning_rate(step, self.num_steps, training.learning_rate, training.scheduler)
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient; returns its norm before that."""
        max_norm = self.config.training.max_grad_norm or float("inf")
        return full_tensor(self.accelerator.clip_grad_norm_(self.state.parameters, max_norm))

    def _is_finite(self, step: int, metrics: Mapping[str, Tensor]) -> bool:
        """Whether the update can be applied; all processes agree.

        Raises:
            FloatingPointError: if it cannot, and no more updates may be skipped.
        """
        # The gradient scaler of fp16 skips infinite gradients by itself, but not a loss that is infinite. The loss is
        # that of one process, while gradients are the same in all.
        scaled = self.accelerator.scaler is not None
        checked = [self.accelerator.reduce(metrics["loss"]) if scaled else metrics["grad_norm"]]
        checked += [metrics[name] for name in ("adversary/grad_norm",) if name in metrics]
        if torch.stack(checked).isfinite().all():
            return True
        loss, norm, state = metrics["loss"].item(), metrics["grad_norm"].item(), self.state
        if state.num_skipped < self.config.training.max_skipped_updates:
            state.num_skipped += 1
            logger.warning(
                "Skipping the update at step %s: the loss is %g and its gradient norm %g (%d skipped so far).",
                f"{step:,}",
                loss,
                norm,
                state.num_skipped,
            )
            return False
        raise FloatingPointError(
            f"the loss at step {step:,} is {loss:g} and its gradient norm {norm:g}; the weights are unchanged. Try a "
            "lower training.learning_rate, a lower training.max_grad_norm or training.mixed_precision=no"
        )

    def _update_timestep_sampler(self, batch: Batch, losses: Tensor) -> None:
        sampler, gather = self.state.timestep_sampler, self.accelerator.gather
        if sampler.needs_losses:
            sampler.update(gather(batch.timesteps), gather(losses))

    def _try_accumulation(self, count: int) -> None:
        """Use as much memory as an update with this many accumulation steps, optimizer state included."""
        state = self.state
        allocated = [] if state.optimizer.state else [torch.empty_like(each) for each in [*state.parameters] * 2]
        try:
            self._backward(self.batches.at(0).split(count)[0], self.objective.at(self.num_steps), count, False)
        finally:
            state.optimizer.zero_grad()
            del allocated


def _means(outputs: list[LossOutput]) -> dict[str, Tensor]:
    """The loss, and its terms if it has several, over the micro-batches."""
    names = list(outputs[0].terms) if len(outputs[0].terms) > 1 else []
    terms = {f"loss/{name}": torch.stack([output.terms[name] for output in outputs]).mean() for name in names}
    return {"loss": torch.stack([output.loss.detach() for output in outputs]).mean(), **terms}
