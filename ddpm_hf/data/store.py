"""Decoded images in files that all processes of a machine map into memory, and later runs find again."""

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from ddpm_hf.data.image_set import Content, ImageSet
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import sync

logger = logging.getLogger(__name__)

IMAGES, LABELS, MANIFEST = "images.u8", "labels.i64", "manifest.json"


class ImageStore:
    """A folder of decoded datasets, each in a folder of its own that is complete or does not exist.

    Images are mapped into memory, copied nowhere: processes share them, and a set may be larger than the memory. One
    process decodes while the others wait. What is damaged (a file of another length than it was written with, a
    manifest that does not match its hash) is written anew.

    Args:
        root: made when something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: dict[str, Any], make: Callable[[], Content]) -> ImageSet:
        """Find decoded images, or decode and keep them.

        Args:
            key: everything that they depend on, as JSON can hold it.
            make: opens them; called if they have to be decoded.

        Raises:
            UserError: if the folder cannot hold them.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        folder = self.root / name
        if (found := _read(folder)) is not None:
            return found
        with self._locked(name):
            if (found := _read(folder)) is not None:
                return found
            if folder.exists():
                logger.warning("the decoded images in %s are damaged and are decoded again", folder)
            self._write(folder, key, make())
        if (found := _read(folder)) is None:
            raise OSError(f"{folder} was changed after it was written")
        return found

    def _locked(self, name: str) -> FileLock:
        """A lock, already held, that the system lets go when its process ends, however it ends."""
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
        staged = folder.with_name(f".tmp-{folder.name}")
        writer = _Writer(staged, lambda error: self._cannot_hold(error, content.num_bytes))
        if content.num_bytes is not None and content.num_bytes > shutil.disk_usage(self.root).free:
            raise self._cannot_hold(OSError(errno.ENOSPC, "No space left"), content.num_bytes)
        try:
            writer.begin(IMAGES)
            for image in content:
                writer.put(image.tobytes())
            num_images = writer.end() // math.prod(content.shape)
            labels = content.labels()
            if labels is not None:
                writer.write(LABELS, np.array(labels, "<i8").tobytes())
            body = {
                "key": key,
                "shape": [num_images, *content.shape],
                "has_labels": labels is not None,
                "class_names": content.class_names,
                "skipped": content.skipped,
            }
            writer.write(MANIFEST, json.dumps({"sha256": _hash(body), "body": body}, indent=2).encode())
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)
            sync(self.root)
        finally:
            writer.close()
            shutil.rmtree(staged, ignore_errors=True)

    def _cannot_hold(self, error: OSError, num_bytes: int | None) -> UserError:
        needed = "" if num_bytes is None else f" {num_bytes:,} bytes of"
        return UserError(
            f"dataset.cache_dir: {str(self.root)!r} cannot hold{needed} decoded images: {error.strerror or error}, "
            f"{_free(self.root):,} bytes are free; give another folder, or set dataset.in_memory to true"
        )


class _Writer:
    """Files of a new folder, synced to disk; errors of writing, and no others, become `complain`'s."""

    def __init__(self, folder: Path, complain: Callable[[OSError], Exception]) -> None:
        self.folder, self.complain = folder, complain
        self.descriptor: int | None = None
        self.num_bytes = 0

    def begin(self, name: str) -> None:
        try:
            if self.num_bytes == 0:
                shutil.rmtree(self.folder, ignore_errors=True)  # of a process that was killed
                self.folder.mkdir()
            self.descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        except OSError as error:
            raise self.complain(error) from error

    def put(self, data: bytes) -> None:
        assert self.descriptor is not None
        view = memoryview(data)
        try:
            while view:
                written = os.write(self.descriptor, view)
                view = view[written:]
                self.num_bytes += written
        except OSError as error:
            raise self.complain(error) from error

    def end(self) -> int:
        """Sync the file; returns the bytes written so far."""
        assert self.descriptor is not None
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise self.complain(error) from error
        self.close()
        return self.num_bytes

    def write(self, name: str, data: bytes) -> None:
        self.begin(name)
        self.put(data)
        self.end()

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def _read(folder: Path) -> ImageSet | None:
    """Map the images of a folder; None if they are not all there."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        body = manifest["body"]
        shape = body["shape"]
        is_whole = manifest["sha256"] == _hash(body) and (folder / IMAGES).stat().st_size == math.prod(shape)
        if not is_whole:
            return None
        labels = None
        if body["has_labels"]:
            labels = torch.from_numpy(np.fromfile(folder / LABELS, "<i8"))
            if len(labels) != shape[0]:
                return None
        # private: should anyone write to the tensor, neither the file nor other processes see it
        images = torch.from_file(str(folder / IMAGES), shared=False, size=math.prod(shape), dtype=torch.uint8)
        return ImageSet(images.view(shape), labels, body["class_names"], tuple(body["skipped"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
