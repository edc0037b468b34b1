"""What a run tells while it goes on: metrics.jsonl, the tracker, the plot of the loss, the progress bar."""

import logging
import resource
import sys
import time
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.pipelines.pictures import loss_curve
from ddpm_hf.runtime.nested import flatten
from ddpm_hf.training.metrics import Meter, MetricsFile

logger = logging.getLogger(__name__)


class Journal:
    """Writes down the figures of a run.

    Args:
        run: where metrics.jsonl and the plot lie.
        meter: gathers the figures of updates.
        accelerator: knows the tracker and the other processes.
        batch_size: images per update.
        num_steps: updates of the whole run.
        step: updates done.
        seconds: spent on them.
    """

    def __init__(
        self,
        run: RunFolder,
        meter: Meter,
        accelerator: Accelerator,
        batch_size: int,
        num_steps: int,
        step: int,
        seconds: float,
    ) -> None:
        self.run, self.meter, self.accelerator, self.batch_size = run, meter, accelerator, batch_size
        self.metrics = MetricsFile(run.metrics)
        self.started = time.perf_counter() - seconds
        self.written_step, self.written_seconds = step, seconds
        self.bar = tqdm(
            desc="training",
            total=num_steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            disable=not accelerator.is_main_process,
        )

    @property
    def seconds(self) -> float:
        """Spent on the run so far, in all its parts."""
        return time.perf_counter() - self.started

    def write_means(self, step: int) -> None:
        """Write the means of the updates since the last line; to be called on every process."""
        means = self.meter.means()
        seconds = self.seconds
        updates, passed = step - self.written_step, seconds - self.written_seconds
        rate = self.batch_size * updates / passed
        self.written_step, self.written_seconds = step, seconds
        waited = means.pop("data_seconds", 0.0) * updates
        record = means | {
            "images_per_second": round(rate, 1),
            "data_wait": round(waited / passed, 4),
            "memory_gb": round(_memory_bytes(self.accelerator.device) / 1e9, 3),
            "seconds": round(seconds, 2),
        }
        self.write(step, record)
        self.bar.set_postfix_str(f"loss {means.get('loss', float('nan')):.4f}, {rate:,.0f} img/s")

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Write a line of figures, and send those that are numbers to the tracker; a full disk ends no run."""
        try:
            if self.accelerator.is_main_process:
                self.metrics.append({"step": step, **figures})
            flat = flatten(figures, "/", lists=True)
            numbers = {name: value for name, value in flat.items() if isinstance(value, (int, float))}
            self.accelerator.log(numbers, step=step)
        except OSError as error:
            logger.warning("no line of metrics.jsonl at step %d: %s; training goes on", step, error)

    def draw(self) -> None:
        """Draw the loss and the learning rate anew."""
        if self.accelerator.is_main_process:
            records = [record for record in self.metrics.read() if "loss" in record]
            if records:
                loss_curve(records, self.run.loss)


def _memory_bytes(device: torch.device) -> int:
    """The most memory that this process has taken so far, on the GPU or, without one, in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
