"""Where images come from: the built-in digits, files on this machine, datasets on the Hub."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from ddpm_hf.config import DatasetConfig
from ddpm_hf.data.local_files import find_local
from ddpm_hf.runtime.errors import UserError

BUILT_IN = ("digits",)

COMMIT = re.compile(r"[0-9a-f]{40}")


class Example(NamedTuple):
    """One image, not yet decoded.

    Attributes:
        file: its bytes, its path or address, or the image itself.
        name: what to call it in a message.
        label: the number or name of its class, if it has one.
    """

    file: bytes | str | Image.Image
    name: str
    label: int | str | None


@dataclass(frozen=True)
class Source:
    """Images in a fixed order, read one after the other.

    Attributes:
        examples: the images.
        num_images: how many there are; None for a stream that does not say.
        has_labels: whether they have classes.
        class_names: the name of each class, if known.
        fingerprint: a hash of what the images are; None for those that are never cached.
    """

    examples: Iterable[Example]
    num_images: int | None
    has_labels: bool
    class_names: list[str] | None
    fingerprint: str | None = None


def open_source(config: DatasetConfig) -> Source:
    """Find the images that a configuration names.

    Raises:
        UserError: if there is no such dataset, split or column, or no image in it.
    """
    if config.name in BUILT_IN:
        return _digits(config)
    from ddpm_hf.data.dataset_source import open_dataset  # `datasets` takes a second to import

    return open_dataset(config)


def fingerprint_of(config: DatasetConfig) -> str | None:
    """What identifies the images of a configuration, found without opening them.

    Returns:
        None for a dataset of the Hub at a branch or tag, which only opening it can tell.

    Raises:
        UserError: if a folder or file does not exist or holds no images.
    """
    local = find_local(config.name)
    if local is not None:
        return local.fingerprint()
    if COMMIT.fullmatch(config.revision or ""):
        return f"{config.name}@{config.revision}"
    return None


def _digits(config: DatasetConfig) -> Source:
    from sklearn.datasets import load_digits

    for field in ("config", "revision", "image_column", "label_column"):
        if (given := getattr(config, field)) is not None:
            raise UserError(f"dataset.{field}: given {given!r}; allowed: nothing, since the built-in digits have none")
    if config.streaming:
        raise UserError("dataset.streaming: given true; allowed: false, since the built-in digits are in memory")
    digits = load_digits()
    part = _part(config.split, len(digits.images))
    # sixteen levels of gray, 0 to 16
    arrays = (digits.images[part] * (255 / 16)).round().astype("uint8")
    numbers = range(len(digits.images))[part]
    examples = [
        Example(Image.fromarray(array), f"digit {number}", int(label))
        for array, number, label in zip(arrays, numbers, digits.target[part], strict=True)
    ]
    return Source(examples, len(examples), has_labels=True, class_names=[str(digit) for digit in range(10)])


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
