"""The log of a run: running means, metrics.jsonl, accelerate's trackers, the plot of the loss, the progress bar.

accelerate's trackers take flat numbers and only append. metrics.jsonl keeps nested values, is cut back when a run is
resumed, and survives a full disk, so it is written here.
"""

import contextlib
import errno
import json
import logging
import math
import os
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ddpm_hf._version import __version__
from ddpm_hf.checkpoints.format import Progress
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.config import Config
from ddpm_hf.pipelines.pictures import loss_curve
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import atomic_write, write_text_atomic
from ddpm_hf.runtime.values import flatten, parse_json
from ddpm_hf.training.update import StepOutput

logger = logging.getLogger(__name__)

PROJECT = "ddpm-hf"
"""Name of the project in trackers."""

SECONDS_PER_DAY = 24 * 60 * 60
SECONDS_TO_WARN = 2 * SECONDS_PER_DAY
"""A run that takes longer may not be what its configuration was meant for."""

SECONDS_TO_TELL = 60
"""Of a run that takes less, the bar says enough."""

MAX_LINE = 2**20
"""Longest line of metrics.jsonl that is read."""

LARGEST = 1e300
"""Numbers beyond it are not plotted."""

NUM_BINS = 10
"""Equal parts of the timesteps, whose losses differ by orders of magnitude."""


class RunLogger:
    """Logs the metrics of a run.

    Args:
        run: folder with metrics.jsonl and the plot.
        config: of the run.
        accelerator: the trackers and the other processes.
        num_steps: updates of the whole run.
        progress: of the checkpoint that the run is resumed from.

    Attributes:
        means: of the updates since the last line.
        bar: the progress bar.
    """

    def __init__(
        self, run: RunFolder, config: Config, accelerator: Accelerator, num_steps: int, progress: Progress
    ) -> None:
        self.run, self.config, self.accelerator = run, config, accelerator
        self.means = RunningMeans(accelerator, config.model.time_steps, progress.sums)
        self.file = MetricsFile(run.metrics)
        self._started = time.perf_counter() - progress.seconds
        self._logged_step, self._logged_seconds = progress.step, progress.seconds
        self._num_steps, self._num_lines = num_steps, 0
        self._unwritten: dict[str, int | None] = {}  # the error of each thing that could not be written last
        self.bar = tqdm(
            desc="training",
            total=num_steps,
            initial=progress.step,
            unit="step",
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            disable=not accelerator.is_main_process,
        )

    @property
    def seconds(self) -> float:
        """Time spent on the run, before and after it was resumed."""
        return time.perf_counter() - self._started

    def start(self, step: int, pending: Collection[str]) -> None:
        """Record the environment, start the tracker, and remove the lines that a resumed run writes again."""
        logs = self.run.path / "logs"
        if self.config.logging.tracker == "wandb" and self.accelerator.is_main_process:
            logs.mkdir(parents=True, exist_ok=True)  # wandb uses another folder if this one is missing
        values = flatten(self.config.to_dict())
        options = {name: value if isinstance(value, (int, float)) else str(value) for name, value in values.items()}
        wandb = {"dir": str(logs), "name": self.run.path.name}
        self.accelerator.init_trackers(PROJECT, options, {"wandb": wandb})
        if self.accelerator.is_main_process:
            with self.going_on_without(self.run.metrics.name, step):
                self.file.cut_after(step, pending)
            with self.going_on_without(self.run.environment.name, step):
                write_text_atomic(self.run.environment, json.dumps(_environment(self.accelerator), indent=2) + "\n")

    def add(self, output: StepOutput) -> None:
        """Count the metrics of one update."""
        self.means.add(output)
        self.bar.update()

    def log_means(self, step: int) -> None:
        """Log the means of the updates since the last line; every process calls this together."""
        means, seconds = self.means.pop(), self.seconds
        updates, elapsed = step - self._logged_step, seconds - self._logged_seconds
        # The first updates also set things up, so they say nothing of the others.
        self._num_lines += 1
        if self._num_lines == 2 and self.accelerator.is_main_process:
            self._estimate(step, elapsed / updates)
        self._logged_step, self._logged_seconds = step, seconds
        rate = self.config.training.batch_size * updates / elapsed
        data_seconds = means.pop("data_seconds", 0.0) * updates
        machine = {
            "images_per_second": round(rate, 1),
            "data_wait": round(data_seconds / elapsed, 4),
            "memory_gb": round(_memory_bytes(self.accelerator.device) / 1e9, 3),
            "seconds": round(seconds, 2),
        }
        self.log(step, means | machine)
        self.bar.set_postfix_str(f"loss {means.get('loss', float('nan')):.4f}, {rate:,.0f} img/s")

    def _estimate(self, step: int, seconds_per_update: float) -> None:
        """Say once how long the rest of the run takes, and warn if that is days."""
        seconds = (self._num_steps - step) * seconds_per_update
        if seconds > SECONDS_TO_WARN:
            logger.warning(
                "The remaining %s steps take about %.0f days at this speed. Fewer training.num_steps, a smaller "
                "network or image_size, or a GPU need less.",
                f"{self._num_steps - step:,}",
                seconds / SECONDS_PER_DAY,
            )
        elif seconds > SECONDS_TO_TELL:
            hours, minutes = divmod(round(seconds / 60), 60)
            self.bar.write(f"about {hours} h {minutes} min for the remaining {self._num_steps - step:,} steps")

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append metrics to metrics.jsonl, and send the numbers to the tracker; a full disk does not end the run."""
        flat = flatten(metrics, "/", lists=True)
        numbers = {name: value for name, value in flat.items() if isinstance(value, (int, float))}
        with self.going_on_without(self.run.metrics.name, step):
            if self.accelerator.is_main_process:
                self.file.append({"step": step, **metrics})
            self.accelerator.log(numbers, step=step)

    def plot(self) -> None:
        """Plot the loss and the learning rate."""
        if self.accelerator.is_main_process and (points := self.file.curve.points()):
            loss_curve(points, self.run.loss)

    @contextlib.contextmanager
    def going_on_without(self, name: str, step: int) -> Iterator[None]:
        """Continue where something that only informs cannot be written; warn of it once, until it can be.

        Args:
            name: of what is written in the block.
            step: updates done.
        """
        try:
            yield
        except OSError as error:
            if self._unwritten.get(name) != error.errno:
                self._unwritten[name] = error.errno
                logger.warning("Cannot write %s at step %d: %s. The run goes on without it.", name, step, error)
        else:
            self._unwritten.pop(name, None)


class RunningMeans:
    """Means since the last line, over all updates and processes; reading them is the only wait for the device.

    Args:
        accelerator: the other processes.
        num_timesteps: T; the loss is also averaged over each tenth of the timesteps.
        sums: of an unfinished line, from a checkpoint.
    """

    def __init__(self, accelerator: Accelerator, num_timesteps: int, sums: dict[str, float] | None = None) -> None:
        self.accelerator, self.num_timesteps = accelerator, num_timesteps
        # The sums are over all processes. Rank 0 restores them; the others need only the keys.
        restored = {name: value if accelerator.is_main_process else 0.0 for name, value in (sums or {}).items()}
        self._bins = bin_names(num_timesteps)
        # One row of summed losses and one of counts, so that an update adds to both at once.
        self._by_bin = torch.tensor(
            [[restored.pop(f"{name}{ending}", 0.0) for name in self._bins] for ending in ("", " count")],
            device=accelerator.device,
        )
        self._sums: dict[str, Any] = defaultdict(float, restored)

    def add(self, output: StepOutput) -> None:
        """Count the metrics of one update of this process; not every update has all of them."""
        counted = output.applied.bool()
        for name, value in output.metrics.items():
            self._sums[name] += torch.where(counted, value, 0.0)  # it may be infinite where it is not counted
            self._sums[f"{name} count"] += output.applied
        for name, setting in output.settings.items():
            self._sums[name] += setting
            self._sums[f"{name} count"] += 1.0
        bins = output.timesteps * NUM_BINS // self.num_timesteps
        losses = torch.where(counted, output.losses, 0.0)
        self._by_bin.index_add_(1, bins, torch.stack([losses, output.applied.expand_as(losses)]))

    def sums(self) -> dict[str, float]:
        """The sums over all processes; every process calls this together."""
        if not self._sums:
            return {}
        names = sorted(self._sums)  # the same in every process, since each adds the same metrics
        device = self.accelerator.device
        own = [torch.as_tensor(self._sums[name], dtype=torch.float64, device=device) for name in names]
        names += [*self._bins, *(f"{name} count" for name in self._bins)]
        total = self.accelerator.reduce(torch.cat([torch.stack(own), self._by_bin.flatten().double()]), reduction="sum")
        return dict(zip(names, total.tolist(), strict=True))

    def pop(self) -> dict[str, float]:
        """The means over all processes, after which they start anew; every process calls this together."""
        sums = self.sums()
        self._sums.clear()
        self._by_bin.zero_()
        counts = {name: sums[f"{name} count"] for name in sums if not name.endswith(" count")}
        return {name: sums[name] / count for name, count in counts.items() if count}


class LossCurve:
    """The loss and the learning rate of a run for its plot, in a bounded number of points however long it is.

    Every point is the mean of equally many lines of the log: of one until there are too many points, then of two …

    Args:
        max_points: even.
    """

    def __init__(self, max_points: int = 4096) -> None:
        self.max_points, self._lines_per_point = max_points, 1
        self._points: list[dict[str, float]] = []
        self._unfinished: list[dict[str, float]] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a line; one without a finite loss is not shown."""
        values = {name: _finite_or_nan(record.get(name)) for name in ("step", "loss", "learning_rate")}
        if math.isnan(values["step"]) or math.isnan(values["loss"]):
            return
        self._unfinished.append(values)
        if len(self._unfinished) == self._lines_per_point:
            self._points.append(_mean(self._unfinished))
            self._unfinished = []
        if len(self._points) == self.max_points:
            self._points = [_mean(pair) for pair in zip(self._points[::2], self._points[1::2], strict=True)]
            self._lines_per_point *= 2

    def points(self) -> list[dict[str, float]]:
        """The points in order, with step, loss and learning_rate, which is NaN where it is unknown."""
        return [*self._points, _mean(self._unfinished)] if self._unfinished else self._points


def _finite_or_nan(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < LARGEST else math.nan


def _mean(points: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(point[name] for point in points) / len(points) for name in points[0]}


class MetricsFile:
    """A file with one JSON object per line, in the order of the steps.

    Args:
        path: the file.

    Attributes:
        curve: of the lines that are kept or appended.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.curve = path, LossCurve()

    def append(self, record: dict[str, Any]) -> None:
        """Append a line; it is in the file when this returns.

        Raises:
            OSError: if the disk is full; the file is then as it was.
        """
        self.curve.add(record)
        line = (json.dumps(record) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; what is no object with a step, such as a line that a crash cut short, is skipped."""
        return [record for _, record in self._lines() if record is not None]

    def cut_after(self, step: int, pending: Collection[str] = ()) -> None:
        """Remove the lines that a resumed run writes again: those of later steps, and pending ones of this step.

        Lines that cannot be read are removed, too, with one warning. One line is in memory at a time.

        Raises:
            OSError: if the file cannot be read or written; it is then as it was.
        """
        num_unreadable = 0
        with atomic_write(self.path) as temporary, temporary.open("wb") as kept:
            for line, record in self._lines():
                if record is None:
                    num_unreadable += 1
                elif (record["step"], bool(record.keys() & pending)) <= (step, False):
                    self.curve.add(record)
                    kept.write(line.rstrip(b"\n") + b"\n")
        if num_unreadable:
            logger.warning("Lines of %s that cannot be read, and are left out: %d.", self.path, num_unreadable)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
        """Each line, and the object in it if it is one with a step."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                try:
                    record = parse_json(line, self.path.name)
                except UserError:
                    record = None
                has_step = isinstance(record, dict) and type(record.get("step")) is int
                yield line, record if has_step else None


def bin_names(num_timesteps: int) -> list[str]:
    """The names of the loss in each tenth of the timesteps."""
    edges = [-(-bin * num_timesteps // NUM_BINS) for bin in range(NUM_BINS + 1)]
    return [f"loss/t{start}-{stop - 1}" for start, stop in pairwise(edges)]


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    """Processor, GPUs and versions for the model card, but no host name, user name or path."""
    return {
        "processor": _processor(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "num_processes": accelerator.num_processes,
        "mixed_precision": str(accelerator.mixed_precision),
        "system": platform.system(),
        "versions": {
            "python": platform.python_version(),
            "ddpm-hf": __version__,
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def _processor() -> str:
    """The name of the processor, from /proc/cpuinfo where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes(device: torch.device) -> int:
    """Peak memory of this process, on the GPU or, without one, in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)  # a recorded graph holds memory that no tensor owns
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
