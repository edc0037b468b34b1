"""Datasets on this machine: their files, their splits, their classes, and whether they have changed."""

import csv
import difflib
import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from ddpm_hf.config.dataset import DatasetConfig
from ddpm_hf.config.hub import REPO_ID
from ddpm_hf.data.decoding import Source, number_labels, without_blank
from ddpm_hf.data.pixels import Example, image_suffixes
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import walk_visible
from ddpm_hf.runtime.values import parse_json

BUILT_IN = ("digits",)
"""Datasets that an installed package contains."""

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
METADATA = ("metadata.csv", "metadata.tsv", "metadata.json", "metadata.jsonl", "metadata.parquet")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".xlsx")
ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes at the top of its folder."""

SPLIT_NAMES = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "dev", "val"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}
"""The split that each keyword stands for, as in `datasets`, which takes a second to import."""


Rows: TypeAlias = dict[Path, list[tuple[str, dict[str, Any]]]]
"""Rows of tables, each with its place, by the file that they describe."""


@dataclass(frozen=True)
class LocalData:
    """A file or folder that holds images.

    Attributes:
        path: of the file or folder.
        kind: a builder of `datasets` ("parquet", "arrow", "webdataset"), "saved" for the folder that `save_to_disk`
            wrote, or "images".
        files: those that the images come from, in order.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        """A hash that changes with the path, and with the name, size or modification time of any file."""
        digest = hashlib.sha256(os.fsencode(self.path.resolve()))
        if self.kind == "images":
            digest.update(b"\0listed")  # the first version's sets may lack images
        for file in self.files:
            try:
                status = file.stat()
            except OSError:  # a link to nothing
                status = file.lstat()
            name = os.fsencode(file.relative_to(self.path))
            digest.update(b"\n%s\0%d\0%d" % (name, status.st_size, status.st_mtime_ns))
        return digest.hexdigest()

    def splits(self) -> dict[str, list[str]]:
        """The files of each split, as glob patterns.

        Files have the name of their split in their own (train-00000-of-00002.parquet, test/0.tar), or else belong to
        the split train.
        """
        splits: dict[str, list[str]] = {}
        for file in self.files:
            name = "train" if file == self.path else _split_of(file.relative_to(self.path))
            splits.setdefault(name, []).append(glob.escape(str(file)))
        return splits


def _split_of(file: Path) -> str:
    if sharded := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", file.stem):
        return sharded[1]
    words = re.split(r"[-._ 0-9/]+", file.as_posix().lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


@dataclass(frozen=True)
class ImageFolder(LocalData):
    """A folder of images: `files` are all that were found, read or not, and the metadata.

    Attributes:
        problems: why a file or folder cannot be opened, for those that cannot.
        notes: what was found beside the images and is not used.
    """

    problems: dict[Path, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @cached_property
    def metadata(self) -> list[Path]:
        """The tables that describe images."""
        return [file for file in self.files if file.name.lower() in METADATA]

    @cached_property
    def images(self) -> list[Path]:
        """All other files, in the order in which training numbers them."""
        return sorted(set(self.files) - set(self.metadata), key=str)

    def images_of_splits(self) -> dict[str, list[Path]]:
        """The images of each split.

        Names of images mean nothing: among photographs, train-station.jpg is no split. Only folders at the top are
        splits, and only if nothing else lies beside them.

        Raises:
            UserError: if some of what lies at the top looks like splits.
        """
        tops: dict[str, list[Path]] = {}
        for file in self.images:
            tops.setdefault(file.relative_to(self.path).parts[0], []).append(file)
        named = {
            top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES and (self.path / top).is_dir()
        }
        if len(named) == len(tops):
            splits: dict[str, list[Path]] = {}
            for top, split in named.items():
                splits[split] = sorted(splits.get(split, []) + tops[top], key=str)
            return splits
        beside = [top for top in tops if top not in named]
        # a class may be called train: one folder of images among others is no split
        nested = any(len(file.relative_to(self.path).parts) > 2 for top in named for file in tops[top])
        strays = any(not (self.path / top).is_dir() for top in beside)
        if len(set(named.values())) > 1 or (named and (nested or strays)):
            raise UserError(
                f"dataset.name: {str(self.path)!r} holds {_some(sorted(named))}, which look like splits, beside "
                f"{_some(beside)}; move those elsewhere if they are, rename the folders if they are not, or name one "
                f"of them, such as dataset.name={self.path / min(named)}"
            )
        return {"train": self.images}

    def classes(self) -> tuple[dict[Path, str], str]:
        """The class of each image: the name of the folder that it lies in, if all lie equally deep in several.

        Returns:
            The classes by file, and why there are none.
        """
        files = [file for file in self.images if file not in self.problems]
        classes = {file: file.parent.name for file in files}
        depths = {len(file.relative_to(self.path).parts): file for file in reversed(files)}
        if len(depths) > 1:
            examples = _some([str(file.relative_to(self.path)) for _, file in sorted(depths.items())])
            return {}, f"its images lie at different depths ({examples}), and folders are classes if all lie at one"
        if len(set(classes.values())) < 2:
            return {}, "all its images lie in folders of one name"
        return classes, ""

    def table(self) -> tuple[Rows, dict[str, str]]:
        """The rows of the metadata by the file that they describe, and the types of their columns.

        Raises:
            UserError: if a table cannot be read or has no column file_name.
        """
        rows: Rows = {}
        columns: dict[str, list[Any]] = {}
        for file in self.metadata:
            for number, row in enumerate(_read_table(file), 1):
                place = f"row {number} of {file.relative_to(self.path)}"
                name = row.pop("file_name", None)
                if not isinstance(name, str) or not name.strip():
                    raise UserError(f"dataset.name: {place} has no file_name; its columns are: {', '.join(row)}")
                described = _normal(file.parent / name.strip().replace("\\", "/"))
                rows.setdefault(described, []).append((place, row))
                for column, value in row.items():
                    columns.setdefault(column, []).append(value)
        return rows, {column: _kind(values) for column, values in columns.items()}


def open_image_folder(config: DatasetConfig, folder: ImageFolder) -> Source:
    """Open the images of a split: every file that was found, and every one that the metadata name in vain.

    Raises:
        UserError: if there is no such split or column, or the metadata contradict themselves.
    """
    files = _select(config, folder.images_of_splits())
    classes, _ = folder.classes()
    rows, columns = folder.table()
    types = {"image": "Image", **({"label": "ClassLabel"} if classes else {}), **columns}
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items())
    for option in ("image_column", "label_column"):
        if (given := getattr(config, option)) is not None and given not in types:
            raise UserError(f"dataset.{option}: given {given!r}; columns of {config.name!r}: {listed}")
    column = config.label_column
    if config.image_column not in (None, "image"):
        raise UserError(f"dataset.image_column: {config.image_column!r} holds no images; name image, or leave it out")
    if column is not None and types[column] not in ("ClassLabel", "int", "string", "bool"):
        raise UserError(
            f"dataset.label_column: {column!r} holds neither whole numbers nor names; columns of {config.name!r}: "
            f"{listed}"
        )
    named: Mapping[Path, int | str | None] = {_normal(file): name for file, name in classes.items()}
    notes = list(folder.notes)
    if column in columns:
        named = _labels_of_column(column, columns[column], rows)
        if unlisted := [file for file in files if _normal(file) not in rows]:
            notes.append(
                f"{len(unlisted):,} of {len(files):,} images have no row in the metadata, such as {unlisted[0]}"
            )
    numbers, class_names = number_labels(named.values(), config.name)  # over all splits
    labels = dict(zip(named, numbers, strict=True))
    examples = [Example(str(file), str(file), labels.get(_normal(file)), folder.problems.get(file)) for file in files]
    if rows:
        missing = rows.keys() - {_normal(file) for file in folder.images}
        for file in sorted(missing, key=str):
            examples.append(Example("", str(file), None, f"not there, but in {rows[file][0][0]}"))
    return Source(examples, len(examples), bool(labels), class_names, folder.fingerprint(), tuple(notes))


def _select(config: DatasetConfig, splits: dict[str, list[Path]]) -> list[Path]:
    """The images of a split, a part of one, or several, in the notation of `datasets`."""
    if config.split in splits:
        return splits[config.split]
    from datasets import ReadInstruction  # takes a second to import

    sizes = {name: len(files) for name, files in splits.items()}
    try:
        parts = ReadInstruction.from_spec(config.split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"dataset.split: given {config.split!r}, of {config.name!r}, whose splits are {list(splits)}: {error}"
        ) from error
    files = [file for part in parts for file in splits[part.splitname][part.from_ : part.to]]
    if not files:
        raise UserError(f"dataset.split: given {config.split!r}, which holds no images of {config.name!r}")
    return files


def _labels_of_column(column: str, kind: str, rows: Rows) -> dict[Path, int | str | None]:
    """The number or name of each image's class in a column of the metadata."""
    labels: dict[Path, int | str | None] = {}
    for file, several in rows.items():
        places = {without_blank(row.get(column)): place for place, row in several}
        if len(places) > 1:
            raise UserError(
                f"dataset.label_column: {file.name} has several classes in column {column!r}: "
                + ", ".join(f"{value!r} ({place})" for value, place in places.items())
            )
        (cell,) = places
        labels[file] = None if cell is None else int(float(cell)) if kind == "int" else str(cell)
    return labels


def _kind(values: Iterable[Any]) -> str:
    """The type of a column, as far as its cells tell: programs write numbers as text, and 1.0 for 1."""
    present = [cell for value in values if (cell := without_blank(value)) is not None]
    if not all(isinstance(cell, str | int | float) for cell in present):
        return "list"
    if present and all(isinstance(cell, bool) for cell in present):
        return "bool"
    try:
        return "int" if present and all(float(cell).is_integer() for cell in present) else "float"
    except ValueError:
        return "string"


def _normal(path: Path) -> Path:
    """The form of a path by which metadata find it: systems write accents in two ways."""
    return Path(unicodedata.normalize("NFC", os.path.normpath(path)))


def _read_table(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSON, JSON Lines or Parquet file."""
    kind, rows = file.suffix.lower(), []
    try:
        if kind == ".parquet":
            from pyarrow.parquet import read_table  # takes a second to import

            return read_table(file).to_pylist()
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
        if kind == ".json" and text.lstrip().startswith("["):
            rows = parse_json(text, str(file))
        elif kind in (".json", ".jsonl"):
            rows = [parse_json(line, str(file)) for line in text.splitlines() if line.strip()]
        else:
            head = text.partition("\n")[0]
            delimiter = max("\t,;", key=head.count)
            rows = list(csv.DictReader(text.splitlines(keepends=True), delimiter=delimiter, restkey=""))
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its rows are no objects with names")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"dataset.name: {file} cannot be read as a table: {error}") from error
    return rows


def looks_local(name: str) -> bool:
    """Whether a dataset's name can only be a path, even if nothing is there; in a folder that exists it is one."""
    in_folder = "/" in name and Path(name).parent.is_dir()
    return name.startswith((".", "~", "/")) or in_folder or re.fullmatch(REPO_ID, name) is None


def find_path(name: str) -> Path | None:
    """The path of a dataset on this machine; None if it is built in or can only be one of the Hub. Nothing is read.

    Raises:
        UserError: if there is no such file or folder, or a file of another kind.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        allowed = f"a folder, a file ending in {', '.join(SUFFIXES)}, or a Hub id"
        raise UserError(f"dataset.name: given the file {name!r}; allowed: {allowed}")
    if name in BUILT_IN or not path.exists():
        if looks_local(name):
            near = difflib.get_close_matches(str(path), map(str, path.parent.glob("*/")), n=1)
            raise UserError("; did you mean ".join([f"dataset.name: the folder {name!r} does not exist", *near]))
        return None
    return path


def find_local(name: str) -> LocalData | None:
    """Find a dataset on this machine.

    Returns:
        The file or folder; None if the name can only be the id of a dataset on the Hub.

    Raises:
        UserError: if the file or folder does not exist or holds no images.
    """
    path = find_path(name)
    if path is None:
        return None
    if path.is_file():
        return LocalData(path, SUFFIXES[path.suffix.lower()], (path,))
    found = dict(walk_visible(path))
    files = [file for file, problem in found.items() if problem is None]
    if any((path / file).is_file() for file in SAVED):
        return LocalData(path, "saved", tuple(files))
    metadata = {file for file in files if file.name.lower() in METADATA}
    kinds: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in SUFFIXES and file not in metadata:
            kinds.setdefault(file.suffix.lower(), []).append(file)
    suffixes = image_suffixes()
    images = [file for file, problem in found.items() if problem or file.suffix.lower() in suffixes]
    has_images = any(found[file] is None for file in images)
    if not kinds and not has_images:
        endings = Counter(file.suffix.lower() or "no ending" for file in files).most_common(5)
        holds = ", ".join(f"{count:,} of {ending}" for ending, count in endings)
        holds = "; ".join([holds, *(f"{file}: {problem}" for file, problem in list(found.items())[:5] if problem)])
        raise UserError(
            f"dataset.name: the folder {name!r} holds no image, and no file ending in {', '.join(SUFFIXES)} (but "
            f"{holds or 'nothing'}); archives must be unpacked first"
        )
    if len(kinds) + has_images > 1:
        seen = [f"{len(images):,} images (such as {images[0].name})"] if has_images else []
        seen += [f"{len(some):,} files ending in {end} (such as {some[0].name})" for end, some in kinds.items()]
        example = next(iter(kinds.values()))[0]
        raise UserError(
            f"dataset.name: the folder {name!r} holds {', and '.join(seen)}, of which one kind can be read; move what "
            f"is not meant elsewhere, or name a folder or file in it, such as dataset.name={example}"
        )
    if kinds:
        ((suffix, data),) = kinds.items()
        return LocalData(path, SUFFIXES[suffix], tuple(data))
    problems_of = {file: problem for file, problem in found.items() if problem}
    notes = []
    for what, endings_left in ((_ARCHIVE, ARCHIVES), (_TABLE, TABLES)):
        if left := [str(file) for file in files if file.suffix.lower() in endings_left and file not in metadata]:
            notes.append(f"{_some(left, 1)} {what}")
    return ImageFolder(path, "images", tuple(sorted([*images, *metadata])), problems_of, tuple(notes))


_ARCHIVE = "is not opened: unpack it to use it"
_TABLE = "is not read: a metadata.csv with a column file_name describes images"


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count:,} more" if len(names) > count else "")
