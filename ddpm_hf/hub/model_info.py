"""What a model card says of a model, read from its run folder; the same folder always gives the same."""

import logging
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ddpm_hf.checkpoints.format import SCHEDULER_CONFIG, UNET, UNET_CONFIG, Progress, count_parameters
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.evaluation.report import Report
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.sanitize import sanitize, sanitize_config
from ddpm_hf.runtime.values import as_type, find_mapping, parse_json

logger = logging.getLogger(__name__)

MAX_LINE = 2**16
"""Longest line of metrics.jsonl, in bytes."""


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model.

    Attributes:
        repo_id: repository that it is pushed to.
        revision: branch there.
        config: of the run, sanitized; empty if unknown.
        network: configuration of the network.
        scheduler: configuration of the scheduler.
        num_parameters: of the network.
        step: updates done; None if unknown.
        seconds: time spent on them; None if unknown.
        environment: hardware and versions.
        report: of its evaluation; None if it was not evaluated.
        files: names of the files that are pushed.
        license: in the Hub's spelling; None if unknown.
        is_finished: False for a checkpoint of a run that goes on.
    """

    repo_id: str
    revision: str
    config: dict[str, Any]
    network: dict[str, Any]
    scheduler: dict[str, Any]
    num_parameters: int
    step: int | None
    seconds: float | None
    environment: dict[str, Any]
    report: Report | None
    files: frozenset[str]
    license: str | None
    is_finished: bool

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.repo_id.split("/")[-1]

    @property
    def dataset(self) -> str:
        """The name of the training data."""
        return (self.config.get("dataset") or {}).get("name") or "unknown data"

    @property
    def dataset_revision(self) -> str | None:
        """The commit of the training data if it is a dataset of the Hub."""
        return (self.config.get("dataset") or {}).get("revision")

    @property
    def base_model(self) -> str | None:
        """The id of the model on the Hub that it was fine-tuned from."""
        name = (self.config.get("model_config") or {}).get("pretrained") or ""
        match = re.fullmatch(r"(?:hub:)?([^/@]+/[^/@]+)@[0-9a-f]{40}", name)  # a folder is recorded without a commit
        return match and match[1]

    @property
    def num_classes(self) -> int | None:
        """The number of classes of a class-conditional model, without the one for no class."""
        embedded = self.network.get("num_class_embeds")
        return None if embedded is None else (self.config.get("model_config") or {}).get("num_classes") or embedded

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return int(self.scheduler.get("num_train_timesteps", 1000))

    @property
    def image_size(self) -> str:
        """Height and width of the images."""
        size = self.network.get("sample_size")
        height, width = (size, size) if isinstance(size, int) else size or ("?", "?")
        return f"{height}x{width}"


def gather_model_info(
    run: Path,
    pipeline: Path,
    repo_id: str,
    files: Collection[str],
    revision: str = "main",
    license: str | None = None,
) -> ModelInfo:
    """Read everything that a card says of a model.

    Args:
        run: the run folder.
        pipeline: the saved pipeline: the run folder itself, or one of its checkpoints.
        repo_id: repository that the model is pushed to.
        files: names of the files that are pushed; the report is read only if metrics.json is one of them.
        revision: branch there.
        license: in the Hub's spelling.

    Raises:
        UserError: if the checkpoint, or the weights, cannot be read.
    """
    folder, is_finished = RunFolder(run), pipeline == run
    position = _last_line(folder.metrics) if is_finished else asdict(Progress.read(pipeline))
    return ModelInfo(
        repo_id=repo_id,
        revision=revision,
        config=read_config(run),
        network=sanitize(_read(pipeline / UNET_CONFIG)),
        scheduler=sanitize(_read(pipeline / SCHEDULER_CONFIG)),
        num_parameters=count_parameters(pipeline / UNET),
        step=position.get("step"),
        seconds=position.get("seconds"),
        environment=_read(folder.environment),
        report=_read_report(folder.report) if folder.report.name in files else None,
        files=frozenset(files),
        license=license,
        is_finished=is_finished,
    )


def read_config(run: Path) -> dict[str, Any]:
    """The sanitized configuration of a run; empty if there is none."""
    config = find_mapping(RunFolder(run).config)
    return sanitize_config(config) if config else {}


def _read(file: Path) -> dict[str, Any]:
    return find_mapping(file, partial(parse_json, name=file.name))


def _last_line(file: Path) -> dict[str, Any]:
    """The last line of a log of JSON, however long the log is; empty if it cannot be read."""
    try:
        with file.open("rb") as log:
            log.seek(max(file.stat().st_size - MAX_LINE, 0))
            return as_type(dict[str, Any], parse_json(log.read().rstrip().rpartition(b"\n")[2], file.name), file.name)
    except (OSError, UserError):
        return {}


def _read_report(file: Path) -> Report | None:
    try:
        return Report.read(file)
    except UserError as error:
        logger.warning("the model card will name no results: %s", error)
        return None
