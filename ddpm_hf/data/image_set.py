"""The decoded images of a dataset: in memory, or in files that processes share and later runs reuse."""

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Int64, UInt8
from torch import Tensor

from ddpm_hf.data.decoding import Content
from ddpm_hf.data.pixels import ValueRange
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import fsync, remove
from ddpm_hf.runtime.randomness import generator_at
from ddpm_hf.runtime.values import read_json

logger = logging.getLogger(__name__)

IMAGES, LABELS, MANIFEST = "images.u8", "labels.i64", "manifest.json"

MAX_MANIFEST_BYTES = 2**30
"""Longest manifest that is read; it names every image that was skipped."""

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""Of writing; errors of reading a source carry no number."""


@dataclass(frozen=True)
class ImageSet:
    """Decoded images, as uint8: a quarter of the size of float32.

    Attributes:
        images: 0 to 255; in memory, or mapped from a file.
        labels: the class of each image, -1 for none; None for an unlabelled dataset.
        class_names: the name of each class, if known.
        skipped: the images that could not be read, each with the reason.
        notes: what a person should know about how the others were read.
        value_range: black and white of those of 16 bits, 32 bits or floats; None if there are none.
    """

    images: UInt8[Tensor, "num_images channels height width"]
    labels: Int64[Tensor, " num_images"] | None
    class_names: list[str] | None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    value_range: ValueRange | None = None

    @classmethod
    def in_memory(cls, content: Content) -> "ImageSet":
        """Read all images into this process's own memory."""
        stream = io.BytesIO()
        for image in content.images:
            stream.write(image.tobytes())
        images = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8).view(-1, *content.shape)
        labels = None if content.labels is None else torch.tensor(content.labels)
        rest = (tuple(content.skipped), tuple(content.notes), content.value_range)
        return cls(images, labels, content.class_names, *rest)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Int64[Tensor, " rows"], skipped: tuple[str, ...] = ()) -> Content:
        """Some of the images, to be copied."""
        images = (self.images[row].numpy() for row in rows.tolist())
        _, channels, height, width = self.images.shape
        labels = None if self.labels is None else self.labels[rows].tolist()
        rest = (labels, self.class_names, list(skipped), list(self.notes), self.value_range)
        return Content(images, (channels, height, width), len(rows), *rest)


class SampleOrder:
    """The order in which training sees the images: one permutation of all of them after the other.

    A batch may cross the end of an epoch, so every image is seen exactly once per epoch and none is dropped. The index
    at a position depends on the seed and the position only, so a resumed run needs no state of it.

    Args:
        num_images: at least 1.
        seed: of the run.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        if num_images < 1:
            raise ValueError(f"num_images: given {num_images}; allowed: at least 1")
        self.num_images = num_images
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Int64[Tensor, " num_images"]:
        return torch.randperm(self.num_images, generator=generator_at(self.seed, "order", epoch))

    def indices(self, start: int, count: int) -> Int64[Tensor, " count"]:
        """The indices at positions start to start + count - 1."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.num_images)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.cat(parts)


class ImageStore:
    """A folder of decoded datasets, each in a folder of its own that is complete or does not exist.

    Images are memory-mapped: processes share them, and a set may be larger than the memory. One process decodes while
    the others wait. A damaged entry (a file of the wrong length, a manifest that does not match its hash) is written
    again.

    Args:
        root: created when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: dict[str, Any], make: Callable[[], Content]) -> ImageSet:
        """Find decoded images, or decode and store them.

        Args:
            key: everything that they depend on, as JSON values.
            make: opens the images; called if they must be decoded.

        Raises:
            UserError: if the folder cannot hold them.
        """
        folder = self.folder(key)
        if (found := read_stored(folder)) is not None:
            return found
        with self._lock(folder.name):
            if (found := read_stored(folder)) is not None:
                return found
            if folder.exists():
                logger.warning("the decoded images in %s are damaged and are decoded again", folder)
            self._write(folder, key, make())
        if (found := read_stored(folder)) is None:
            raise OSError(f"{folder} was changed after it was written")
        return found

    def folder(self, key: dict[str, Any]) -> Path:
        """Where the images of a key are, or would be."""
        return self.root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]

    def _lock(self, name: str) -> FileLock:
        """A lock, already held, that the system releases when its process ends, however it ends."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / f".{name}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                logger.info("another process decodes the same images into %s; waiting for it", self.root / name)
                lock.acquire()
        except OSError as error:
            raise self._cannot_hold(error, None) from error
        return lock

    def _write(self, folder: Path, key: dict[str, Any], content: Content) -> None:
        """Write aside, sync and rename."""
        size, count = math.prod(content.shape), content.num_images
        num_bytes = None if count is None else count * size
        staged = folder.with_name(f".tmp-{folder.name}")
        try:
            if num_bytes is not None and num_bytes > shutil.disk_usage(self.root).free:
                raise OSError(errno.ENOSPC, "No space left")
            self._remove_leftovers(staged)
            staged.mkdir()
            with (staged / IMAGES).open("wb", buffering=0) as stream:
                for image in content.images:
                    _write_all(stream, image.tobytes())
                num_images = stream.tell() // size
            if content.labels is not None:
                (staged / LABELS).write_bytes(np.array(content.labels, "<i8").tobytes())
            body = {
                "key": key,
                "shape": [num_images, *content.shape],
                "has_labels": content.labels is not None,
                "class_names": content.class_names,
                "skipped": content.skipped,
                "notes": content.notes,
                "value_range": content.value_range,
            }
            (staged / MANIFEST).write_text(json.dumps({"sha256": _hash(body), "body": body}, indent=2))
            for file in (*staged.iterdir(), staged):
                fsync(file)
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)
            fsync(self.root)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise self._cannot_hold(error, num_bytes) from error
            raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _remove_leftovers(self, own: Path) -> None:
        """Remove what killed processes were writing, of this set or others; a living one holds the lock of its set."""
        remove(own)  # whose lock this process holds
        for left in self.root.glob(".tmp-*"):
            lock = FileLock(self.root / f".{left.name.removeprefix('.tmp-')}.lock")
            with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
                remove(left)

    def _cannot_hold(self, error: OSError, num_bytes: int | None) -> UserError:
        existing = next(path for path in (self.root, *self.root.parents) if path.exists())
        num_free = shutil.disk_usage(existing).free
        needed = "" if num_bytes is None else f" {num_bytes:,} bytes of"
        return UserError(
            f"dataset.cache_dir: {str(self.root)!r} cannot hold{needed} decoded images: {error.strerror or error}, "
            f"{num_free:,} bytes are free; give another folder, or set dataset.in_memory to true"
        )


def _write_all(stream: io.FileIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take only a part at a time."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def read_stored(folder: Path) -> ImageSet | None:
    """Map the images of an entry of `ImageStore`; None if it is incomplete or damaged."""
    try:
        manifest = read_json(folder / MANIFEST, MAX_MANIFEST_BYTES)
        body = manifest["body"]
        shape, labels = body["shape"], None
        if manifest["sha256"] != _hash(body) or (folder / IMAGES).stat().st_size != math.prod(shape):
            return None
        if body["has_labels"]:
            labels = torch.from_numpy(np.fromfile(folder / LABELS, "<i8"))
            if len(labels) != shape[0]:
                return None
        # not shared: writing to the tensor changes neither the file nor what other processes see
        images = torch.from_file(str(folder / IMAGES), shared=False, size=math.prod(shape), dtype=torch.uint8)
        notes, value_range = body.get("notes", ()), body.get("value_range")  # the first version had neither
        rest = (tuple(body["skipped"]), tuple(notes), None if value_range is None else tuple(value_range))
        return ImageSet(images.view(shape), labels, body["class_names"], *rest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
