"""The images that a configuration names, those to train on and those that are held out."""

import logging
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data.decoding import Decoding
from ddpm_hf.data.image_set import ImageSet, Rows, in_memory
from ddpm_hf.data.images import DECODER, Transform
from ddpm_hf.data.sources import BUILT_IN, Source, fingerprint_of, open_source
from ddpm_hf.data.store import ImageStore
from ddpm_hf.runtime.cache_folder import cache_folder
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.randomness import generator_at

logger = logging.getLogger(__name__)


def load_image_set(dataset: DatasetConfig, model: ModelConfig, progress: bool = False) -> ImageSet:
    """Every image of `dataset.split` in the size and channels of a model, held-out ones included.

    They are decoded once, and found again in `dataset.cache_dir` by later runs and other processes. Images that cannot
    be read are named in a warning and left out.

    Args:
        dataset: where the images come from.
        model: gives image_size, image_channels and num_classes.
        progress: show a bar.

    Raises:
        UserError: if there is no such dataset, no readable image, an unreadable one where `dataset.strict` is set, or
            no label for a class-conditional model.
    """
    return _checked(_Loader(dataset, model, progress).whole, dataset, model)


def load_image_sets(
    dataset: DatasetConfig, model: ModelConfig, seed: int, progress: bool = False
) -> tuple[ImageSet, ImageSet | None]:
    """The images to train on, and those that `dataset.validation_split` or `dataset.validation_fraction` hold out.

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
        try:
            return training, load_image_set(other, model, progress)
        except UserError as error:
            message = str(error).replace("dataset.split", "dataset.validation_split", 1)
            raise UserError(message) from error
    if not dataset.validation_fraction:
        return load_image_set(dataset, model, progress), None
    loader = _Loader(dataset, model, progress)
    training, validation = (loader.part(seed, held_out) for held_out in (False, True))
    return _checked(training, dataset, model), _checked(validation, dataset, model)


def held_out_rows(num_images: int, fraction: float, seed: int) -> Bool[Tensor, " num_images"]:
    """Which images a fraction holds out: a function of their number and the seed.

    Args:
        num_images: at least 2.
        fraction: above 0, below 1; at least one image is held out, and one is not.
        seed: of the run.
    """
    count = min(max(1, round(num_images * fraction)), num_images - 1)
    chosen = torch.randperm(num_images, generator=generator_at(seed, "validation"))[:count]
    return torch.zeros(num_images, dtype=torch.bool).index_fill_(0, chosen, True)


class _Loader:
    """Loads a split or its parts, from memory for the built-in digits, or else as the configuration says."""

    def __init__(self, dataset: DatasetConfig, model: ModelConfig, progress: bool) -> None:
        self.dataset, self.progress = dataset, progress
        self.transform = Transform(model.image_size, model.image_channels, dataset.resize, dataset.background)
        self.source: Source | None = None
        self.store: ImageStore | None = None
        if dataset.name not in BUILT_IN and not dataset.in_memory:
            folder = dataset.cache_dir
            self.store = ImageStore(Path(folder).expanduser() if folder else cache_folder() / "images")
            self.key = self._key()

    def _key(self) -> dict[str, Any]:
        dataset = self.dataset
        fingerprint = fingerprint_of(dataset)
        if fingerprint is None:
            self.source = open_source(dataset)
            fingerprint = self.source.fingerprint
        return {
            "images": fingerprint,
            "config": dataset.config,
            "split": dataset.split,
            "image_column": dataset.image_column,
            "label_column": dataset.label_column,
            "transform": asdict(self.transform),
            "decoder": DECODER,
        }

    @cached_property
    def whole(self) -> ImageSet:
        """The split."""
        return in_memory(self._decoding()) if self.store is None else self.store.get(self.key, self._decoding)

    def part(self, seed: int, held_out: bool) -> ImageSet:
        """The images that the fraction holds out, or all others."""
        fraction = self.dataset.validation_fraction
        if self.store is None:
            return in_memory(self._rows(seed, held_out))
        key = {**self.key, "validation_fraction": fraction, "seed": seed, "held_out": held_out}
        return self.store.get(key, lambda: self._rows(seed, held_out))

    def _rows(self, seed: int, held_out: bool) -> Rows:
        images, fraction = self.whole, self.dataset.validation_fraction
        if len(images) < 2:
            raise UserError(
                f"dataset.validation_fraction: given {fraction}; allowed: 0, since {self.dataset.name!r} has one image"
            )
        is_held_out = held_out_rows(len(images), fraction, seed)
        rows = (is_held_out if held_out else ~is_held_out).nonzero().flatten()
        return Rows(images, rows, () if held_out else images.skipped)

    def _decoding(self) -> Decoding:
        source = self.source or open_source(self.dataset)
        return Decoding(source, self.transform, self.dataset.name, self.progress)


def _checked(images: ImageSet, dataset: DatasetConfig, model: ModelConfig) -> ImageSet:
    if images.skipped:
        count = len(images.skipped)
        found = f"{count:,} image{'s' if count > 1 else ''} of {dataset.name!r} cannot be read"
        if dataset.strict:
            raise UserError(f"dataset.strict: {found}: {'; '.join(images.skipped)}")
        shown = "; ".join(images.skipped[:5]) + ("; …" if len(images.skipped) > 5 else "")
        logger.warning("%s, left out: %s", found, shown)
    _check_labels(images.labels, model, dataset)
    return images


def _check_labels(labels: Tensor | None, model: ModelConfig, dataset: DatasetConfig) -> None:
    if model.num_classes is None:
        return
    if labels is None:
        raise UserError(
            f"model_config.num_classes: given {model.num_classes}, but {dataset.name!r} has no column of class labels; "
            "name one in dataset.label_column, or leave num_classes out"
        )
    if labels.min() < 0 or labels.max() >= model.num_classes:
        raise UserError(
            f"model_config.num_classes: given {model.num_classes}; the labels of {dataset.name!r} reach from "
            f"{labels.min()} to {labels.max()}, so at least {labels.max() + 1} classes with labels from 0 are needed"
        )
