"""Images of folders, files and the Hub, through the `datasets` library."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import datasets

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.local_files import LocalData, find_local
from ddpm_hf.data.sources import BUILT_IN, Example, Source
from ddpm_hf.runtime.errors import UserError

Data: TypeAlias = datasets.Dataset | datasets.IterableDataset
Result = TypeVar("Result")

ROWS = 16
"""Rows read at a time; their encoded images are in memory together."""


def open_dataset(config: DatasetConfig) -> Source:
    """Find the images that a configuration names; see `open_source`."""
    local = find_local(config.name)
    if local is not None:
        for field in ("config", "revision"):
            if (given := getattr(config, field)) is not None:
                raise UserError(
                    f"dataset.{field}: given {given!r}; allowed: nothing, since {config.name!r} lies on this machine"
                )
    if local is not None and local.kind == "saved":
        data: Data = _saved(config, local)
        return _source(config, data, len(data), local.fingerprint())
    builder = _builder(config, local)
    data, num_rows = _split(config, builder)
    # an id of the Hub has its commit as the builder's hash
    fingerprint = local.fingerprint() if local else f"{config.name}@{builder.hash}"
    return _source(config, data, num_rows, fingerprint)


def _builder(config: DatasetConfig, local: LocalData | None) -> datasets.DatasetBuilder:
    """The reader of a dataset, which knows its columns and splits."""
    if local is not None:
        return _attempt(config, lambda: datasets.load_dataset_builder(local.kind, data_files=local.splits()))
    return _attempt(config, lambda: datasets.load_dataset_builder(config.name, config.config, revision=config.revision))


def _split(config: DatasetConfig, builder: datasets.DatasetBuilder) -> tuple[Data, int | None]:
    """The rows of a split, and how many there are if that is known."""
    if not config.streaming:
        _attempt(config, builder.download_and_prepare)
        dataset = _attempt(config, lambda: builder.as_dataset(split=config.split))
        return dataset, len(dataset)
    if hasattr(builder.config, "decode_num_threads"):  # a builder of images would decode them itself, and stop at the
        builder.config.decode_num_threads = 0  # first that is damaged
    stream = _attempt(config, lambda: builder.as_streaming_dataset(split=config.split))
    known = (builder.info.splits or {}).get(config.split)
    return stream, known.num_examples or None if known else None


def _saved(config: DatasetConfig, local: LocalData) -> datasets.Dataset:
    """The rows of a split that `save_to_disk` wrote."""
    saved = _attempt(config, lambda: datasets.load_from_disk(str(local.path)))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    sizes = {name: len(split) for name, split in splits.items()}

    def rows() -> datasets.Dataset:
        parts = datasets.ReadInstruction.from_spec(config.split).to_absolute(sizes)
        return datasets.concatenate_datasets(
            [splits[part.splitname].select(range(part.from_ or 0, part.to or sizes[part.splitname])) for part in parts]
        )

    return _attempt(config, rows)


def _attempt(config: DatasetConfig, call: Callable[[], Result]) -> Result:
    """Do something with `datasets`, whose errors name what is possible; say which field they are about."""
    try:
        return call()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(_explain(config, error)) from error


def _explain(config: DatasetConfig, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0]
    if "split" in text.lower() or text.startswith("Instruction"):
        hint = "; a stream has whole splits only" if config.streaming and "[" in config.split else ""
        return f"dataset.split: given {config.split!r}, of {config.name!r}: {text}{hint}"
    if "Config name is missing" in text or text.startswith("BuilderConfig"):
        return f"dataset.config: given {config.config!r}, of {config.name!r}: {' '.join(lines[:2])}"
    if find_local(config.name) is not None:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return f"dataset.name: given {config.name!r}: {text}{cause}"
    near = difflib.get_close_matches(config.name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"dataset.name: given {config.name!r}; {hint}it is neither built in ({', '.join(BUILT_IN)}), nor a folder or "
        f"file here, nor could it be loaded from the Hub: {text}"
    )


def _columns(config: DatasetConfig, features: datasets.Features) -> tuple[str, str | None]:
    listed = ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())
    for field in ("image_column", "label_column"):
        given = getattr(config, field)
        if given is not None and given not in features:
            raise UserError(f"dataset.{field}: given {given!r}; columns of {config.name!r}: {listed}")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    image_column, label_column = config.image_column, config.label_column
    if image_column is None:
        if len(images) != 1:
            count = "several" if images else "no"
            raise UserError(
                f"dataset.image_column: {config.name!r} has {count} columns of images; name one of: {listed}"
            )
        image_column = images[0]
    elif image_column not in images:
        raise UserError(f"dataset.image_column: {image_column!r} holds no images; columns of {config.name!r}: {listed}")
    if label_column is None and len(labels) == 1:
        label_column = labels[0]
    elif label_column is None and "__key__" in features and "cls" in features:  # a shard of webdataset
        label_column = "cls"
    elif label_column is not None and not _holds_classes(features[label_column]):
        raise UserError(
            f"dataset.label_column: {label_column!r} holds neither whole numbers nor names; columns of "
            f"{config.name!r}: {listed}"
        )
    return image_column, label_column


def _type(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _holds_classes(feature: Any) -> bool:
    named = isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "bool", "string", "large"))
    return named or isinstance(feature, datasets.ClassLabel)


def _source(config: DatasetConfig, data: Data, num_rows: int | None, fingerprint: str) -> Source:
    if num_rows == 0:
        raise UserError(f"dataset.split: given {config.split!r}, which holds no images of {config.name!r}")
    if data.features is None:
        raise UserError(f"dataset.streaming: the columns of {config.name!r} are not known before it is read; set false")
    image_column, label_column = _columns(config, data.features)
    feature = data.features.get(label_column)
    rows = data.select_columns([image_column] if label_column is None else [image_column, label_column])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return Source(
        _Examples(config.name, rows, image_column, label_column),
        num_rows,
        label_column is not None,
        feature.names if isinstance(feature, datasets.ClassLabel) else None,
        fingerprint,
    )


@dataclass(frozen=True)
class _Examples:
    """The rows of a dataset with their images still encoded."""

    name: str
    rows: Data
    image_column: str
    label_column: str | None

    def __iter__(self) -> Iterator[Example]:
        number = 0
        try:
            for batch in self.rows.iter(batch_size=ROWS):
                cells = batch[self.image_column]
                labels = batch[self.label_column] if self.label_column else [None] * len(cells)
                for cell, label in zip(cells, labels, strict=True):
                    encoded, path = (cell["bytes"], cell["path"]) if cell else (None, None)
                    file = path or b"" if encoded is None else encoded
                    yield Example(file, path or f"row {number}", label)
                    number += 1
        except Exception as error:  # of the network, or of an archive that is cut short
            raise OSError(f"dataset.name: {self.name!r} could not be read beyond image {number:,}: {error}") from error
