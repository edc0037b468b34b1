"""Which arithmetic the network is trained in, and on how many threads."""

import os
from typing import Literal

import torch

from ddpm_hf.errors import UserError

Precision = Literal["no", "bf16", "fp16"]


def choose_precision(asked: Literal["auto", "no", "bf16", "fp16"], device: torch.device) -> Precision:
    """Settle `mixed_precision` for a device: `auto` is bf16 where the processor multiplies it natively.

    Raises:
        UserError: if the device cannot do what is asked.
    """
    if asked == "fp16" and device.type == "cpu":
        raise UserError("training.mixed_precision: given 'fp16', which needs a GPU; allowed here: auto, no, bf16")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    return "no"


def use_all_cores() -> None:
    """Share the cores between the processes of this machine, where a launcher gave each process a single thread.

    `accelerate launch` and torchrun set OMP_NUM_THREADS to 1 unless it is set, which leaves all other cores idle. A
    number of threads above 1 is left alone.
    """
    is_launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if is_launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
