"""Atomic file writes, and the folder of cached files."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from ddpm_hf.runtime.errors import UserError


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it replaces the file when the block ends.

    The folder is made if need be. Any number of processes may write at a time: the last one wins. A block that fails
    leaves the file as it was.

    Args:
        file: the file to write.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")  # no *.png, should a crash leave it
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(file: Path, text: str) -> None:
    """Write a text in UTF-8, so that a reader finds all of it or the file as it was before."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def visible_files(folder: Path) -> list[Path]:
    """List a folder without names that begin with a dot: locks, notices, and temporary files left by a crash."""
    return [file for file in folder.iterdir() if not file.name.startswith(".")]


def walk_visible(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[Path, str | None]]:
    """Go through a folder and those below it, also where they are links, without names that begin with a dot.

    Args:
        folder: where to begin.
        above: identities of the folders that it lies in, which a link may lead back to.

    Yields:
        Each file, in order, those of a folder before those below it; and why it, or a folder, cannot be opened.
    """
    try:
        status = folder.stat()
        own = (status.st_dev, status.st_ino)
        if own in above:
            return  # whatever lies in it is found without the link
        entries = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"the folder cannot be opened: {error.strerror}"
        return
    for entry in entries:
        if not entry.is_dir():
            kind = "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
            yield Path(entry.path), None if entry.is_file() else kind
    for entry in entries:
        if entry.is_dir():
            yield from walk_visible(Path(entry.path), (*above, own))


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path, option: str) -> None:
    """Check that a folder can be made and written to, by a file that is removed at once; no folder is made.

    Args:
        folder: where something will be written.
        option: the option that named it, for the message.

    Raises:
        UserError: if the folder cannot be written to.
    """
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
        with TemporaryFile(dir=existing):
            pass
    except NotADirectoryError:
        raise UserError(f"{option}: {existing} is a file; choose another folder") from None
    except OSError as error:
        raise UserError(f"{option}: {folder} cannot be written to: {error.strerror}; choose another folder") from None


def cache_folder() -> Path:
    """The user's cache of ddpm-hf: $DDPM_HF_CACHE, or ddpm-hf in $XDG_CACHE_HOME, or in ~/.cache."""
    if given := os.environ.get("DDPM_HF_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ddpm-hf"
