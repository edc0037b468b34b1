"""The figures of a run: gathered over updates and processes, one line of metrics.jsonl at a time."""

import errno
import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float32, Int64
from torch import Tensor

from ddpm_hf.runtime.files import write_text_atomic

NUM_BINS = 10
"""Equal parts of the timesteps, whose losses differ by orders of magnitude."""


@dataclass(frozen=True)
class Update:
    """What one process tells of an update.

    Attributes:
        figures: by name, each of this process's images.
        timesteps: of these images; None if the update was left out.
        losses: of these images.
    """

    figures: Mapping[str, Tensor | float]
    timesteps: Int64[Tensor, " batch"] | None = None
    losses: Float32[Tensor, " batch"] | None = None


class Meter:
    """Means since the last line, over all updates and processes; nothing waits for the device until they are read.

    Args:
        accelerator: knows the other processes.
        num_timesteps: T, whose tenths the loss is also told of.
        sums: what a checkpoint kept of an unfinished line.
    """

    def __init__(self, accelerator: Accelerator, num_timesteps: int, sums: dict[str, float] | None = None) -> None:
        self.accelerator = accelerator
        self.num_timesteps = num_timesteps
        # a sum over the processes, so one of them carries it on; the others know its names
        carried = {name: value if accelerator.is_main_process else 0.0 for name, value in (sums or {}).items()}
        names = bin_names(num_timesteps)
        self._tenths = names  # of the losses by timestep
        # of each tenth the total of its losses and their count: two rows, so that an update adds to all of them at once
        self._by_tenth = torch.tensor(
            [[carried.pop(f"{name}{ending}", 0.0) for name in names] for ending in ("", " count")],
            device=accelerator.device,
        )
        self._sums: dict[str, Any] = defaultdict(float, carried)

    def add(self, update: Update) -> None:
        """Count the figures of one update of this process; not every update has all of them."""
        for name, value in update.figures.items():
            self._sums[name] += value
            self._sums[f"{name} count"] += 1.0
        if update.timesteps is not None and update.losses is not None:
            tenth = update.timesteps * NUM_BINS // self.num_timesteps
            self._by_tenth.index_add_(1, tenth, torch.stack([update.losses, torch.ones_like(update.losses)]))

    def sums(self) -> dict[str, float]:
        """The sums over all processes; to be called on each of them."""
        if not self._sums:
            return {}
        names = sorted(self._sums)  # the same on every process, since each adds the same figures
        device = self.accelerator.device
        own = [torch.as_tensor(self._sums[name], dtype=torch.float64, device=device) for name in names]
        names += [*self._tenths, *(f"{name} count" for name in self._tenths)]
        total = self.accelerator.reduce(
            torch.cat([torch.stack(own), self._by_tenth.flatten().double()]), reduction="sum"
        )
        return dict(zip(names, total.tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """The means over all processes, and start again; to be called on each of them."""
        sums = self.sums()
        self._sums.clear()
        self._by_tenth.zero_()
        counts = {name: sums[f"{name} count"] for name in sums if not name.endswith(" count")}
        return {name: sums[name] / count for name, count in counts.items() if count}


def bin_names(num_timesteps: int) -> list[str]:
    """What the loss in each tenth of the timesteps is called."""
    edges = [-(-bin * num_timesteps // NUM_BINS) for bin in range(NUM_BINS + 1)]
    return [f"loss/t{start}-{stop - 1}" for start, stop in pairwise(edges)]


class MetricsFile:
    """A file with one JSON object per line, in the order of the steps.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Write a line; it is in the file when this returns.

        Raises:
            OSError: if the disk has no room for it; the file is then as it was.
        """
        line = (json.dumps(record) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            if file.write(line) < len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a crash cut short is left out."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def cut_after(self, step: int, owed: Collection[str] = ()) -> None:
        """Drop the lines that a resumed run will write again: those of later steps, and what is owed of this one."""
        kept = [record for record in self.read() if (record["step"], bool(record.keys() & owed)) <= (step, False)]
        write_text_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept))
