"""The images of an evaluation: those that a model was trained on, the reference, and those that are held out."""

from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from ddpm_hf.config import Config, DatasetConfig
from ddpm_hf.data import ImageSet, load_image_set, load_image_sets
from ddpm_hf.runtime.errors import UserError


def held_out_split(config: Config) -> str:
    """The split of the held-out images: the benchmark's, or the dataset's; that of training, for want of others."""
    dataset = config.dataset
    return config.benchmark.held_out_split or dataset.validation_split or _held_out_part(dataset) or dataset.split


def load_splits(config: Config, model: str | Path) -> dict[str, ImageSet]:
    """Every set of images that is used, once each, by the name of its split.

    What `dataset.validation_fraction` held out of a run's training is held out here too.

    Args:
        config: whose dataset and benchmark sections name them.
        model: whose own run, if it has one, has the seed that the held-out images were drawn by.

    Raises:
        UserError: naming every split that cannot be had.
    """
    benchmark, dataset = config.benchmark, config.dataset
    progress = PartialState().is_main_process
    problems: list[str] = []
    splits: dict[str, ImageSet] = {}
    if benchmark.held_out_split:
        dataset = dataset.model_copy(update={"validation_split": None})
    try:
        seed = int((run_config(model) or {}).get("seed", config.seed))
        training, held_out = load_image_sets(dataset, config.model, seed, progress)
        splits[dataset.split] = training
        if held_out is not None:
            splits[dataset.validation_split or _held_out_part(dataset)] = held_out
    except UserError as error:
        problems.append(str(error))
    whole = dataset.model_copy(update={"validation_split": None, "validation_fraction": 0.0})
    for field in ("reference_split", "held_out_split"):
        split = getattr(benchmark, field)
        if split is None or split in splits or split == dataset.split:
            continue
        try:
            splits[split] = load_image_set(whole.model_copy(update={"split": split}), config.model, progress)
        except UserError as error:
            problems.append(str(error).replace("dataset.split", f"benchmark.{field}", 1))
    if problems:
        raise UserError("; ".join(problems))
    return splits


def run_config(model: str | Path) -> dict[str, Any] | None:
    """The configuration of the run that a model's folder belongs to: a run, or one of its checkpoints; None without."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    for file in (folder / "config.yaml", folder.parent.parent / "config.yaml"):
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _held_out_part(dataset: DatasetConfig) -> str:
    """How the images that a fraction holds out are called; empty if there are none."""
    fraction = dataset.validation_fraction
    return f"{dataset.split}, {fraction:.4g} of it held out" if fraction else ""
