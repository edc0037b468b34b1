"""What a run will take of memory and disk, counted before its first step."""

import os

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm_hf.config import Config
from ddpm_hf.data import ImageSet


def memory_bytes(network: nn.Module, config: Config, images: ImageSet, accelerator: Accelerator) -> int:
    """Bytes of a process: weights, gradients, Adam's moments, averages, activations of a part, its copy of the data."""
    share = config.training.batch_size // accelerator.num_processes // config.training.gradient_accumulation_steps
    averages = 1 + len(config.training.ema_extra_decays)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    fixed = (4 + averages) * weights
    if accelerator.is_fsdp2:  # averages are besides put together to be looked at
        fixed = fixed // accelerator.num_processes + averages * weights
    copied = images.images.nbytes if config.dataset.in_memory else 0  # else mapped from a file, for all processes
    return fixed + share * _activations(network, config) + copied


def _activations(network: nn.Module, config: Config) -> int:
    """Bytes that one image's forward pass keeps for the backward pass, counted without computing anything."""
    size, channels = config.model.image_size, config.model.image_channels
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    labels = None if config.model.num_classes is None else torch.zeros(2, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        image, timestep = torch.empty(2, channels, size, size, device="meta"), torch.zeros(2, device="meta")
        output = network.train()(image, timestep, labels).sample
        del output
    return sum(kept.values()) // 2


def disk_bytes(num_parameters: int, config: Config) -> int:
    """Bytes of the kept checkpoints (weights, their averages, two moments), one being written, and the pipeline."""
    training = config.training
    averages = 1 + len(training.ema_extra_decays)
    kept = training.checkpoints_to_keep + 1 + (training.keep_best_by is not None)
    return 4 * num_parameters * ((3 + averages) * kept + averages)


def device_bytes(device: torch.device) -> int:
    """The memory of a device: of the GPU or, without one, of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gigabytes(num_bytes: int) -> str:
    """For a person to read."""
    return f"{num_bytes / 1e9:,.2f} GB"
