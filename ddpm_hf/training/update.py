"""One update of the weights (DDPM, algorithm 1)."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ddpm_hf.data import ImageSet
from ddpm_hf.losses import DiffusionLoss, LossOutput
from ddpm_hf.models.fast.graphs import Results
from ddpm_hf.runtime.distributed import max_over_processes
from ddpm_hf.runtime.memory import first_that_fits
from ddpm_hf.runtime.randomness import derive_seed
from ddpm_hf.training.accelerator import deterministic_kernels, full_tensor
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
        metrics: means over this process's images, by name, on the device.
        settings: numbers that the host knows, by name.
        applied: 1, or 0 if the update was skipped, whose metrics are not counted.
        timesteps: of these images.
        losses: of these images.
    """

    metrics: Results
    settings: Mapping[str, float]
    applied: Float32[Tensor, ""]
    timesteps: Int64[Tensor, " batch"]
    losses: Float32[Tensor, " batch"]


class TrainStep:
    """How a batch changes the training state.

    Args:
        state: is changed.
        images: the training images.
        num_steps: updates of the whole run, over which the learning rate is scheduled.
        perceptual: the perceptual loss, if the configuration uses one.

    Attributes:
        objective: the loss of each step.
        run: computes an update; `choose_run` finds a faster one than `run_eagerly`.
        is_strict: whether every operator must have a deterministic kernel, as those of the network have.
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
        self.run: Callable[[int, Batch], Results] = self.run_eagerly
        self.is_strict = perceptual is None and state.discriminator is None
        self._done = torch.cuda.Event() if accelerator.device.type == "cuda" else None

    def update(self, step: int) -> StepOutput:
        """Update the weights and their averages once.

        On a GPU this only starts the work. Nothing waits for it until a metric is read.

        Args:
            step: updates done before.

        Returns:
            The loss, its terms if it has several (unweighted), grad_norm (before clipping), learning_rate,
            data_seconds, and the discriminator's metrics if it is updated.

        Raises:
            FloatingPointError: on a CPU, if the gradient is not finite and no more updates may be skipped; on other
                devices `TrainState.finite` raises it when it is read.
        """
        rate = self._set_step(step)
        batch, data_seconds = self._timed_batch(step)
        self.seed_dropout(step)
        with deterministic_kernels(self.accelerator.device, self.is_strict):
            results = dict(self.run(step, batch))
        if self._done is not None:
            self._done.record()
        results.pop("gradients", None)
        losses, applied = results.pop("per_sample"), 1 - results.pop("skip")
        self._update_timestep_sampler(batch, losses)
        if self.accelerator.device.type == "cpu":  # where reading does not wait
            self.state.finite.read()
        metrics = {"learning_rate": rate, "data_seconds": data_seconds}
        return StepOutput(results, metrics, applied, batch.timesteps, losses)

    def run_eagerly(self, step: int, batch: Batch) -> Results:
        """Compute the gradients of a batch, average them over the processes and apply them.

        Returns:
            The metrics by name, `per_sample` losses, and `skip`, 1 if the update changes nothing.
        """
        outputs = self._backward_all(step, batch)
        results = self._results(outputs)
        self.average_gradients(results)
        discriminator = self.state.discriminator
        if discriminator is not None:
            micro_batches = batch.split(self.state.num_accumulation_steps)
            results |= discriminator.backward(step, micro_batches, outputs)
        results |= self.apply_gradients(results)
        if discriminator is not None and not results["skip"]:
            discriminator.update(step)
        return results

    def compute_gradients(self, step: int, batch: Batch) -> Results:
        """Compute this process's gradients of a batch.

        Returns:
            The metrics of its loss by name, `per_sample` losses, and with several processes the `gradients` as one
            vector, to be exchanged.
        """
        return self._results(self._backward_all(step, batch))

    def average_gradients(self, results: Results) -> None:
        """Average the vector of `gradients` over the processes.

        DistributedDataParallel would exchange them during the backward pass, but a recorded backward pass is one piece
        of work for the host, in which nothing can be exchanged by hooks. What that could hide is small: 36 million
        gradients take 1 ms between GPUs of one machine.
        """
        if "gradients" in results:
            torch.distributed.all_reduce(results["gradients"])
            results["gradients"] /= self.accelerator.num_processes

    def apply_gradients(self, metrics: Mapping[str, Tensor]) -> Results:
        """Clip the gradients, and update the weights and their averages unless a gradient is not finite.

        Args:
            metrics: `loss`, the averaged `gradients` of several processes, and the discriminator's gradient norm if it
                is updated.

        Returns:
            `grad_norm` before clipping, and `skip`, 1 if nothing was changed.
        """
        state, optimizer = self.state, self.state.optimizer
        if "gradients" in metrics:
            own = [parameter.grad for parameter in state.parameters]
            averaged = metrics["gradients"].split([gradient.numel() for gradient in own])
            torch._foreach_copy_(own, [each.view_as(to) for each, to in zip(averaged, own, strict=True)])
        grad_norm = self._clip_gradients()
        # The gradient scaler of fp16 skips infinite gradients by itself, but not a loss that is infinite. The loss is
        # that of one process, while gradients are the same in all.
        scaled = self.accelerator.scaler is not None
        checked = [self.accelerator.reduce(metrics["loss"]) if scaled else grad_norm]
        checked += [metrics[name] for name in ("adversary/grad_norm",) if name in metrics]
        skip = state.finite.skip(metrics["loss"], grad_norm, torch.stack(checked))
        if state.skips_on_device:
            optimizer.optimizer.found_inf = skip  # the fused kernels read it
            optimizer.step()
            for average in state.averages:
                average.update(1 - skip)
        elif not skip:
            optimizer.step()
            if not optimizer.step_was_skipped:  # by the gradient scaler of fp16
                for average in state.averages:
                    average.update()
        return {"grad_norm": grad_norm, "skip": skip}

    def seed_dropout(self, step: int) -> None:
        """Seed the dropout masks of a step, which differ between processes."""
        torch.manual_seed(derive_seed(self.config.seed, "dropout", step, self.accelerator.process_index))

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

    def _backward_all(self, step: int, batch: Batch) -> list[LossOutput]:
        """Compute the gradient of a batch, micro-batch by micro-batch."""
        self.state.optimizer.zero_grad()
        micro_batches, loss = batch.split(self.state.num_accumulation_steps), self.objective.at(step)
        return [self._backward(each, loss, len(micro_batches), each is micro_batches[-1]) for each in micro_batches]

    def _results(self, outputs: list[LossOutput]) -> Results:
        results = _means(outputs)
        if self.accelerator.num_processes > 1 and not self.accelerator.is_fsdp2:  # which averages them by itself
            results["gradients"] = torch.cat([parameter.grad.flatten() for parameter in self.state.parameters])
        return results

    def _backward(self, micro_batch: Batch, loss: DiffusionLoss, count: int, is_last: bool) -> LossOutput:
        """Add the gradient of one of `count` micro-batches; shards are exchanged at the last one."""
        x_t = self.state.scheduler.add_noise(micro_batch.x_0, micro_batch.noise, micro_batch.timesteps)
        if self.state.channels_last:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with nullcontext() if is_last else self.accelerator.no_sync(self.state.network):
            # accelerate itself adds autocast only to a network that is not sharded
            with self.accelerator.autocast():
                prediction = self.state.network(x_t, micro_batch.timesteps, micro_batch.labels).sample.float()
            x_0, noise, timesteps = micro_batch.x_0, micro_batch.noise, micro_batch.timesteps
            output = loss(prediction, x_0, noise, x_t, timesteps, micro_batch.sample_weights)
            self.accelerator.backward(output.loss / count)
        return output

    def _set_step(self, step: int) -> float:
        """Set what depends on the step: learning rate, averages' decays; returns the learning rate."""
        training, state = self.config.training, self.state
        rate = learning_rate(step, self.num_steps, training.learning_rate, training.scheduler)
        for group in state.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        for average in state.averages:
            average.set_step(step)
        state.finite.step.fill_(step)
        return rate

    def _timed_batch(self, step: int) -> tuple[Batch, float]:
        """The batch of a step, and the seconds that the device waited for it."""
        started = time.perf_counter()
        batch = self.batches.at(step)
        is_waiting = self._done is None or self._done.query()
        return batch, time.perf_counter() - started if is_waiting else 0.0

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient; returns its norm before that."""
        max_norm = self.config.training.max_grad_norm or float("inf")
        return full_tensor(self.accelerator.clip_grad_norm_(self.state.parameters, max_norm))

    def _update_timestep_sampler(self, batch: Batch, losses: Tensor) -> None:
        sampler, gather = self.state.timestep_sampler, self.accelerator.gather
        if sampler.needs_losses:
            sampler.update(gather(batch.timesteps), gather(losses))

    def _try_accumulation(self, count: int) -> None:
        """Use as much memory as an update with this many accumulation steps, optimizer state included."""
        state = self.state
        allocated = [] if state.optimizer.state else [torch.empty_like(each) for each in [*state.parameters] * 2]
        try:
            with torch.compiler.set_stance("force_eager"):  # which takes at least the memory of compiled code
                self._backward(self.batches.at(0).split(count)[0], self.objective.at(self.num_steps), count, False)
        finally:
            state.optimizer.zero_grad()
            del allocated


def _means(outputs: list[LossOutput]) -> Results:
    """The loss, its terms if it has several, and `per_sample` losses, over the micro-batches."""
    names = list(outputs[0].terms) if len(outputs[0].terms) > 1 else []
    terms = {f"loss/{name}": torch.stack([output.terms[name] for output in outputs]).mean() for name in names}
    loss = torch.stack([output.loss.detach() for output in outputs]).mean()
    return {"loss": loss, **terms, "per_sample": torch.cat([output.per_sample for output in outputs])}
