"""The hardware and versions of a run, recorded while it trains: its model card may be written on another machine."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.runtime.files import write_text_atomic

PACKAGES = ("ddpm-hf", "torch", "diffusers", "accelerate")


def record_environment(run: Path, num_processes: int = 1, mixed_precision: str = "no") -> None:
    """Write environment.json into a run folder: processor, GPUs and versions, but no host name, user name or path.

    Args:
        run: the run folder.
        num_processes: number of processes of the run.
        mixed_precision: "no", "bf16" or "fp16".
    """
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    environment = {
        "processor": _processor(),
        "gpus": gpus,
        "num_processes": num_processes,
        "mixed_precision": mixed_precision,
        "system": platform.system(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    write_text_atomic(RunFolder(run).environment, json.dumps(environment, indent=2) + "\n")


def _processor() -> str:
    """The name of the processor, from /proc/cpuinfo where there is one."""
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
