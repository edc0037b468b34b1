"""Find the images that a configuration names: the built-in digits, files on this machine, datasets on the Hub."""

import logging
import re
from pathlib import Path

from PIL import Image

from ddpm_hf.config.dataset import DatasetConfig, parse_split
from ddpm_hf.data.decoding import Source
from ddpm_hf.data.local_files import BUILT_IN, ImageFolder, find_local, looks_local, open_image_folder
from ddpm_hf.data.pixels import Example
from ddpm_hf.runtime.cli import waiting
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.hub_client import (
    HubClient,
    HubUnreachableError,
    cached_commit,
    is_offline,
    remember_commit,
)

logger = logging.getLogger(__name__)


def open_source(config: DatasetConfig) -> Source:
    """Open the images that a configuration names.

    Raises:
        UserError: if there is no such dataset, split or column, or it is empty.
    """
    if config.name in BUILT_IN:
        return _open_digits(config)
    local = find_local(config.name)
    for field in ("config", "revision"):
        if local is not None and (given := getattr(config, field)) is not None:
            raise UserError(f"dataset.{field}: given {given!r}; allowed: nothing, since {config.name!r} is local")
    if isinstance(local, ImageFolder):
        return open_image_folder(config, local)
    from ddpm_hf.data.dataset_source import open_dataset  # `datasets` takes a second to import

    return open_dataset(config, local)


def fingerprint_of(config: DatasetConfig) -> str | None:
    """A hash of what identifies the images of a configuration, computed without opening them.

    Returns:
        None for a dataset of the Hub that is not pinned to a commit: only opening it tells.

    Raises:
        UserError: if a folder or file does not exist or holds no images.
    """
    local = find_local(config.name)
    if local is not None:
        return local.fingerprint()
    return f"{config.name}@{config.revision}" if is_commit(config.revision) else None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is the full hash of a commit, rather than a branch or tag, which may move."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def pin_dataset(dataset: DatasetConfig, client: HubClient | None = None) -> DatasetConfig:
    """Pin a dataset of the Hub to its newest commit, so that a run can be repeated.

    Built-in and local datasets stay as they are. Offline, the commit is the one in the cache.

    Args:
        dataset: may name a branch or a tag.
        client: the Hub; None is the default one.

    Returns:
        The dataset with the commit's hash as its revision.

    Raises:
        UserError: if there is no such dataset or revision on the Hub.
    """
    name, revision = dataset.name, dataset.revision
    if name in BUILT_IN or looks_local(name) or Path(name).exists() or is_commit(revision):
        return dataset
    commit = None
    if not is_offline():
        hub = (client or HubClient()).for_lookups
        try:
            with waiting(f"asking the Hub for {name}"):
                commit = hub.call(
                    f"looking up the dataset {name}", lambda: hub.api.dataset_info(name, revision=revision).sha, name
                )
        except HubUnreachableError as error:
            hint = "the commit is taken from the cache; set HF_HUB_OFFLINE=1 to skip the look-up"
            logger.warning("%s: %s", error, hint)
    if commit is not None:
        remember_commit(name, "dataset", revision, commit)
    else:
        commit = cached_commit(name, "dataset", revision)
    return dataset if commit is None else dataset.model_copy(update={"revision": commit})


def _open_digits(config: DatasetConfig) -> Source:
    from sklearn.datasets import load_digits  # takes a second to import

    for field in ("config", "revision", "image_column", "label_column"):
        if (given := getattr(config, field)) is not None:
            raise UserError(f"dataset.{field}: given {given!r}; allowed: nothing, since the built-in digits have none")
    if config.streaming:
        raise UserError("dataset.streaming: given true; allowed: false, since the built-in digits are in memory")
    digits = load_digits()
    part = _select(config.split, len(digits.images))
    arrays = (digits.images[part] * (255 / 16)).round().astype("uint8")  # from sixteen levels of gray, 0 to 16
    numbers = range(len(digits.images))[part]
    examples = [
        Example(Image.fromarray(array), f"digit {number}", int(label))
        for array, number, label in zip(arrays, numbers, digits.target[part], strict=True)
    ]
    return Source(examples, len(examples), has_labels=True, class_names=[str(digit) for digit in range(10)])


def _select(split: str, count: int) -> slice:
    """The digits of `train`, `train[:80%]` or `train[1000:]`."""
    name, *edges = parse_split(split)
    if name != "train":
        raise UserError(f"dataset.split: given {split!r}; allowed: train, or a part of it such as train[:80%]")
    start, stop, unit = edges or (0, count, None)
    scale = count / 100 if unit == "%" else 1
    part = slice(round(start * scale), round(min(stop * scale, count)))
    if not range(count)[part]:
        raise UserError(f"dataset.split: given {split!r}, which selects none of the {count:,} digits")
    return part
