"""From encoded images of any kind to the square uint8 arrays that the network learns from."""

import io
import itertools
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import fsspec
import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

from ddpm_hf.data.image_set import Content, Pixels
from ddpm_hf.runtime.errors import UserError

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can hold a huge one."""

DECODER = f"1, Pillow {PIL.__version__}"
"""What decoded images depend on besides their files and `Transform`; the number counts changes of this module."""

CHUNK_SIZE, MAX_THREADS = 16, 16
"""Images that a thread decodes at a time, and threads at most."""


class Example(NamedTuple):
    """One encoded image.

    Attributes:
        file: its bytes, its path or URL, or an image already in memory.
        name: for messages.
        label: the number or name of its class, if it has one.
    """

    file: bytes | str | Image.Image
    name: str
    label: int | str | None


@dataclass(frozen=True)
class Source:
    """Encoded images in a fixed order.

    Attributes:
        examples: the images.
        num_images: their number; None for a stream that does not say.
        has_labels: whether they have classes.
        class_names: the name of each class, if known.
        fingerprint: a hash of what the images are; None for those that are never cached.
    """

    examples: Iterable[Example]
    num_images: int | None
    has_labels: bool
    class_names: list[str] | None
    fingerprint: str | None = None


def open_image(file: bytes | str | Path) -> Image.Image:
    """Decode an image from its bytes or path: its first frame, upright as its EXIF data say.

    Raises:
        ValueError: if the file is not an image, is damaged, or has more than MAX_PIXELS pixels.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} in all are decoded")
        if image.format == "EPS":
            raise ValueError("PostScript is a program, and is not run")
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise struct.error, KeyError, IndexError and others
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


@dataclass(frozen=True)
class Transform:
    """How images become squares of one size.

    Attributes:
        size: side of the square, in pixels.
        channels: 1 for gray, 3 for RGB.
        resize: "crop" resizes the shorter side and takes the centre; "pad" resizes the longer side and adds bars.
        background: red, green and blue, 0 to 255, behind transparent pixels and in the bars.
    """

    size: int
    channels: int
    resize: Literal["crop", "pad"] = "crop"
    background: tuple[int, int, int] = (255, 255, 255)

    def __call__(self, image: Image.Image) -> Pixels:
        """Convert an image of any mode; 16-bit and float images are scaled to 8 bits."""
        image = _to_eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        image = image.convert("L" if self.channels == 1 else "RGB")
        square = (self.size, self.size)
        if image.size != square:
            image = self._pad(image) if self.resize == "pad" else ImageOps.fit(image, square, Image.Resampling.LANCZOS)
        return np.asarray(image).reshape(*square, self.channels).transpose(2, 0, 1)

    def _pad(self, image: Image.Image) -> Image.Image:
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        square = Image.new("RGB", (self.size, self.size), self.background).convert(image.mode)
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        square.paste(resized, ((self.size - width) // 2, (self.size - height) // 2))
        return square


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float images to 8 bits; Pillow's own conversion would clip them at 255."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I"):  # the values have 16 bits, even where the container has 32
        values = values / 257
    elif values.max(initial=0) <= 1:
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def decode(source: Source, transform: Transform, name: str, progress: bool = False) -> Content:
    """Decode the images of a source in their order, on all cores: Pillow releases the GIL while it decodes.

    Only a few images for each thread are in memory at a time.

    Args:
        source: where the images come from.
        transform: makes them squares.
        name: of the dataset, for messages.
        progress: show a bar.

    Returns:
        The images; iterating over them raises a UserError at the end if none could be read. Classes given by name are
        numbered in alphabetical order.
    """
    content = Content((), (transform.channels, transform.size, transform.size), source.num_images)
    content.class_names = source.class_names
    content.images = _decode_into(content, source, transform, name, progress)
    return content


def _decode_into(content: Content, source: Source, transform: Transform, name: str, progress: bool) -> Iterator[Pixels]:
    labels: list[int | str | None] = []
    # with several processes on a machine, only one of them decodes, and it need not be the main one
    progress = progress or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    bar = tqdm(
        desc="decoding images", total=source.num_images, disable=not progress, delay=2, unit="img", dynamic_ncols=True
    )
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # `skipped` has the reason for each image
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for example, decoded in _decode_in_order(source.examples, transform):
            bar.update()
            if isinstance(decoded, ValueError):
                content.skipped.append(f"{example.name} ({decoded})")
            else:
                labels.append(example.label)
                yield decoded
    if not labels:
        count, reasons = len(content.skipped), "; ".join(content.skipped[:5])
        empty = f"none of the {count} images of {name!r} can be read: {reasons}" if count else f"{name!r} has no images"
        raise UserError(f"dataset.name: {empty}")
    if source.has_labels:
        class_names = sorted({label for label in labels if isinstance(label, str)})
        content.class_names = class_names or source.class_names
        numbers = {class_name: number for number, class_name in enumerate(class_names)}
        content.labels = [-1 if x is None else numbers[x] if isinstance(x, str) else x for x in labels]


Decoded = tuple[Example, Pixels | ValueError]


def _decode_in_order(examples: Iterable[Example], transform: Transform) -> Iterator[Decoded]:
    remaining = iter(examples)
    num_threads = min(os.cpu_count() or 1, MAX_THREADS)
    pending: deque[Future[list[Decoded]]] = deque()
    pool = ThreadPoolExecutor(num_threads, "decode")
    try:
        while chunk := list(itertools.islice(remaining, CHUNK_SIZE)):
            pending.append(pool.submit(lambda chunk: [(each, _decode_one(each, transform)) for each in chunk], chunk))
            if len(pending) > 2 * num_threads:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_one(example: Example, transform: Transform) -> Pixels | ValueError:
    file = example.file
    if isinstance(file, str) and "://" in file:  # on the Hub, or inside an archive
        try:
            with fsspec.open(file) as stream:
                file = stream.read()
        except Exception as error:  # a failing network or archive does not make the image a damaged one
            raise OSError(f"dataset.name: {file} could not be read: {error}") from error
    try:
        return transform(file if isinstance(file, Image.Image) else open_image(file))
    except (ValueError, OSError) as error:
        return ValueError(str(error))
