"""All images of a dataset, decoded and kept as uint8."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ddpm_hf.data.images import Pixels


@dataclass(frozen=True)
class ImageSet:
    """Decoded images: a quarter of float32's size, and nothing to wait for in training.

    Attributes:
        images: uint8, 0 to 255; in memory, or mapped from a file.
        labels: the class of each image, -1 for none; None for an unlabelled dataset.
        class_names: the name of each class, if known.
        skipped: the images that could not be read and are left out, each with the reason.
    """

    images: UInt8[Tensor, "num_images channels height width"]
    labels: Int64[Tensor, " num_images"] | None
    class_names: list[str] | None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


class Content(ABC):
    """Images that come one after the other; what else is known of them is complete after the last.

    Attributes:
        shape: channels, height and width of each.
        num_bytes: of all together, at most; None if that is not known before.
        class_names: as in `ImageSet`.
        skipped: as in `ImageSet`.
    """

    shape: tuple[int, int, int]
    num_bytes: int | None
    class_names: list[str] | None
    skipped: list[str]

    @abstractmethod
    def __iter__(self) -> Iterator[Pixels]:
        """Each image in turn."""

    @abstractmethod
    def labels(self) -> list[int] | None:
        """As in `ImageSet`."""


def in_memory(content: Content) -> ImageSet:
    """Put images into this process's own memory."""
    stream = io.BytesIO()
    for image in content:
        stream.write(image.tobytes())
    images = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8).view(-1, *content.shape)
    labels = content.labels()
    labelled = None if labels is None else torch.tensor(labels)
    return ImageSet(images, labelled, content.class_names, tuple(content.skipped))


class Rows(Content):
    """Some of the images of a set, as `Content`.

    Args:
        images: the set.
        rows: which of them.
        skipped: what to say was left out.
    """

    def __init__(self, images: ImageSet, rows: Int64[Tensor, " rows"], skipped: tuple[str, ...] = ()) -> None:
        self.images, self.rows = images, rows
        _, channels, height, width = images.images.shape
        self.shape = (channels, height, width)
        self.num_bytes = len(rows) * channels * height * width
        self.class_names, self.skipped = images.class_names, list(skipped)

    def __iter__(self) -> Iterator[Pixels]:
        for row in self.rows.tolist():
            yield self.images.images[row].numpy()

    def labels(self) -> list[int] | None:
        """The class of each."""
        return None if self.images.labels is None else self.images.labels[self.rows].tolist()
