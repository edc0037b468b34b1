"""Datasets on this machine: their files, their splits, and whether they have changed."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from ddpm_hf.runtime.errors import UserError

BUILT_IN = ("digits",)
"""Datasets that an installed package contains."""

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes at the top of its folder."""


@dataclass(frozen=True)
class LocalData:
    """A file or folder that holds images.

    Attributes:
        path: of the file or folder.
        kind: a builder of `datasets` ("parquet", "arrow", "webdataset", "imagefolder"), or "saved" for the folder that
            `save_to_disk` wrote.
        files: those that the images come from, sorted.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        """A hash that changes with the path, and with the name, size or modification time of any file."""
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for file in self.files:
            status = file.stat()
            digest.update(f"\n{file.relative_to(self.path)}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def splits(self) -> dict[str, list[str]]:
        """The files of each split, as glob patterns.

        Parquet files and the like have the name of their split in their own (train-00000-of-00002.parquet, test/0.tar),
        or else belong to the split train. Images do not: among photographs, train-station.jpg is no split. Only folders
        at the top are splits of images, and only if nothing else lies beside them.
        """
        if self.kind == "imagefolder":
            tops = {file.relative_to(self.path).parts[0] for file in self.files}
            if all(top.lower() in _split_names() and (self.path / top).is_dir() for top in tops):
                return {_split_names()[top.lower()]: [f"{_pattern(self.path / top)}/**"] for top in sorted(tops)}
            return {"train": [f"{_pattern(self.path)}/**"]}
        splits: dict[str, list[str]] = {}
        for file in self.files:
            name = "train" if file == self.path else _split_of(file.relative_to(self.path))
            splits.setdefault(name, []).append(_pattern(file))
        return splits


def _split_of(file: Path) -> str:
    if sharded := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", file.stem):
        return sharded[1]
    words = re.split(r"[-._ 0-9/]+", file.as_posix().lower())
    return next((_split_names()[word] for word in words if word in _split_names()), "train")


@cache
def _split_names() -> dict[str, str]:
    """The split that each keyword stands for."""
    from datasets.data_files import SPLIT_KEYWORDS  # takes a second to import

    return {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}


def _pattern(path: Path) -> str:
    return glob.escape(str(path))


def looks_local(name: str) -> bool:
    """Whether a dataset's name can only be a path, even if nothing exists there."""
    return name.startswith((".", "~", "/")) or name.count("/") > 1


def find_local(name: str) -> LocalData | None:
    """Find a dataset on this machine.

    Returns:
        The file or folder; None if the name can only be the id of a dataset on the Hub.

    Raises:
        UserError: if the file or folder does not exist or holds no images.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            allowed = f"a folder, a file ending in {', '.join(SUFFIXES)}, or a Hub id"
            raise UserError(f"dataset.name: given the file {name!r}; allowed: {allowed}")
        return LocalData(path, SUFFIXES[path.suffix.lower()], (path,))
    if not path.is_dir():
        if looks_local(name):
            raise UserError(f"dataset.name: the folder {name!r} does not exist")
        return None
    files = tuple(_visible_files(path))
    if any((path / file).is_file() for file in SAVED):
        return LocalData(path, "saved", files)
    for suffix, kind in SUFFIXES.items():
        if found := tuple(file for file in files if file.suffix.lower() == suffix and file.name not in METADATA):
            return LocalData(path, kind, found)
    extensions = Image.registered_extensions()
    images = [file for file in files if file.suffix.lower() in extensions]
    if not images:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"dataset.name: the folder {name!r} holds no image, and no file ending in {suffixes}")
    metadata = [file for file in files if file.name in METADATA]
    return LocalData(path, "imagefolder", tuple(sorted(images + metadata)))


def _visible_files(path: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in order."""
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))
