"""Features on disk, one file for each batch: any number of images in little memory, and no batch computed twice."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from ddpm_hf.evaluation.extractors.base import Features
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import atomic_write

logger = logging.getLogger(__name__)

BLOCK_BYTES = 16_000_000
"""Of float64 features in memory at a time."""

FEW_ROWS = 8
"""Up to so many rows of a batch are read one by one; for more, reading the batch is faster."""


class FeatureStore:
    """Features of numbered images, with one safetensors file for each batch of images.

    A file exists only once its batch is complete. So an interrupted evaluation continues where it stopped, and
    processes that see the same folder write different batches of one store.

    Args:
        folder: made if it does not exist.
        batch_size: images 0 to batch_size - 1 are the first batch, and so on.
        num_features: length of a feature vector.
        num_classes: number of logits of an image; 0 if the extractor is no classifier.
        check: called at every write and read; it raises to end the work in between.
    """

    def __init__(
        self,
        folder: Path,
        batch_size: int,
        num_features: int,
        num_classes: int = 0,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.batch_size, self.check = folder, batch_size, check
        self.num_features, self.num_classes = num_features, num_classes
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, start: int) -> Path:
        """The file of the batch that begins with this image."""
        return self.folder / f"{start:08}.safetensors"

    def batches(self, num_images: int) -> list[range]:
        """The batches of images 0 to num_images - 1."""
        starts = range(0, num_images, self.batch_size)
        return [range(start, min(start + self.batch_size, num_images)) for start in starts]

    def missing(self, num_images: int) -> list[range]:
        """The batches of images 0 to num_images - 1 that have no file, or one that is damaged or of another shape."""
        return [batch for batch in self.batches(num_images) if not self._holds(batch)]

    def check_complete(self, num_images: int) -> None:
        """Check that images 0 to num_images - 1 are complete once all processes have written their batches.

        Raises:
            UserError: if the processes do not see the same folder.
        """
        if missing := sum(map(len, self.missing(num_images))):
            raise UserError(
                f"{self.folder} misses the features of {missing:,} images that other processes have written: it is not "
                "the same folder on all machines; allowed: an output folder, and a $DDPM_HF_CACHE, that all of them see"
            )

    def write(self, batch: range, features: Features) -> None:
        """Write a batch.

        Args:
            batch: one of `missing`.
            features: one row for each of its images.
        """
        if len(features.values) != len(batch):
            raise ValueError(f"{len(features.values)} rows for {len(batch)} images")
        tensors = {"values": features.values}
        if features.logits is not None and self.num_classes:
            tensors["logits"] = features.logits
        with atomic_write(self.file(batch.start)) as file:
            # save_file would write to a further temporary file beside it, which a kill would leave
            file.write_bytes(save({name: rows.detach().float().cpu().contiguous() for name, rows in tensors.items()}))
        self.check()

    def table(self, num_images: int) -> "FeatureTable":
        """The features of images 0 to num_images - 1, which are complete."""
        return FeatureTable(self, "values", self.num_features, range(num_images))

    def _holds(self, batch: range) -> bool:
        file = self.file(batch.start)
        try:
            with safe_open(file, framework="pt") as stored:
                shapes = {name: stored.get_slice(name).get_shape() for name in stored.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError) as error:
            logger.warning("%s is damaged (%s); its features are computed again", file, error)
            return False
        rows = max(shapes.get("values", [0])[0], len(batch))
        expected = {"values": [rows, self.num_features]}
        if self.num_classes:
            expected["logits"] = [rows, self.num_classes]
        return shapes == expected


@dataclass(frozen=True)
class FeatureTable:
    """Rows of a store, or a selection of them, that are read from disk when they are needed.

    Attributes:
        store: where they are.
        name: "values" or "logits".
        num_features: columns.
        rows: image numbers, in the order of the table.
        cache: folder for what is computed from all rows; None computes it each time.
    """

    store: FeatureStore
    name: str
    num_features: int
    rows: Sequence[int]
    cache: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Sequence[int]) -> "FeatureTable":
        """Some of the rows, as a table."""
        return replace(self, rows=[self.rows[position] for position in positions], cache=None)

    @property
    def logits(self) -> "FeatureTable | None":
        """The logits of the same images; None if the extractor is no classifier."""
        num_classes = self.store.num_classes
        return replace(self, name="logits", num_features=num_classes, cache=None) if num_classes else None

    def cached(self, name: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute something of all rows, or read it from the cache."""
        if self.cache is None:
            return compute()
        # not beside the batches, whose files are named *.safetensors
        return cached_tensors(self.cache / "statistics" / f"{name}-{len(self)}.safetensors", compute)

    def blocks(self, max_rows: int | None = None) -> Iterator[Float64[Tensor, "rows features"]]:
        """All rows in order, with one block in memory at a time."""
        size = max(1, BLOCK_BYTES // (8 * self.num_features))
        size = min(size, max_rows or size)
        for start in range(0, len(self), size):
            yield self.read(range(start, min(start + size, len(self))))

    def read(self, positions: Sequence[int]) -> Float64[Tensor, "rows features"]:
        """Read rows by their positions in this table.

        Raises:
            OSError: if a file is missing or damaged.
        """
        self.store.check()
        numbers = torch.tensor([self.rows[position] for position in positions], dtype=torch.int64)
        found = torch.empty(len(numbers), self.num_features, dtype=torch.float64)
        order = numbers.argsort(stable=True)
        starts, counts = (numbers[order] // self.store.batch_size * self.store.batch_size).unique(return_counts=True)
        for start, at in zip(starts.tolist(), order.split(counts.tolist()), strict=True):
            rows = numbers[at] - start
            try:
                with safe_open(self.store.file(start), framework="pt") as stored:
                    batch = stored.get_slice(self.name)
                    if len(rows) <= FEW_ROWS:
                        found[at] = torch.cat([batch[row : row + 1] for row in rows.tolist()]).double()
                    else:
                        found[at] = batch[:][rows].double()
            except (OSError, SafetensorError) as error:
                raise OSError(f"{self.store.file(start)} cannot be read: {error}; evaluate again") from error
        return found


def cached_tensors(file: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors from a file; compute and write them if it is missing or damaged."""
    try:
        return load_file(file)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        logger.warning("%s is damaged (%s); what it holds is computed again", file, error)
    found = compute()
    try:
        with atomic_write(file) as temporary:
            temporary.write_bytes(save(found))
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be written (%s); what it would hold is computed each time", file, error)
    return found


def own_share(batches: list[range]) -> list[range]:
    """The batches that this process computes; all processes call this together, before any of them writes."""
    state = PartialState()
    state.wait_for_everyone()
    return batches[state.process_index :: state.num_processes]


def progress_bar(total: int, what: str, unit: str = "img", quiet: bool = False, delay: float = 1) -> "tqdm[object]":
    """A progress bar of the main process, with the time left.

    Args:
        total: number of units.
        what: is done.
        unit: of the work.
        quiet: show nothing.
        delay: seconds after which it appears.
    """
    disable = quiet or not cli.is_main_process()
    return tqdm(total=total, desc=what, unit=unit, disable=disable, dynamic_ncols=True, delay=delay)
