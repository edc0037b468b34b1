"""What a run was computed on, noted while it runs: a card that is written elsewhere must not guess."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ddpm_hf.runtime.files import write_whole

ENVIRONMENT = "environment.json"
PACKAGES = ("ddpm-hf", "torch", "diffusers", "accelerate")


def record_environment(run: Path, num_processes: int = 1, mixed_precision: str = "no") -> None:
    """Write environment.json into a run folder: processor, GPUs, versions; no host, user or path.

    Args:
        run: the run folder.
        num_processes: that train together.
        mixed_precision: "no", "bf16" or "fp16".
    """
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    noted = {
        "processor": _processor(),
        "gpus": gpus,
        "num_processes": num_processes,
        "mixed_precision": mixed_precision,
        "system": platform.system(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    write_whole(run / ENVIRONMENT, json.dumps(noted, indent=2) + "\n")


def read_environment(run: Path) -> dict[str, Any]:
    """What was noted; empty if nothing was."""
    try:
        noted = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _processor() -> str:
    """The processor's name, from Linux's own table where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
