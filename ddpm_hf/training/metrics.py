"""The figures of a run: gathered over updates and processes, one line of metrics.jsonl at a time."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Meter:
    """Means since the last line, over all updates and processes; nothing waits for the device until they are read.

    Args:
        accelerator: knows the other processes.
        sums: what a checkpoint kept of an unfinished line.
    """

    def __init__(self, accelerator: Accelerator, sums: dict[str, float] | None = None) -> None:
        self.accelerator = accelerator
        # a sum over the processes, so one of them carries it on
        self._sums: dict[str, Any] = defaultdict(float, sums or {} if accelerator.is_main_process else {})

    def add(self, **values: Tensor | float) -> None:
        """Count the figures of one update of this process; not every update has all of them."""
        for name, value in values.items():
            self._sums[name] += value
            self._sums[f"{name} count"] += 1.0

    def sums(self) -> dict[str, float]:
        """The sums over all processes; to be called on each of them."""
        names = sorted(self._sums)  # the same on every process, since each adds the same figures
        device = self.accelerator.device
        own = [torch.as_tensor(self._sums[name], dtype=torch.float64, device=device) for name in names]
        if not own:
            return {}
        total = self.accelerator.reduce(torch.stack(own), reduction="sum")
        return dict(zip(names, total.tolist(), strict=True))

    def means(self) -> dict[str, float]:
        """The means over all processes, and start again; to be called on each of them."""
        sums = self.sums()
        self._sums.clear()
        return {name: value / sums[f"{name} count"] for name, value in sums.items() if not name.endswith(" count")}


class MetricsFile:
    """A file with one JSON object per line, in the order of the steps.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Write a line; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

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

    def cut_after(self, step: int) -> None:
        """Drop the lines of later steps, which a resumed run will write again."""
        kept = [record for record in self.read() if record["step"] <= step]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        aside.replace(self.path)
