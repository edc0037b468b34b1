"""What a resumed run needs beside the pipeline, as safetensors and JSON: nothing in it can run code."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_hf.losses import TimestepSampler
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training.sharding import cut_like

STATE = "training_state"
"""The folder of a checkpoint that holds what the pipeline beside it does not need."""

NETWORK = "network.safetensors"
OPTIMIZER = "optimizer.safetensors"
SAMPLER = "timestep_sampler.safetensors"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: updates done.
        seconds: spent on them.
        sums: what the next line of metrics.jsonl has gathered so far.
        scaler: state of fp16's loss scaling; empty otherwise.
        num_images: of the training data, whose order depends on it.
        num_parts: into which each process cuts its share of the batch.
        num_processes: of the run.
        num_skipped: updates left out because something was not finite.
        owed: previews and measurements of this step that a signal cut off.
        score: the figure that the best checkpoint has least of, at this step; None where it was not measured.
        config: of the run, as plain values.
    """

    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    num_parts: int = 1
    num_processes: int = 1
    num_skipped: int = 0
    owed: list[str] = field(default_factory=list)
    score: float | None = None
    config: dict[str, Any] = field(default_factory=dict)


def save_state(
    folder: Path,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    timestep_sampler: TimestepSampler,
    progress: Progress,
) -> None:
    """Write the training state into a folder that is made for it.

    Args:
        folder: does not exist yet.
        weights: the trained ones by name, not their average.
        moments: of the optimiser, as `moments_of` names them.
        timestep_sampler: what it has learnt of the losses.
        progress: how far the run is.
    """
    folder.mkdir(parents=True)
    save_tensors(weights, folder / NETWORK)
    save_tensors(moments, folder / OPTIMIZER)
    save_tensors(timestep_sampler.state_dict(), folder / SAMPLER)
    (folder / PROGRESS).write_text(json.dumps(asdict(progress), indent=2))


def load_progress(folder: Path) -> Progress:
    """Read how far the run was.

    Raises:
        UserError: if the folder holds no training state, or one of another version.
    """
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder.parent} is no checkpoint that this version can go on from: {error}") from error


def find_best(checkpoints: list[Path]) -> Path | None:
    """The checkpoint with the smallest score, the newest of equals; None where none was measured."""
    scored = [(score, checkpoint) for checkpoint in checkpoints if (score := _score(checkpoint)) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else None


def _score(checkpoint: Path) -> float | None:
    try:
        return load_progress(checkpoint / STATE).score
    except UserError:  # damaged, and so not the best
        return None


def load_state(folder: Path, network: nn.Module, timestep_sampler: TimestepSampler) -> None:
    """Put the saved state, but for the optimiser's, into objects made from the same configuration."""
    network.load_state_dict(load_file(folder / NETWORK))
    timestep_sampler.load_state_dict(load_file(folder / SAMPLER))


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
