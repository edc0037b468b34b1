"""How near a piece of work comes to what the chip can do: rates of the chip, measured, and the work, counted."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

REPETITIONS = 10


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def matrix_rate(device: str) -> float:
    """Multiplications and additions per second of large bf16 matrix products, measured here and now."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: a @ b, device)


def memory_rate(device: str) -> float:
    """Bytes per second that a copy of memory too large for any cache reads and writes, measured here and now."""
    source = torch.zeros(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def work_of(call: Callable[[], object]) -> tuple[int, int]:
    """Count what a call does, backward passes in it included.

    Returns:
        Multiplications and additions of its matrix products and convolutions; and bytes, as if every operator read all
        that it is given from memory once and wrote all that it returns.
    """
    traffic = _Traffic()
    with FlopCounterMode(display=False) as arithmetic, traffic:
        call()
    return arithmetic.get_total_flops(), traffic.bytes


class _Traffic(TorchDispatchMode):
    """Adds up the sizes of what operators take and give; a view moves nothing."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.nbytes for tensor in tensors)
        return result


def _fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of several calls."""
    best = float("inf")
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
