"""Decode the images of a source, several at a time and in order."""

import itertools
import math
import os
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import fsspec
from PIL import Image
from tqdm import tqdm

from ddpm_hf.data.image_set import Content
from ddpm_hf.data.images import Pixels, Transform, open_image
from ddpm_hf.data.sources import Example, Source
from ddpm_hf.runtime.errors import UserError

CHUNK = 16
"""Images that a thread takes at a time."""

MAX_THREADS = 16


class Decoding(Content):
    """One pass over a source.

    Pillow decodes and resizes outside of Python's lock, so threads decode photographs on all cores. What is in memory
    at a time is a few images for each thread, however many there are.

    Args:
        source: where the images come from.
        transform: what they become.
        what: the dataset, for messages.
        progress: show a bar.

    Attributes:
        shape: of each image.
        num_bytes: of all images together; None if the source does not know how many there are.
        class_names: the name of each class, if known; complete after the pass.
        skipped: the images that cannot be read, and why; complete after the pass.
    """

    def __init__(self, source: Source, transform: Transform, what: str, progress: bool = False) -> None:
        self.source, self.transform, self.what, self.progress = source, transform, what, progress
        self.shape = (transform.channels, transform.size, transform.size)
        self.num_bytes = None if source.num_images is None else source.num_images * math.prod(self.shape)
        self.class_names = source.class_names
        self.skipped: list[str] = []
        self._labels: list[int | str | None] = []

    def __iter__(self) -> Iterator[Pixels]:
        """Decode every image that can be read.

        Raises:
            UserError: in the end, if there was none.
        """
        num_images = 0
        total = self.source.num_images
        # the bar is that of the one process of a machine that decodes, whichever it is
        shown = self.progress or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        bar = tqdm(desc="decoding images", total=total, disable=not shown, delay=2, unit="img", dynamic_ncols=True)
        with bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about what is said better in `skipped`
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for example, found in _in_order(self.source, self.transform):
                bar.update()
                if isinstance(found, ValueError):
                    self.skipped.append(f"{example.name} ({found})")
                    continue
                num_images += 1
                self._labels.append(example.label)
                yield found
        if not num_images:
            raise UserError(
                f"dataset.name: none of the {len(self.skipped)} images of {self.what!r} can be read: "
                f"{'; '.join(self.skipped[:5])}"
                if self.skipped
                else f"dataset.name: {self.what!r} holds no images"
            )

    def labels(self) -> list[int] | None:
        """The class of each image that was read, -1 for none; None if the dataset has no classes.

        Classes given by name are numbered in the order of the alphabet.
        """
        if not self.source.has_labels:
            return None
        names = sorted({label for label in self._labels if isinstance(label, str)})
        if names:
            self.class_names = names
        numbers: dict[int | str | None, int] = {name: number for number, name in enumerate(names)}
        return [numbers[label] if isinstance(label, str) else -1 if label is None else label for label in self._labels]


Decoded = tuple[Example, Pixels | ValueError]


def _in_order(source: Source, transform: Transform) -> Iterator[Decoded]:
    examples = iter(source.examples)
    num_threads = min(os.cpu_count() or 1, MAX_THREADS)
    pending: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(num_threads, "decode")
    try:
        while chunk := list(itertools.islice(examples, CHUNK)):
            pending.append(pool.submit(_decode, chunk, transform))
            if len(pending) > 2 * num_threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(chunk: list[Example], transform: Transform) -> list[Decoded]:
    return [(example, _decode_one(example, transform)) for example in chunk]


def _decode_one(example: Example, transform: Transform) -> Pixels | ValueError:
    file = example.file
    if isinstance(file, str) and "://" in file:  # of the Hub, or inside an archive
        try:
            with fsspec.open(file) as stream:
                file = stream.read()
        except Exception as error:  # the network's or the archive's, which does not make the image a bad one
            raise OSError(f"dataset.name: {file} could not be read: {error}") from error
    try:
        return transform(file if isinstance(file, Image.Image) else open_image(file))
    except (ValueError, OSError) as error:
        return ValueError(str(error))
