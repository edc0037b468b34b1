"""Images of folders, files and the Hub, through the `datasets` library."""

import difflib
import io
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import datasets
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.decoding import Source
from ddpm_hf.data.local_files import BUILT_IN, LocalData
from ddpm_hf.data.pixels import Example
from ddpm_hf.runtime.cli import waiting
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import explain, root_cause

logger = logging.getLogger(__name__)

END_OF_TAR = 1024
"""Bytes, all zero, that end an archive."""

Data: TypeAlias = datasets.Dataset | datasets.IterableDataset

BATCH_SIZE = 16
"""Rows read at a time; their encoded images are in memory together."""


def open_dataset(config: DatasetConfig, local: LocalData | None) -> Source:
    """Open a dataset of the Hub or of this machine.

    Args:
        config: names the dataset, its split and its columns.
        local: where it lies on this machine; None for the Hub.

    Raises:
        UserError: if there is no such dataset, split or column, or it is empty.
    """
    with _user_errors(config, is_local=local is not None):
        data, num_rows, fingerprint = _open(config, local)
    return _make_source(config, data, num_rows, fingerprint)


def _open(config: DatasetConfig, local: LocalData | None) -> tuple[Data, int | None, str]:
    """The rows, their number if it is known, and a hash of what they are."""
    if local is None:
        with waiting(f"asking the Hub for {config.name}"):
            builder = datasets.load_dataset_builder(config.name, config.config, revision=config.revision)
        fingerprint = f"{config.name}@{builder.hash}"  # for a dataset of the Hub, the hash is its commit
    else:
        fingerprint = local.fingerprint()
        if local.kind == "saved":
            saved = _load_saved(config, local)
            return saved, len(saved), fingerprint
        files = local.splits()
        if local.kind == "webdataset":
            files = {split: [tar for tar in tars if _begins_well(tar)] or tars for split, tars in files.items()}
        builder = datasets.load_dataset_builder(local.kind, data_files=files)
        if local.kind == "webdataset":
            _tolerate_damage(builder)
    if not config.streaming:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=config.split)
        return rows, len(rows), fingerprint
    if hasattr(builder.config, "decode_num_threads"):  # of a folder of images on the Hub
        builder.config.decode_num_threads = 0  # it would decode them, and stop at a damaged one
    known = (builder.info.splits or {}).get(config.split)
    num_rows = known.num_examples or None if known else None
    return builder.as_streaming_dataset(split=config.split), num_rows, fingerprint


def _load_saved(config: DatasetConfig, local: LocalData) -> datasets.Dataset:
    """The rows of a split that `save_to_disk` wrote."""
    saved = datasets.load_from_disk(str(local.path))
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    sizes = {name: len(split) for name, split in splits.items()}
    parts = datasets.ReadInstruction.from_spec(config.split).to_absolute(sizes)
    return datasets.concatenate_datasets(
        [splits[part.splitname].select(range(part.from_ or 0, part.to or sizes[part.splitname])) for part in parts]
    )


def _begins_well(pattern: str) -> bool:
    """Whether an archive's first file can be read, from which `datasets` learns the columns; warns of damage."""
    tar = Path(re.sub(r"\[([*?[])\]", r"\1", pattern))  # glob.escape, undone
    try:
        with tarfile.open(tar, "r|") as archive:
            archive.next()
        with tar.open("rb") as file:
            file.seek(-min(END_OF_TAR, tar.stat().st_size), os.SEEK_END)
            if any(file.read()):
                logger.warning("%s is truncated: what it lacks is left out", tar)
    except (OSError, tarfile.TarError) as error:
        logger.warning("%s cannot be read and is left out: %s", tar, error)
        return False
    return True


def _tolerate_damage(builder: Any) -> None:
    """Let a damaged file in a tar archive, or the end that it lacks, cost these images only.

    Args:
        builder: of `datasets` for archives in webdataset's layout, which would end with the first error.
    """
    decoders = {ending: _tolerant(decode) for ending, decode in builder.DECODERS.items()}
    tolerant: Any = type("Tolerant", (type(builder),), {"DECODERS": decoders})

    def examples(tar: str, members: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
        fields: dict[str, None] = {}
        for example in tolerant._get_pipeline_from_tar(tar, _readable_members(tar, members)):
            fields = fields or dict.fromkeys(example)
            yield {**fields, **example}  # the last one may lack some

    builder._get_pipeline_from_tar = examples


def _readable_members(tar: str, members: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, io.BytesIO]]:
    """The files of an archive; in place of what cannot be read comes one empty image, which is counted as skipped."""
    name, is_whole = "", True
    try:
        for name, file in members:
            is_whole = False
            content = file.read()
            is_whole = True
            yield name, io.BytesIO(content)
    except (OSError, EOFError, tarfile.TarError) as error:
        logger.warning("%s cannot be read beyond %s: %s; the rest of it is left out", tar, name, error)
        path = PurePosixPath(name)
        if path.suffix[1:].lower() in WebDataset.IMAGE_EXTENSIONS:
            missing = path.with_stem(f"{path.stem}-and-the-rest") if is_whole else path
            yield missing.as_posix(), io.BytesIO()


def _tolerant(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decoder of a label or caption that gives None for one that cannot be decoded."""

    def decode_or_none(content: Any) -> Any:
        try:
            return decode(content)
        except Exception:  # of JSON, numpy, and whatever else an archive may hold
            return None

    return decode_or_none


@contextmanager
def _user_errors(config: DatasetConfig, is_local: bool) -> Iterator[None]:
    """Add the option to change to errors of `datasets`, which name only what is possible."""
    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(_explain(error, config, is_local)) from error


def _explain(error: Exception, config: DatasetConfig, is_local: bool) -> str:
    name, split = config.name, config.split
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["it failed without a reason"]
    text = lines[0]
    if "split" in text.lower() or text.startswith("Instruction"):
        hint = "; a stream has whole splits only" if config.streaming and "[" in split else ""
        return f"dataset.split: given {split!r}, of {name!r}: {text}{hint}"
    if "Config name is missing" in text or text.startswith("BuilderConfig"):
        return f"dataset.config: given {config.config!r}, of {name!r}: {' '.join(lines[:2])}"
    if is_local:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return f"dataset.name: given {name!r}: {text}{cause}"
    if (of_hub := root_cause(error)) is not error:
        text = explain(of_hub, name)
    text = re.sub(r" \(\w+(Error|Timeout|Enabled)\)$", "", text)  # the class of an error of Python's
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"dataset.name: given {name!r}; {hint}it is neither built in ({', '.join(BUILT_IN)}) nor a local folder or "
        f"file, and it could not be loaded from the Hub: {text}"
    )


def _make_source(config: DatasetConfig, data: Data, num_rows: int | None, fingerprint: str) -> Source:
    if num_rows == 0:
        raise UserError(f"dataset.split: given {config.split!r}, which holds no images of {config.name!r}")
    if data.features is None:
        raise UserError(f"dataset.streaming: the columns of {config.name!r} are not known before it is read; set false")
    image_column, label_column = _choose_columns(config, data.features)
    feature = data.features.get(label_column)
    rows = data.select_columns([image_column] if label_column is None else [image_column, label_column])
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    class_names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    examples = _Examples(config.name, rows, image_column, label_column)
    return Source(examples, num_rows, label_column is not None, class_names, fingerprint)


def _choose_columns(config: DatasetConfig, features: datasets.Features) -> tuple[str, str | None]:
    """The columns of images and of classes: those that are named, or else the only ones of their type."""
    types = {
        name: each.dtype
        if isinstance(each, datasets.Value)
        else "bytes and path"
        if isinstance(each, dict) and {"bytes", "path"} <= each.keys()
        else type(each).__name__
        for name, each in features.items()
    }
    columns, name = ", ".join(f"{column} ({kind})" for column, kind in types.items()), config.name
    for field in ("image_column", "label_column"):
        if (given := getattr(config, field)) is not None and given not in features:
            raise UserError(f"dataset.{field}: given {given!r}; columns of {name!r}: {columns}")
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # files without the notes of `datasets` on types hold images as bytes, or as bytes with a path
    images = images or [name for name, kind in types.items() if kind in ("binary", "large_binary", "bytes and path")]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    image_column, label_column = config.image_column, config.label_column
    if image_column is None:
        if not images:
            raise UserError(
                f"dataset.name: {name!r} has no column of images, encoded in their files' bytes; it has: {columns}"
            )
        if len(images) > 1:
            raise UserError(
                f"dataset.image_column: {name!r} has {len(images)} columns of images; name one of: {', '.join(images)}"
            )
        image_column = images[0]
    elif image_column not in images:
        raise UserError(f"dataset.image_column: {image_column!r} holds no images; columns of {name!r}: {columns}")
    if label_column is None:
        is_webdataset = "__key__" in features and "cls" in features
        return image_column, labels[0] if len(labels) == 1 else "cls" if is_webdataset else None
    if label_column not in labels and not types[label_column].startswith(
        (
            "int",
            "uint",
            "bool",
            "string",
            "large_string",
            "float",
            "double",
        )  # floats, where a blank made whole numbers so
    ):
        raise UserError(
            f"dataset.label_column: {label_column!r} holds neither whole numbers nor names; columns of {name!r}: "
            f"{columns}"
        )
    return image_column, label_column


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
            for batch in self.rows.iter(batch_size=BATCH_SIZE):
                cells = batch[self.image_column]
                labels = batch[self.label_column] if self.label_column else [None] * len(cells)
                for cell, label in zip(cells, labels, strict=True):
                    encoded, path = (cell["bytes"], cell["path"]) if cell else (None, None)
                    file = path or b"" if encoded is None else encoded
                    yield Example(file, path or f"row {number}", label)
                    number += 1
        except Exception as error:  # of the network, or of a truncated archive
            raise OSError(f"dataset.name: {self.name!r} could not be read beyond image {number:,}: {error}") from error
