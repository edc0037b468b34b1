"""Where images come from: the built-in digits, folders and parquet files on disk, datasets on the Hub."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.images import open_image
from ddpm_hf.errors import UserError

BUILT_IN = ("digits",)


@dataclass(frozen=True)
class Source:
    """Encoded images in a fixed order.

    Attributes:
        files: the bytes or path of each image, or the decoded image.
        names: what to call each image in a message.
        labels: the class of each image, if it has one.
        class_names: the name of each class, if known.
    """

    files: Sequence[Any]
    names: Sequence[str]
    labels: list[int] | None
    class_names: list[str] | None

    def __len__(self) -> int:
        return len(self.files)

    def decoded(self) -> Iterator[Image.Image | ValueError]:
        """Each image in turn, or why it cannot be read."""
        for file in self.files:
            try:
                yield file if isinstance(file, Image.Image) else open_image(file)
            except ValueError as error:
                yield error


def open_source(config: DatasetConfig) -> Source:
    """Find the images that a configuration names.

    Raises:
        UserError: if there is no such dataset, split or column, or no image in it.
    """
    if config.name in BUILT_IN:
        return _digits(config)
    from ddpm_hf.data.dataset_source import open_dataset  # `datasets` takes a second to import

    return open_dataset(config)


def _digits(config: DatasetConfig) -> Source:
    from sklearn.datasets import load_digits

    for field in ("config", "revision", "image_column", "label_column"):
        if (given := getattr(config, field)) is not None:
            raise UserError(f"dataset.{field}: given {given!r}; allowed: nothing, since the built-in digits have none")
    digits = load_digits()
    part = _part(config.split, len(digits.images))
    # sixteen levels of gray, 0 to 16
    arrays = (digits.images[part] * (255 / 16)).round().astype("uint8")
    return Source(
        files=[Image.fromarray(array) for array in arrays],
        names=[f"digit {index}" for index in range(len(digits.images))[part]],
        labels=digits.target[part].tolist(),
        class_names=[str(digit) for digit in range(10)],
    )


def _part(split: str, count: int) -> slice:
    """What `train`, `train[:80%]` or `train[1000:]` takes of the digits, as the `datasets` library writes it."""
    match = re.fullmatch(r"train(?:\[(\d*)(%?):(\d*)(%?)\])?", split)
    if match is None:
        raise UserError(f"dataset.split: given {split!r}; allowed: train, or a part of it such as train[:80%]")
    start, start_percent, stop, stop_percent = match.groups(default="")
    edges = [
        None if not edge else round(int(edge) * count / 100) if percent else int(edge)
        for edge, percent in ((start, start_percent), (stop, stop_percent))
    ]
    part = slice(*edges)
    if not range(count)[part]:
        raise UserError(f"dataset.split: given {split!r}, which takes none of the {count:,} digits")
    return part
