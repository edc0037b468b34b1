"""How updates run: recorded and replayed where the device can (see `models.fast.graphs`), else operator by operator.

Every way is tried out on the first batch with all updates skipped, so that nothing changes, and must agree with the
plain one. What fails or differs is given up with a warning; it never ends a run.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ddpm_hf.models.fast.graphs import RECORDERS, Results
from ddpm_hf.runtime.distributed import max_over_processes
from ddpm_hf.runtime.memory import first_that_fits
from ddpm_hf.training.accelerator import deterministic_kernels
from ddpm_hf.training.batches import Batch
from ddpm_hf.training.compilation import uncompile_network
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.update import TrainStep

logger = logging.getLogger(__name__)

COMPILED_TOLERANCE = 2e-2
"""Relative; compiled code rounds bfloat16 elsewhere."""

NUM_SEEDS = 3
"""Dropout masks of compiled code differ from eager ones, so the spread over some seeds is tolerated."""


class CapturedUpdate:
    """An update recorded with its input in place.

    With several processes it is recorded in two parts, between which the gradients are averaged.

    Args:
        train_step: the update.
        step: of the batch.
        batch: an example, whose shape all others have.
    """

    def __init__(self, train_step: TrainStep, step: int, batch: Batch) -> None:
        self.batch, self._average_gradients = batch.clone(), train_step.average_gradients
        record = RECORDERS[batch.x_0.device.type]
        if train_step.accelerator.num_processes == 1:
            self._first = record(lambda: train_step.run_eagerly(step, self.batch))
            self._second = None
            return
        self._first = record(lambda: train_step.compute_gradients(step, self.batch))
        metrics = self._first()
        self._second = record(lambda: train_step.apply_gradients(metrics))

    def first(self, step: int, batch: Batch) -> Results:
        """Run what comes before the exchange of gradients: everything if there is one process."""
        self.batch.copy_(batch)
        return dict(self._first())

    def __call__(self, step: int, batch: Batch) -> Results:
        """Run the update on a batch; see `TrainStep.run_eagerly`."""
        results = self.first(step, batch)
        if self._second is not None:
            self._average_gradients(results)
            results |= self._second()
        return results


def why_not_captured(state: TrainState) -> str | None:
    """What keeps the updates of a run from being recorded on a device that can; None if nothing does."""
    loss = state.config.loss
    reasons = {
        "the weights are sharded": state.accelerator.is_fsdp2,
        "the gradient scaler of fp16 decides on the host": state.accelerator.scaler is not None,
        "the adversarial loss is trained on the host": state.discriminator is not None,
        "the perceptual loss is not recorded": bool(loss.perceptual.weight),
        "gradient checkpointing restores the random numbers of dropout": bool(
            state.config.training.gradient_checkpointing and state.config.model.dropout
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def choose_run(train_step: TrainStep, step: int) -> Callable[[int, Batch], Results]:
    """Choose how the updates of a run are run, and try it out; no weight changes.

    Every process calls this together.

    Args:
        train_step: the update.
        step: the first that will be run.

    Returns:
        What becomes `TrainStep.run`.
    """
    state, batch = train_step.state, train_step.batches.at(step)
    device = batch.x_0.device
    with _frozen(state), deterministic_kernels(device, train_step.is_strict):
        if state.compiled and _failed(lambda: train_step.compute_gradients(step, batch), "torch.compile"):
            _give_up_compiling(state)
        if device.type not in RECORDERS:
            return train_step.run_eagerly
        if reason := why_not_captured(state):
            logger.warning("Updates are not recorded as a CUDA graph, which is slower: %s.", reason)
            return train_step.run_eagerly
        made: list[CapturedUpdate] = []
        if _failed(lambda: made.append(CapturedUpdate(train_step, step, batch)), "Recording the update"):
            train_step.is_strict = False  # an operator without a deterministic kernel may be why
            return train_step.run_eagerly
        if difference := _difference(train_step, made[0], step, batch):
            logger.warning("The recorded update differs from an eager one: %s. Updates run eagerly.", difference)
        if max_over_processes(int(difference is not None)):
            _give_up_compiling(state)
            return train_step.run_eagerly
    return made[0]


@contextmanager
def _frozen(state: TrainState) -> Iterator[None]:
    """Skip all updates within."""
    state.finite.frozen.fill_(True)
    try:
        yield
    finally:
        state.finite.frozen.fill_(False)
        state.optimizer.zero_grad()
        if state.accelerator.device.type == "cuda":  # what eager updates needed is not the run's need
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _failed(attempt: Callable[[], object], name: str) -> bool:
    """Whether an attempt fails in any process, with a warning."""
    error = None
    try:
        attempt()
    except Exception as caught:  # of whatever kind: compilers and drivers have many
        error = caught
        logger.warning("%s failed: %s. Updates run without it.", name, str(caught).partition("\n")[0])
    return bool(max_over_processes(int(error is not None)))


def _give_up_compiling(state: TrainState) -> None:
    if state.compiled:
        uncompile_network(state.network)
        state.compiled = False


def _difference(train_step: TrainStep, captured: CapturedUpdate, step: int, batch: Batch) -> str | None:
    """Describe how a recorded update differs from an eager one with the same weights, batch and seed; None if not."""
    state = train_step.state
    is_compiled, num_seeds = state.compiled, NUM_SEEDS if state.compiled else 1
    configured = state.num_accumulation_steps

    def measure(run: Callable[[int, Batch], Results], seed: int) -> list[float]:
        train_step.seed_dropout(seed)
        results = run(step, batch)
        # With several processes that of this one's alone, so that none waits for another here.
        norm = results["grad_norm"] if "grad_norm" in results else results["gradients"].norm()
        return [results["loss"].item(), norm.item()]

    def measure_eager(num_accumulation_steps: int) -> None:
        state.num_accumulation_steps = num_accumulation_steps
        try:
            eager[:] = [measure(run, step + offset) for offset in range(num_seeds)]
        finally:
            state.num_accumulation_steps = configured

    eager: list[list[float]] = []
    is_alone = state.accelerator.num_processes == 1
    run = train_step.run_eagerly if is_alone else train_step.compute_gradients
    candidates = [
        count for count in range(state.num_accumulation_steps, len(batch.x_0) + 1) if not len(batch.x_0) % count
    ]
    with torch.compiler.set_stance("force_eager"):
        first_that_fits(candidates, measure_eager)  # it may need more memory than compiled code
    found = measure(captured.first, step)
    for name, value, *seeds in zip(("loss", "grad_norm"), found, *eager, strict=True):
        tolerance = COMPILED_TOLERANCE * abs(seeds[0]) + 3 * (max(seeds) - min(seeds)) if is_compiled else 0.0
        if math.isfinite(seeds[0]) and not abs(value - seeds[0]) <= tolerance:
            return f"{name} is {value:g} instead of {seeds[0]:g}"
    return None
