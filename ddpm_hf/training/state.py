"""What a resumed run needs beside the pipeline, as safetensors and JSON: nothing in it can run code."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_hf.checkpoints.format import NETWORK, OPTIMIZER, STATE, TIMESTEP_SAMPLER, Progress
from ddpm_hf.losses import TimestepSampler
from ddpm_hf.training.sharding import cut_like


def save_state(
    checkpoint: Path,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    timestep_sampler: TimestepSampler,
    progress: Progress,
) -> None:
    """Write the training state into a checkpoint.

    Args:
        checkpoint: folder without a training state.
        weights: the trained ones by name, not their average.
        moments: of the optimiser, as `moments_of` names them.
        timestep_sampler: what it has learnt of the losses.
        progress: how far the run is.
    """
    folder = checkpoint / STATE
    folder.mkdir(parents=True)
    save_tensors(weights, folder / NETWORK)
    save_tensors(moments, folder / OPTIMIZER)
    save_tensors(timestep_sampler.state_dict(), folder / TIMESTEP_SAMPLER)
    progress.write(checkpoint)


def load_state(checkpoint: Path, network: nn.Module, timestep_sampler: TimestepSampler) -> None:
    """Put the saved state, but for the optimiser's, into objects made from the same configuration."""
    network.load_state_dict(load_file(checkpoint / STATE / NETWORK))
    timestep_sampler.load_state_dict(load_file(checkpoint / STATE / TIMESTEP_SAMPLER))


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments, by the number of the parameter and their name; its settings are the configuration's."""
    per_parameter = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, of in per_parameter.items() for name, value in of.items()}


def load_moments(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Put saved moments into an optimiser of the same parameters, in shards where these are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        is_moment = value.shape == parameter.shape  # and no count of steps
        state.setdefault(int(index), {})[name] = cut_like(value.to(parameter.device), parameter) if is_moment else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors, of any device and memory format, as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
