"""What is known of a trained model, gathered from its run folder; the same folder always gives the same facts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ddpm_hf.checkpoints.environment import read_environment
from ddpm_hf.checkpoints.format import PROGRESS, SCHEDULER_CONFIG, STATE, UNET, UNET_CONFIG
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.checkpoints.safetensors_header import check_weights
from ddpm_hf.hub.results import Result, read_results
from ddpm_hf.runtime.sanitize import portable, portable_config

CONFIG, METRICS = "training_config.yaml", "metrics.json"
"""The names of the configuration and the figures in a repository."""


@dataclass(frozen=True)
class Facts:
    """What a model card tells.

    Attributes:
        repo_id: where the model is pushed to.
        revision: branch there.
        config: of the run, portable; empty if unknown.
        network: the network's own config.
        scheduler: the scheduler's own config.
        num_parameters: of the network.
        step: updates done, if known.
        seconds: spent on them, if known.
        environment: what it was computed on.
        results: of its evaluation.
        files: names of what goes along.
        license: in the Hub's spelling; None if nobody said.
        is_finished: False for the state of a run that goes on.
    """

    repo_id: str
    revision: str
    config: dict[str, Any]
    network: dict[str, Any]
    scheduler: dict[str, Any]
    num_parameters: int
    step: int | None
    seconds: float | None
    environment: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    files: frozenset[str] = frozenset()
    license: str | None = None
    is_finished: bool = True

    @property
    def name(self) -> str:
        """The model's name."""
        return self.repo_id.split("/")[-1]

    @property
    def dataset(self) -> str:
        """What it was trained on."""
        return (self.config.get("dataset") or {}).get("name") or "unknown data"

    @property
    def dataset_on_hub(self) -> str | None:
        """The same, if it is a dataset of the Hub; those have a revision in the run's configuration."""
        return self.dataset if (self.config.get("dataset") or {}).get("revision") else None

    @property
    def num_classes(self) -> int | None:
        """Of a class-conditional model, without the one that stands for no class."""
        embedded = self.network.get("num_class_embeds")
        return None if embedded is None else (self.config.get("model_config") or {}).get("num_classes") or embedded

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return int(self.scheduler.get("num_train_timesteps", 1000))


def gather_facts(
    run: Path, pipeline: Path, repo_id: str, revision: str, files: Iterable[str], license: str | None
) -> Facts:
    """Read everything that a card tells of a run.

    Args:
        run: the run folder.
        pipeline: the saved pipeline: the run folder itself, or one of its checkpoints.
        repo_id: where it goes.
        revision: the branch.
        files: names of what goes along; figures are told only if metrics.json is among them.
        license: in the Hub's spelling.
    """
    weights = sorted((pipeline / UNET).glob("*.safetensors"))
    shapes = [tensor["shape"] for file in weights for tensor in check_weights(file).values()]
    is_checkpoint, names = pipeline != run, frozenset(files)
    last = _read_progress(pipeline) if is_checkpoint else _read_last_line(RunFolder(run).metrics)
    return Facts(
        repo_id=repo_id,
        revision=revision,
        config=read_config(run),
        network=_read_json(pipeline / UNET_CONFIG),
        scheduler=_read_json(pipeline / SCHEDULER_CONFIG),
        num_parameters=sum(_product(shape) for shape in shapes),
        step=last.get("step"),
        seconds=last.get("seconds"),
        environment=read_environment(run),
        results=read_results(portable(_read_json(run / METRICS))) if METRICS in names else [],
        files=names,
        license=license,
        is_finished=not is_checkpoint,
    )


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run as it is shared; empty if there is none."""
    try:
        config = yaml.safe_load(RunFolder(run).config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return portable_config(config) if isinstance(config, dict) else {}


def _read_progress(checkpoint: Path) -> dict[str, Any]:
    return _read_json(checkpoint / STATE / PROGRESS)


def _read_last_line(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
