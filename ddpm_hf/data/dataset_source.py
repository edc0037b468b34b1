"""Images of a folder, of parquet files or of the Hub, through the `datasets` library."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.sources import BUILT_IN, Source
from ddpm_hf.errors import UserError


def open_dataset(config: DatasetConfig) -> Source:
    """Find the images that a configuration names; see `open_source`."""
    dataset = _load_dataset(config)
    image_column, label_column = _columns(config, dataset)
    return _source(dataset, image_column, label_column)


def _load_dataset(config: DatasetConfig) -> datasets.Dataset:
    path = Path(config.name).expanduser()
    kind, options = _builder(config, path)
    try:
        return datasets.load_dataset(kind, split=config.split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if path.exists():
            raise UserError(f"dataset.name: given {config.name!r}: {reason}") from error
        near = difflib.get_close_matches(config.name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"dataset.name: given {config.name!r}; {hint}it is neither built in ({', '.join(BUILT_IN)}), nor a "
            f"folder or parquet file here, nor could it be loaded from the Hub: {reason}"
        ) from error


def _builder(config: DatasetConfig, path: Path) -> tuple[str, dict[str, Any]]:
    """The builder of `datasets` for a name, and its options."""
    if path.is_file() and path.suffix == ".parquet":
        return "parquet", {"data_files": {config.split: str(path)}}
    if path.is_file():
        raise UserError(f"dataset.name: given the file {config.name!r}; allowed: a .parquet file, a folder or a Hub id")
    if path.is_dir():
        if parquet := sorted(map(str, path.rglob("*.parquet"))):
            return "parquet", {"data_files": {config.split: parquet}}
        extensions = Image.registered_extensions()
        if not any(file.suffix.lower() in extensions for file in path.rglob("*")):
            raise UserError(f"dataset.name: the folder {config.name!r} holds no image and no parquet file")
        return "imagefolder", {"data_dir": str(path)}
    if path.is_absolute() or config.name.startswith((".", "~")) or config.name.count("/") > 1:
        raise UserError(f"dataset.name: the folder {config.name!r} does not exist")
    return config.name, {"name": config.config, "revision": config.revision}


def _columns(config: DatasetConfig, dataset: datasets.Dataset) -> tuple[str, str | None]:
    features = dataset.features
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    for field in ("image_column", "label_column"):
        given = getattr(config, field)
        if given is not None and given not in features:
            raise UserError(f"dataset.{field}: given {given!r}; columns of {config.name!r}: {listed}")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    image_column = config.image_column
    if image_column is None:
        if len(images) != 1:
            count = "several" if images else "no"
            raise UserError(
                f"dataset.image_column: {config.name!r} has {count} columns of images; name one of: {listed}"
            )
        image_column = images[0]
    elif image_column not in images:
        raise UserError(f"dataset.image_column: {image_column!r} holds no images; columns of {config.name!r}: {listed}")
    label_column = config.label_column or (labels[0] if len(labels) == 1 else None)
    return image_column, label_column


def _source(dataset: datasets.Dataset, image_column: str, label_column: str | None) -> Source:
    if len(dataset) == 0:
        raise UserError("dataset.split: it holds no images")
    labels = class_names = None
    if label_column is not None:
        labels = list(dataset[label_column])
        feature = dataset.features[label_column]
        class_names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    encoded = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    return Source(_Encoded(encoded, image_column), _Names(encoded, image_column), labels, class_names)


class _Encoded(Sequence):
    """The bytes (or path) of each image of a dataset."""

    def __init__(self, dataset: datasets.Dataset, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        cell = self.dataset[index][self.column]
        return cell["bytes"] if cell["bytes"] is not None else cell["path"]


class _Names(_Encoded):
    """The path of each image of a dataset, or its row."""

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index][self.column]["path"] or f"row {index}"
