"""All images of a dataset, decoded once and kept as uint8."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from tqdm import tqdm

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data.images import to_array
from ddpm_hf.data.sources import open_source
from ddpm_hf.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSet:
    """Decoded images in memory: a quarter of float32's size, and nothing to wait for in training.

    Attributes:
        images: uint8, 0 to 255.
        labels: the class of each image, or None for an unlabelled dataset.
        class_names: the name of each class, if known.
    """

    images: UInt8[Tensor, "num_images channels height width"]
    labels: Int64[Tensor, " num_images"] | None
    class_names: list[str] | None

    def __len__(self) -> int:
        return len(self.images)


def load_image_set(dataset: DatasetConfig, model: ModelConfig, progress: bool = False) -> ImageSet:
    """Decode every image of a dataset to the size and channels of a model.

    Images that cannot be read are named in a warning and left out.

    Args:
        dataset: where the images come from.
        model: gives image_size, image_channels and num_classes.
        progress: show a bar.

    Raises:
        UserError: if there is no such dataset, no readable image, or no label for a class-conditional model.
    """
    source = open_source(dataset)
    size, channels = model.image_size, model.image_channels
    arrays = np.empty((len(source), channels, size, size), np.uint8)
    kept: list[int] = []
    damaged: list[str] = []
    bar = tqdm(source.decoded(), desc="decoding images", total=len(source), disable=not progress, delay=2, unit="img")
    for index, image in enumerate(bar):
        if isinstance(image, ValueError):
            damaged.append(f"{source.names[index]} ({image})")
            continue
        arrays[len(kept)] = to_array(image, size, channels)
        kept.append(index)
    if damaged:
        shown = "; ".join(damaged[:5]) + ("; …" if len(damaged) > 5 else "")
        if not kept:
            raise UserError(f"dataset.name: none of the {len(damaged)} images of {dataset.name!r} can be read: {shown}")
        logger.warning("%d of %d images cannot be read and are left out: %s", len(damaged), len(source), shown)
    labels = None if source.labels is None else torch.tensor(source.labels)[kept]
    _check_labels(labels, model, dataset)
    return ImageSet(torch.from_numpy(arrays[: len(kept)]), labels, source.class_names)


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
