"""Features on disk, row by row: any number of images in the memory of one batch, and nothing done twice."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from ddpm_hf.evaluation.features import Features
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import write_text_atomic

BLOCK_BYTES = 16_000_000
"""Of float64 features that are in memory at a time."""

DONE_TYPE = np.dtype("<u4")


@dataclass(frozen=True)
class Layout:
    """The shape of a store.

    Attributes:
        batch_size: images 0 to batch_size - 1 are batch 0, and so on.
        num_features: columns of the features.
        num_classes: columns of the logits; 0 for none.
    """

    batch_size: int
    num_features: int
    num_classes: int


class FeatureStore:
    """Rows of features (and logits) in one file each, and how many rows of each batch are there.

    A batch is marked as done only after its rows are synced to disk, so an interrupted run finds what it finished and
    nothing else. Processes of one machine, or of one shared file system, write different batches of the same store.

    Args:
        folder: made if it does not exist.
        layout: must be that of an earlier use of the folder.
        check: called at every write and every read; what it raises ends the work between them.

    Raises:
        ValueError: if the folder holds rows of another layout.
    """

    def __init__(self, folder: Path, layout: Layout, check: Callable[[], object] = lambda: None) -> None:
        self.folder, self.layout, self.check = folder, layout, check
        folder.mkdir(parents=True, exist_ok=True)
        description = folder / "layout.json"
        if description.exists() and json.loads(description.read_text()) != asdict(layout):
            raise ValueError(f"{folder} holds features of another layout: {description.read_text()}")
        write_text_atomic(description, json.dumps(asdict(layout)))
        self._values, self._logits, self._done = folder / "features.f32", folder / "logits.f32", folder / "done.u32"
        for file in (self._values, self._logits, self._done):
            file.touch()

    def missing(self, num_images: int) -> list[range]:
        """The batches, as ranges of image numbers, that are still to be written for images 0 to num_images - 1."""
        size = self.layout.batch_size
        done = np.fromfile(self._done, DONE_TYPE)
        starts = range(0, num_images, size)
        batches = [range(start, min(start + size, num_images)) for start in starts]
        return [each for number, each in enumerate(batches) if number >= len(done) or done[number] < len(each)]

    def check_complete(self, num_images: int) -> None:
        """Make sure that images 0 to num_images - 1 are all there, once all processes have written theirs.

        Raises:
            UserError: if some are not, since processes do not see the same folder.
        """
        if missing := sum(map(len, self.missing(num_images))):
            raise UserError(
                f"{self.folder} misses the features of {missing:,} images that other processes have written: it is not "
                "the same folder on all machines; allowed: an output folder, and a $DDPM_HF_CACHE, that all of them see"
            )

    def write(self, batch: range, features: Features) -> None:
        """Write the rows of a batch, then mark it as done.

        Args:
            batch: one of `missing`.
            features: one row for each of its images.
        """
        if len(features.values) != len(batch):
            raise ValueError(f"{len(features.values)} rows for {len(batch)} images")
        _put(self._values, batch.start * self.layout.num_features * 4, features.values)
        if features.logits is not None and self.layout.num_classes:
            _put(self._logits, batch.start * self.layout.num_classes * 4, features.logits)
        number = batch.start // self.layout.batch_size
        _write_at(self._done, number * DONE_TYPE.itemsize, np.array([len(batch)], DONE_TYPE).tobytes())
        self.check()

    def table(self, num_images: int) -> "FeatureTable":
        """The features of images 0 to num_images - 1, all of which are there."""
        return FeatureTable(self._values, self.layout.num_features, range(num_images), self.check)

    def logits(self, num_images: int) -> "FeatureTable | None":
        """The logits of images 0 to num_images - 1; None if there are no classes."""
        classes = self.layout.num_classes
        return FeatureTable(self._logits, classes, range(num_images), self.check) if classes else None


class FeatureTable:
    """Rows of a store, or some of them, read when they are asked for.

    Args:
        file: float32 rows.
        num_features: columns.
        rows: the numbers of the rows that belong to this table, in order.
        check: called at every read; what it raises ends the work that reads.
    """

    def __init__(
        self, file: Path, num_features: int, rows: Sequence[int], check: Callable[[], object] = lambda: None
    ) -> None:
        self.file, self.num_features, self.rows, self.check = file, num_features, rows, check

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Sequence[int]) -> "FeatureTable":
        """Some of the rows, as a table of its own."""
        return FeatureTable(self.file, self.num_features, [self.rows[position] for position in positions], self.check)

    def blocks(self, max_rows: int | None = None) -> Iterator[Float64[Tensor, "rows features"]]:
        """All rows in float64, a block in memory at a time."""
        size = max(1, BLOCK_BYTES // (8 * self.num_features))
        size = min(size, max_rows or size)
        for start in range(0, len(self), size):
            yield self.read(range(start, min(start + size, len(self))))

    def read(self, positions: Sequence[int]) -> Float64[Tensor, "rows features"]:
        """Rows by their positions in this table, in float64."""
        self.check()
        numbers = [self.rows[position] for position in positions]
        width = self.num_features * 4
        with self.file.open("rb", buffering=0) as stream:
            if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
                data = os.pread(stream.fileno(), len(numbers) * width, numbers[0] * width)
            else:
                data = b"".join(os.pread(stream.fileno(), width, number * width) for number in numbers)
        if len(data) != len(numbers) * width:
            raise OSError(f"{self.file} ends before the last of its rows; delete its folder to draw them again")
        rows: Float32[np.ndarray, "rows features"] = np.frombuffer(data, "<f4").reshape(-1, self.num_features)
        return torch.from_numpy(rows.astype(np.float64))


def _put(file: Path, offset: int, rows: Float32[Tensor, "rows columns"]) -> None:
    _write_at(file, offset, np.ascontiguousarray(rows.detach().cpu().numpy(), "<f4").tobytes())


def _write_at(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b", buffering=0) as stream:
        view = memoryview(data)
        while view:
            written = os.pwrite(stream.fileno(), view, offset)
            view, offset = view[written:], offset + written
        os.fsync(stream.fileno())
