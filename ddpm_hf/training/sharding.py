"""Weights, gradients and moments in shards, one of each for every process: accelerate's FSDP2 (Zhao et al. 2023).

Only the trained network and its optimiser are cut. Averages keep a shard of their own between updates, and are put
together when they are looked at; checkpoints hold whole tensors, so a run may go on with or without shards.
"""

import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from torch import Tensor

from ddpm_hf.config import Config
from ddpm_hf.runtime.errors import UserError


def make_plugin(config: Config) -> FullyShardedDataParallelPlugin | None:
    """What accelerate needs to cut the network, as the launcher asks for; None where it does not ask.

    Raises:
        UserError: for other ways of cutting than FSDP2, or what does not work together with it.
    """
    if _asks_for("DEEPSPEED"):
        raise UserError(
            "accelerate's DeepSpeed: given; allowed: the same by PyTorch's own means, with accelerate launch "
            "--config_file configs/accelerate/zero2.yaml (moments and gradients in shards) or fsdp2.yaml (weights too)"
        )
    if not _asks_for("FSDP"):
        return None
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise UserError(f"fsdp_config.fsdp_version of accelerate: given {version}; allowed: 2")
    for option, given, allowed in (
        ("loss_config.adversarial.weight", config.loss.adversarial.weight, "0"),
        ("training.fit_memory", config.training.fit_memory, "false"),
        ("training.channels_last", config.training.channels_last, "false"),
    ):
        if given:
            raise UserError(
                f"{option}: given {given}, with accelerate's FSDP; allowed: {allowed}, or "
                "accelerate launch --config_file configs/accelerate/gpus.yaml"
            )
    from torch.distributed.fsdp import MixedPrecisionPolicy  # not in every build of torch

    # Which blocks are cut, the network knows. Shards stay float32, as all weights: autocast rounds where they are used.
    return FullyShardedDataParallelPlugin(
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(),
        cpu_ram_efficient_loading=False,
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor itself, or put together from its shards; to be called on every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Tensor) -> Tensor:
    """A tensor itself, or the shard of it that this process holds, in the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def cut_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Cut a tensor that every process has whole in the shards of another; itself if that is whole."""
    cut: Any = example
    if not hasattr(cut, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # not in every build of torch

    return distribute_tensor(tensor, cut.device_mesh, cut.placements, src_data_rank=None)


def gather(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Tensors put together from their shards, in the memory of the main process; to be called on every process.

    Returns:
        The tensors by name: themselves, if they are whole; none on other processes, if they are not.
    """
    gathered = {}
    for name, tensor in tensors.items():
        if (complete := whole(tensor)) is tensor:
            gathered[name] = tensor
        elif accelerator.is_main_process:
            gathered[name] = complete.cpu()
    return gathered


def _asks_for(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"
