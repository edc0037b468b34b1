"""Files that a reader finds whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from ddpm_hf.runtime.errors import UserError


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Give a path to write to; what was written there takes the file's place when the block ends.

    The folder is made if need be. Any number of processes may write at a time: the last one wins. A block that fails
    leaves the file as it was.

    Args:
        file: to write.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")  # no *.png, should a crash leave it
    try:
        yield aside
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Write a text, in UTF-8, so that a reader finds all of it or none."""
    with written_whole(file) as aside:
        aside.write_text(text, encoding="utf-8")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder but for names with a dot: locks, notices, and what a crash has left of a file."""
    return [file for file in folder.iterdir() if not file.name.startswith(".")]


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path, option: str) -> None:
    """Make sure that a folder can be made and written to, by a file that is gone at once; no folder is made.

    Args:
        folder: where something will be written.
        option: that named it, for the message.

    Raises:
        UserError: if it cannot.
    """
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
        with TemporaryFile(dir=existing):
            pass
    except NotADirectoryError:
        raise UserError(f"{option}: {existing} is a file; choose another folder") from None
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be written to: {error.strerror}; choose another folder") from None
