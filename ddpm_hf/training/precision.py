"""Which arithmetic the network is trained in."""

from typing import Literal

import torch

from ddpm_hf.runtime.errors import UserError

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
