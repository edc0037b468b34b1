"""Load the images that a configuration names: those to train on, and those that are held out."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data.decoding import Content, Source, decode
from ddpm_hf.data.image_set import ImageSet, ImageStore, read_stored
from ddpm_hf.data.local_files import BUILT_IN, ImageFolder, find_local
from ddpm_hf.data.pixels import DECODER, UNREADABLE, Transform
from ddpm_hf.data.sources import fingerprint_of, open_source
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import cache_folder
from ddpm_hf.runtime.randomness import generator_at

logger = logging.getLogger(__name__)


def load_image_set(dataset: DatasetConfig, model: ModelConfig, progress: bool = False) -> ImageSet:
    """Load every image of `dataset.split` in the size and channels of a model, held-out ones included.

    They are decoded once; later runs and other processes find them in `dataset.cache_dir`. Images that cannot be read
    are skipped, and named in a warning.

    Args:
        dataset: where the images come from.
        model: gives image_size, image_channels and num_classes.
        progress: show a bar.

    Raises:
        UserError: if there is no such dataset, no readable image, an unreadable one although `dataset.strict` is set,
            or no label for a class-conditional model.
    """
    return _check(_Loader(dataset, model, progress).all_images, dataset, model)


def load_image_sets(
    dataset: DatasetConfig, model: ModelConfig, seed: int, progress: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """Load the images to train on, and those that `dataset.validation_split` or `validation_fraction` hold out.

    Args:
        dataset: where the images come from.
        model: gives image_size, image_channels and num_classes.
        seed: of the run; decides which images a fraction holds out.
        progress: show a bar.

    Returns:
        The training images; and the held-out ones, None if there are none.

    Raises:
        UserError: as `load_image_set`.
    """
    if dataset.validation_split is not None:
        other = dataset.model_copy(update={"split": dataset.validation_split})
        training = load_image_set(dataset, model, progress)
        if dataset.value_range == "auto" and training.value_range is not None:
            other = other.model_copy(update={"value_range": training.value_range})
        try:
            return training, load_image_set(other, model, progress)
        except UserError as error:
            raise UserError(str(error).replace("dataset.split", "dataset.validation_split", 1)) from error
    if not dataset.validation_fraction:
        return load_image_set(dataset, model, progress), None
    loader = _Loader(dataset, model, progress)
    training, validation = (loader.load_part(seed, is_held_out) for is_held_out in (False, True))
    return _check(training, dataset, model), _check(validation, dataset, model)


def make_transform(dataset: DatasetConfig, size: tuple[int, int], channels: int) -> Transform:
    """The way from an image to one of a model's shape that a dataset's options describe.

    Args:
        dataset: how images are resized, what lies behind them, and which values are black and white.
        size: height and width, in pixels.
        channels: 1 for gray, 3 for RGB.
    """
    value_range = None if dataset.value_range == "auto" else dataset.value_range
    height, width = size
    side_or_sides = height if height == width else size  # a cache of squares is named by their side
    return Transform(side_or_sides, channels, dataset.resize, dataset.background, value_range, dataset.pages)


def held_out_rows(num_images: int, fraction: float, seed: int) -> Bool[Tensor, " num_images"]:
    """Choose the images that a fraction holds out: a function of their number and the seed.

    Args:
        num_images: at least 2.
        fraction: above 0, below 1; at least one image is held out, and one is not.
        seed: of the run.

    Returns:
        Whether each image is held out.
    """
    count = min(max(1, round(num_images * fraction)), num_images - 1)
    chosen = torch.randperm(num_images, generator=generator_at(seed, "validation"))[:count]
    return torch.zeros(num_images, dtype=torch.bool).index_fill_(0, chosen, True)


class _Loader:
    """Loads a split or a part of it: from the cache, or into memory if the dataset is built in or says so."""

    def __init__(self, dataset: DatasetConfig, model: ModelConfig, progress: bool) -> None:
        self.dataset, self.progress = dataset, progress
        self.transform = make_transform(dataset, model.sides, model.image_channels)
        self.source: Source | None = None
        self.store: ImageStore | None = None
        if dataset.name not in BUILT_IN and not dataset.in_memory:
            folder = dataset.cache_dir
            self.store = ImageStore(Path(folder).expanduser() if folder else cache_folder() / "images")

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that the decoded images depend on."""
        dataset = self.dataset
        fingerprint = fingerprint_of(dataset)
        if fingerprint is None:
            self.source = open_source(dataset)
            fingerprint = self.source.fingerprint
        transform = asdict(self.transform)
        for field, default in (("value_range", None), ("pages", "first")):
            if transform[field] == default:  # the first version had neither, and its entries are found
                del transform[field]
        return {
            "images": fingerprint,
            "config": dataset.config,
            "split": dataset.split,
            "image_column": dataset.image_column,
            "label_column": dataset.label_column,
            "transform": transform,
            "decoder": DECODER,
        }

    def _load(self, make: Callable[[], Content], **more_key: Any) -> ImageSet:
        if self.store is None:
            return ImageSet.in_memory(make())
        key = {**self.key, **more_key}
        if "value_range" in key["transform"]:  # what auto chose, in a run that is resumed
            transform = {name: value for name, value in key["transform"].items() if name != "value_range"}
            found = read_stored(self.store.folder({**key, "transform": transform}))
            if found is not None and found.value_range in (None, self.transform.value_range):
                return found
        return self.store.get(key, make)

    @cached_property
    def all_images(self) -> ImageSet:
        """The whole split."""

        def make() -> Content:
            source = self.source or open_source(self.dataset)
            scratch = None if self.store is None else self.store.root
            return decode(source, self.transform, self.dataset.name, self.progress, scratch)

        return self._load(make)

    def load_part(self, seed: int, is_held_out: bool) -> ImageSet:
        """Load the images that the fraction holds out, or all others."""
        fraction = self.dataset.validation_fraction

        def make() -> Content:
            images, name = self.all_images, self.dataset.name
            if len(images) < 2:
                raise UserError(
                    f"dataset.validation_fraction: given {fraction}; allowed: 0, since {name!r} has one image"
                )
            rows = (held_out_rows(len(images), fraction, seed) == is_held_out).nonzero().flatten()
            return images.select(rows, () if is_held_out else images.skipped)

        return self._load(make, validation_fraction=fraction, seed=seed, held_out=is_held_out)


def _check(images: ImageSet, dataset: DatasetConfig, model: ModelConfig) -> ImageSet:
    """Report skipped images and what else is to be known, and refuse labels that do not fit the model."""
    if images.skipped:
        count = len(images.skipped)
        found = f"{count:,} image{'s' if count > 1 else ''} of {dataset.name!r} cannot be read"
        if dataset.strict:
            raise UserError(f"dataset.strict: {found}: {'; '.join(images.skipped)}")
        logger.warning("%s, skipped: %s", found, "; ".join(_examples(images.skipped)))
    for note in images.notes:
        logger.warning("%r: %s", dataset.name, note)
    labels, num_classes = images.labels, model.num_classes
    if num_classes is None:
        return images
    given = f"model_config.num_classes: given {num_classes}, but"
    if labels is None:
        local = find_local(dataset.name) if dataset.name not in BUILT_IN else None
        why = ""
        if isinstance(local, ImageFolder):
            columns = local.table()[1]
            why = f": {local.classes()[1]}" + (f"; its metadata have {', '.join(columns)}" if columns else "")
        raise UserError(
            f"model_config.num_classes: given {num_classes}, but {dataset.name!r} has no column of class labels{why}; "
            "name one in dataset.label_column, or leave num_classes out"
        )
    if num_blank := int((labels == -1).sum()):
        column = f" in column {dataset.label_column!r}" if dataset.label_column else ""
        raise UserError(
            f"{given} {num_blank:,} of the {len(labels):,} images of {dataset.name!r} have no class{column}; "
            "fill in what is blank, take these images out, or leave num_classes out"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{given} the labels of {dataset.name!r} reach from {labels.min()} to {labels.max()}; needed: labels from "
            f"0, and at least {labels.max() + 1} classes"
        )
    known = len(images.class_names) if images.class_names else int(labels.max()) + 1
    if num_classes > known:
        has = f"{known:,} class{'es' if known > 1 else ''}"
        logger.warning("%s %r has %s; the others are never trained", given, dataset.name, has)
    return images


def _examples(skipped: tuple[str, ...]) -> list[str]:
    """The first five images that were skipped; those of one kind that Pillow cannot read as one."""
    reasons = sorted(set(UNREADABLE.values()), key=len)
    kinds = [next((reason for reason in reasons if each.endswith(f"({reason})")), None) for each in skipped]
    groups = [
        f"{kinds.count(reason):,} of {reason} (such as {skipped[kinds.index(reason)].removesuffix(f' ({reason})')})"
        for reason in dict.fromkeys(kinds)
        if reason is not None
    ]
    others = [each for each, kind in zip(skipped, kinds, strict=True) if kind is None]
    return [*groups, *others[:5], *["…"] * (len(others) > 5)]
