"""Whether the network is compiled by torch.compile, and how."""

import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_hf.config import Config
from ddpm_hf.models import DDPMUNet, build_network
from ddpm_hf.runtime.files import cache_folder

# Measured on an H200 with the CIFAR-10 network at batch 128 in bfloat16: benchmarks/results/gpu_graphs.md
WARM_UP_SECONDS = 97
CAPTURED_FLOPS = 114e12  # per second of a captured update
COMPILED_FLOPS = 187e12  # per second of a captured and compiled one


def seconds_saved(config: Config, num_steps: int, num_processes: int) -> float:
    """Estimate the seconds that compiling saves over a whole run on a GPU, its warm-up not counted.

    Args:
        config: of the run.
        num_steps: updates of the whole run. That of a resumed run counts all of them, so that it decides as before.
        num_processes: which share each batch.
    """
    model = config.model
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(model)
        labels = None if model.num_classes is None else torch.zeros(1, dtype=torch.long)
        image = torch.empty(1, model.image_channels, *model.sides)
        network(image, torch.zeros(1), labels).sample.sum().backward()
    flops = counter.get_total_flops() * config.training.batch_size / num_processes * num_steps
    return flops / CAPTURED_FLOPS - flops / COMPILED_FLOPS


def is_compiled(config: Config, accelerator: Accelerator, num_steps: int) -> bool:
    """Whether a run is compiled: as it is configured, and with `auto` on a GPU where that wins back the warm-up.

    Args:
        config: of the run.
        accelerator: the processes and devices.
        num_steps: updates of the whole run.
    """
    if config.training.compile != "auto":
        return config.training.compile
    is_measured = accelerator.device.type == "cuda" and accelerator.scaler is None and not accelerator.is_fsdp2
    return is_measured and seconds_saved(config, num_steps, accelerator.num_processes) > WARM_UP_SECONDS


def compile_network(network: DDPMUNet, device: torch.device) -> None:
    """Compile a network in place, at its first pass; on a CPU its blocks alone, which takes far less time.

    Compiled code is kept in the user's cache, where resumed runs and others of the same network find it. It is not
    kept in the run folder: loading it runs code, and a run folder may come from somebody else.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    if device.type != "cuda":
        network.compile_repeated_blocks(dynamic=True)
        return
    import torch._inductor.config as inductor  # takes a second, and is used only here

    if hasattr(inductor, "deterministic"):  # since torch 2.10: no kernel is chosen by its time
        inductor.deterministic = True
    network.compile(dynamic=False)


def uncompile_network(network: nn.Module) -> None:
    """Run a compiled network eagerly from now on; torch has no method for that."""
    for module in network.modules():
        module._compiled_call_impl = None
