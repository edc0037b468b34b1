"""Atomic file writes, bounded reads, removal of what is no longer needed, and the folder of cached files."""

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from ddpm_hf.runtime.errors import UserError

logger = logging.getLogger(__name__)

EARLIER_TEMPORARY = r"(png|gif|npz|parquet|jsonl?|yaml|txt|md|html|safetensors|stop)\.[0-9a-f]{16}"
TEMPORARY = re.compile(rf"\..+\.([0-9a-f]{{16}}\.tmp|{EARLIER_TEMPORARY})")
"""Names of the temporary files of `atomic_write`; earlier versions gave them no ending of their own."""

_swept: set[Path] = set()
_unremovable: set[Path] = set()


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it replaces the file when the block ends.

    The folder is made if need be. Any number of processes may write at a time: the last one wins. A block that fails
    leaves the file as it was. What a killed process leaves is removed when another one first writes to the folder.

    Args:
        file: the file to write.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.parent not in _swept:
        _swept.add(file.parent)
        remove_leftovers(file.parent)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")  # no *.png, should a crash leave it
    try:
        with temporary.open("xb") as held:
            _lock(held.fileno())
            yield temporary
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes were killed; those of living processes stay.

    A process holds a lock on what it writes, which the system releases when it ends. So this works between machines
    that share the folder, too; where the file system has no locks, nothing is removed.
    """
    for file in folder.glob(".*"):
        if TEMPORARY.fullmatch(file.name) and file.is_file():
            with suppress(OSError), file.open("rb+") as left:
                if _lock(left.fileno()):
                    remove(file)


def remove(path: Path, hidden: Path | None = None) -> bool:
    """Delete a file, a link (but not what it leads to), or a folder with everything in it, as far as that is possible.

    What cannot be deleted, such as another user's file, is named in one warning, and stays.

    Args:
        path: to delete; it need not exist.
        hidden: a name that it is given first, so that nobody finds it partly deleted.

    Returns:
        Whether the path is free.
    """
    try:
        doomed = path.rename(hidden) if hidden else path
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink(missing_ok=True)
    except OSError as error:
        left = hidden if hidden and os.path.lexists(hidden) else path
        if left == (hidden or path):
            shutil.rmtree(left, ignore_errors=True)  # whatever else is in it, for its room
        if left not in _unremovable:
            _unremovable.add(left)
            logger.warning("%s cannot be removed and stays: %s", left, error)
    return not os.path.lexists(path)


def write_text_atomic(file: Path, text: str) -> None:
    """Write a text in UTF-8, so that a reader finds all of it or the file as it was before."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_bounded(file: Path, max_bytes: int, regular: bool = True) -> bytes:
    """Read a file that may come from outside: it has an end, and fits in memory.

    Args:
        file: the file, or a link to it.
        max_bytes: its longest length.
        regular: whether it has to be a regular file; a person may well name a pipe.

    Raises:
        OSError: if it cannot be opened.
        UserError: naming the file, if it is not a regular one, or longer.
    """
    if regular:
        check_regular(file)
    with file.open("rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{file} has more than {max_bytes:,} bytes; it is not read")
    return content


def check_regular(file: Path) -> None:
    """Raise if a path leads to something that may never end when it is read, such as a device or a pipe.

    Raises:
        OSError: if there is nothing.
        UserError: naming the file.
    """
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        raise UserError(f"{file} is not a regular file; it is not read")


def stays_inside(name: str) -> bool:
    """Whether a name from outside is a plain relative path, which leads to a file in its folder on every system."""
    parts = name.split("/")
    return not ("\0" in name or "\\" in name or name[1:2] == ":" or any(part in ("", ".", "..") for part in parts))


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
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """`fsync` a folder and everything in it."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota has no room left; safetensors reports it by an error of its own."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(f"os error {code})" in str(error) for code in codes)


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


def _lock(descriptor: int) -> bool:
    """Lock a file that is open for writing, without waiting; returns whether that worked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
