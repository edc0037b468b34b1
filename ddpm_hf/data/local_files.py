"""Datasets on this machine: which builder of `datasets` reads a folder, its splits, and whether it has changed."""

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

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves at the top of its folder."""


@dataclass(frozen=True)
class LocalData:
    """A file or folder that holds images.

    Attributes:
        path: of the file or folder.
        kind: "parquet", "arrow", "webdataset" or "imagefolder", as the builders of `datasets` are called, or "saved"
            for the folder of a `save_to_disk`.
        files: those that the images come from, sorted.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]

    def fingerprint(self) -> str:
        """A hash that changes with the place, and with any file's name, size or time of change."""
        digest = hashlib.sha256(str(self.path.resolve()).encode())
        for file in self.files:
            status = file.stat()
            digest.update(f"\n{file.relative_to(self.path)}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def splits(self) -> dict[str, list[str]]:
        """The files of each split, as patterns.

        Parquet files and the like carry the name of their split (train-00000-of-00002.parquet, test/0.tar), or are all
        of them the split train. Images do not: among photographs, train-station.jpg means nothing. Only folders at the
        top make splits of them, and only where nothing lies beside those.
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
    """What each split may be called."""
    from datasets.data_files import SPLIT_KEYWORDS

    return {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}


def _pattern(path: Path) -> str:
    return glob.escape(str(path))


def find_local(name: str) -> LocalData | None:
    """What a name means on this machine; None if it can only be the id of a dataset on the Hub.

    Raises:
        UserError: if the file or folder does not exist or holds no images.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"dataset.name: given the file {name!r}; allowed: a folder, a file ending in {', '.join(SUFFIXES)}, or "
                "a Hub id"
            )
        return LocalData(path, SUFFIXES[path.suffix.lower()], (path,))
    if path.is_dir():
        return _in_folder(path, name)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"dataset.name: the folder {name!r} does not exist")
    return None


def _in_folder(path: Path, name: str) -> LocalData:
    files = tuple(_walk(path))
    if any((path / file).is_file() for file in SAVED):
        return LocalData(path, "saved", files)
    for suffix, kind in SUFFIXES.items():
        if found := tuple(file for file in files if file.suffix.lower() == suffix and file.name not in METADATA):
            return LocalData(path, kind, found)
    extensions = Image.registered_extensions()
    images = tuple(file for file in files if file.suffix.lower() in extensions)
    if not images:
        raise UserError(
            f"dataset.name: the folder {name!r} holds no image, and no file ending in {', '.join(SUFFIXES)}"
        )
    metadata = tuple(file for file in files if file.name in METADATA)
    return LocalData(path, "imagefolder", tuple(sorted(images + metadata)))


def _walk(path: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in order."""
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))
