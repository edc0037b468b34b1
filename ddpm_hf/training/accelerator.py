"""accelerate's set-up: processes, precision, trackers, and weights in shards by FSDP2 (Zhao et al. 2023).

Only the trained network and its optimizer are sharded. An average keeps its shards between updates, and is gathered
before it is used. Checkpoints hold full tensors, so a run may be resumed with or without shards.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.tracking import get_available_trackers
from torch import Tensor

from ddpm_hf.config import Config
from ddpm_hf.runtime.cli import is_main_process
from ddpm_hf.runtime.distributed import init_distributed
from ddpm_hf.runtime.errors import UserError

Precision = Literal["no", "bf16", "fp16"]


KEYS = {
    "clearml": (
        ("CLEARML_API_ACCESS_KEY", "CLEARML_OFFLINE_MODE", "CLEARML_CONFIG_FILE"),
        ("~/clearml.conf",),
        "clearml-init",
    ),
    "comet_ml": (
        ("COMET_API_KEY", "COMET_START_ONLINE", "COMET_CONFIG"),
        ("~/.comet.config", ".comet.config"),
        "comet login",
    ),
    "swanlab": (("SWANLAB_API_KEY", "SWANLAB_MODE"), ("~/.swanlab/.netrc",), "swanlab login"),
}
"""Of trackers that send the log to an account: variables of the environment with its key or for work without one, files
with its key, and the command that writes one. Where a tracker finds neither, it fails or asks when the run begins."""


def make_accelerator(config: Config) -> Accelerator:
    """Make the accelerator of a run, as the launcher and the configuration say.

    Raises:
        UserError: if the tracker, the precision or the way of sharding is not available.
    """
    plugin, tracker = _fsdp_plugin(config), config.logging.tracker
    _check_tracker(tracker)
    state = init_distributed(timedelta(minutes=config.training.timeout_minutes))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # see `deterministic_kernels`; read by cuBLAS
    accelerator = Accelerator(
        cpu=state.device.type == "cpu",
        fsdp_plugin=plugin,
        mixed_precision=choose_precision(config.training.mixed_precision, state.device),
        log_with=None if tracker == "none" else tracker,
        project_dir=None if tracker == "none" else f"{config.output_dir}/logs",
    )
    if plugin is not None and not accelerator.is_fsdp2:
        raise UserError(
            f"accelerate's FSDP: given, with {accelerator.num_processes} processes on {accelerator.device.type}; "
            "allowed on several GPUs only: see configs/accelerate/ for other launches"
        )
    return accelerator


@contextmanager
def deterministic_kernels(device: torch.device, strict: bool = True) -> Iterator[None]:
    """Use kernels on a GPU whose results do not differ between runs, so that resuming is exact there, too.

    Args:
        device: of the work within; CPUs have no others.
        strict: raise for an operator that has no such kernel; otherwise warn. Attention has them only if strict.
    """
    if device.type != "cuda":
        yield
        return
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it takes time
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def choose_precision(requested: Literal["auto", "no", "bf16", "fp16"], device: torch.device) -> Precision:
    """Choose the mixed precision for a device; `auto` is bf16 where the processor multiplies it natively.

    Raises:
        UserError: if the device does not support what is requested.
    """
    if requested == "fp16" and device.type == "cpu":
        raise UserError("training.mixed_precision: given 'fp16', which needs a GPU; allowed here: auto, no, bf16")
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    return "no"


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor itself, or gathered from its shards; every process calls this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """A tensor itself, or the shard of it that this process holds, in the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Shard a full tensor as another one is; the tensor itself if that one is not sharded."""
    sharded: Any = example
    if not hasattr(sharded, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # not in every build of torch

    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements, src_data_rank=None)


def gather_shards(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Gather tensors from their shards in the main process; every process calls this together.

    Returns:
        The tensors by name, those that were sharded in CPU memory and in the main process only.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if full is tensor:
            gathered[name] = tensor
        elif accelerator.is_main_process:
            gathered[name] = full.cpu()
    return gathered


def _check_tracker(name: str) -> None:
    """Raise if a tracker is not installed, which accelerate would leave out silently, or lacks what it needs."""
    available = [str(tracker) for tracker in get_available_trackers()]
    if name not in ("none", *available):
        raise UserError(
            f"logging.tracker: given {name!r}, which is not installed; allowed here: "
            f"{', '.join(['none', *sorted(available)])}; or: pip install {name}"
        )
    if name in KEYS and is_main_process():
        variables, files, command = KEYS[name]
        if not any(map(os.environ.get, variables)) and not any(Path(file).expanduser().is_file() for file in files):
            raise UserError(
                f"logging.tracker: given {name!r}, which has no key here; give it one by: {command}, or in the "
                f"environment as {variables[0]} ({variables[1]} is for work without one)"
            )
    if name == "wandb" and is_main_process():
        import wandb  # an optional package

        settings = wandb.setup().settings  # from the environment, wandb's files and .netrc
        if settings.mode in ("online", "shared") and settings.api_key is None and not wandb.login(prompt=False):
            raise UserError(
                "logging.tracker: given 'wandb', which has no API key here; give it one by: wandb login, or in the "
                "environment as WANDB_API_KEY; or keep the log on this machine with WANDB_MODE=offline in it"
            )


def _fsdp_plugin(config: Config) -> FullyShardedDataParallelPlugin | None:
    """The plugin that shards the network, if the launcher requests it.

    Raises:
        UserError: for other ways of sharding than FSDP2, or options that do not work together with it.
    """
    if _is_requested("DEEPSPEED"):
        raise UserError(
            "accelerate's DeepSpeed: given; allowed: the same in PyTorch, with accelerate launch --config_file "
            "configs/accelerate/zero2.yaml (optimizer state and gradients in shards) or fsdp2.yaml (weights too)"
        )
    if not _is_requested("FSDP"):
        return None
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise UserError(f"fsdp_config.fsdp_version of accelerate: given {version}; allowed: 2")
    for option, given, allowed in (
        ("loss_config.adversarial.weight", config.loss.adversarial.weight, "0"),
        ("training.fit_memory", config.training.fit_memory, "false"),
        ("training.channels_last", config.training.channels_last is True, "auto, false"),
    ):
        if given:
            raise UserError(
                f"{option}: given {given}, with accelerate's FSDP; allowed: {allowed}, or "
                "accelerate launch --config_file configs/accelerate/gpus.yaml"
            )
    from torch.distributed.fsdp import MixedPrecisionPolicy  # not in every build of torch

    # The network names its blocks to shard. Shards stay float32, as all weights; autocast rounds where they are used.
    return FullyShardedDataParallelPlugin(
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        cpu_ram_efficient_loading=False,
    )


def _is_requested(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"
