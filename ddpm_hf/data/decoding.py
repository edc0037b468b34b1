"""From a source of encoded images to the decoded images of a set, on all cores.

Worker processes import this module, so it loads neither torch nor `datasets`.
"""

import io
import itertools
import math
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ddpm_hf.data.pixels import Deep, Example, Pixels, Transform, ValueRange, choose_range, open_pages
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.sanitize import for_terminal

CHUNK_SIZE, MAX_WORKERS = 32, 32
"""Images that a worker decodes at a time, and workers at most."""

NUM_IN_THREADS = 2000
"""Images that threads decode before processes are started: Pillow releases the GIL for the pixels only, so threads gain
nothing where images are small (benchmarks/results/data.md), and processes take a quarter of a second to start."""


@dataclass(frozen=True)
class Source:
    """Encoded images in a fixed order.

    Attributes:
        examples: the images.
        num_images: their number; None for a stream that does not say.
        has_labels: whether they have classes.
        class_names: the name of each class, if known.
        fingerprint: a hash of what the images are; None for those that are never cached.
        notes: what a person should know about what was found.
    """

    examples: Iterable[Example]
    num_images: int | None
    has_labels: bool
    class_names: list[str] | None
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Content:
    """Decoded images that arrive one after the other; all but `shape` and `num_images` is valid after the last.

    Attributes:
        images: each of them in turn.
        shape: channels, height and width of each.
        num_images: at most; None if that is not known beforehand.
        labels: as in `ImageSet`.
        class_names: as in `ImageSet`.
        skipped: as in `ImageSet`.
        notes: as in `ImageSet`.
        value_range: as in `ImageSet`.
    """

    images: Iterable[Pixels]
    shape: tuple[int, int, int]
    num_images: int | None
    labels: list[int] | None = None
    class_names: list[str] | None = None
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    value_range: ValueRange | None = None


def decode(
    source: Source, transform: Transform, name: str, progress: bool = False, scratch: Path | None = None
) -> Content:
    """Decode the images of a source in their order, on all cores. The result does not depend on their number.

    Only a few images for each worker are in memory at a time.

    Args:
        source: where the images come from.
        transform: makes them squares.
        name: of the dataset, for messages.
        progress: show a bar.
        scratch: folder of a temporary file of images whose range is known only after the last; None keeps them in
            memory.

    Returns:
        The images; iterating over them raises a UserError at the end if none could be read. Classes given by name are
        numbered in alphabetical order.
    """
    num_images = source.num_images if transform.pages == "first" else None
    content = Content((), (transform.channels, *transform.sides), num_images)
    content.images = _decode_into(content, source, transform, name, progress, scratch)
    return content


def _decode_into(
    content: Content, source: Source, transform: Transform, name: str, progress: bool, scratch: Path | None
) -> Iterator[Pixels]:
    labels: list[int | float | str | None] = []
    found: Counter[str] = Counter()
    deep: list[Deep] = []
    sums = np.zeros((3, transform.channels))  # number of values of each channel, their sum and that of their squares

    def count(pixels: Pixels) -> Pixels:
        values = pixels.reshape(len(pixels), -1).astype(np.float32)
        sums[0] += values.shape[1]
        sums[1] += values.sum(1)
        sums[2] += np.einsum("ij,ij->i", values, values)
        return pixels

    # with several processes on a machine, only one of them decodes, and it need not be the main one
    progress = progress or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    bar = tqdm(
        desc="decoding images", total=source.num_images, disable=not progress, delay=2, unit="img", dynamic_ncols=True
    )
    with (
        bar,
        io.BytesIO() if scratch is None else tempfile.TemporaryFile(dir=scratch) as waiting,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module="PIL")  # `skipped` has the reason for each image
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        num_waiting = 0
        for example, decoded in _decode_in_order(source.examples, transform):
            bar.update()
            found.update(decoded.notes)
            if decoded.problem is not None:
                content.skipped.append(f"{for_terminal(example.name)} ({for_terminal(decoded.problem)})")
            for page in decoded.pages:
                labels.append(example.label)
                if isinstance(page, Deep):
                    deep.append(page._replace(values=page.values[:0]))
                if deep:  # the range belongs to the set, and is known after its last image
                    np.save(waiting, page.values if isinstance(page, Deep) else page)
                    num_waiting += 1
                elif not isinstance(page, Deep):
                    yield count(page)
        if deep:
            content.value_range = transform.value_range or _range_of_set(deep, content.notes)
            waiting.seek(0)
            for _ in range(num_waiting):
                values = np.load(waiting)
                yield count(values if values.ndim == 3 else transform.scale(values, content.value_range))
    if not labels:
        if not content.skipped:
            raise UserError(f"dataset.name: {name!r} has no images")
        reasons = "; ".join(content.skipped[:5])
        raise UserError(f"dataset.name: none of the {len(content.skipped)} images of {name!r} can be read: {reasons}")
    content.notes += [*map(for_terminal, source.notes), *_notes(found, sums)]
    if source.has_labels:
        content.labels, content.class_names = number_labels(labels, name, source.class_names)


def _range_of_set(deep: list[Deep], notes: list[str]) -> ValueRange:
    """Choose the range of all images of more than 8 bits, and say so."""
    low, high, kinds = min(each.low for each in deep), max(each.high for each in deep), {each.is_float for each in deep}
    if len(kinds) > 1:
        raise UserError(
            "dataset.value_range: given auto, but some images hold whole numbers of 16 or 32 bits and some floats, all "
            f"from {low:,.6g} to {high:,.6g}; keep one kind, or give [low, high], which become black and white"
        )
    chosen = choose_range(low, high, *kinds)
    what = "are floats" if deep[0].is_float else "have 16 or 32 bits"
    notes.append(
        f"{len(deep):,} images {what} and hold {low:,.6g} to {high:,.6g}; dataset.value_range: {chosen[0]:,.6g} became "
        f"black and {chosen[1]:,.6g} white"
    )
    return chosen


def _notes(found: Counter[str], sums: np.ndarray) -> Iterator[str]:
    """What was left out of images that were read, and whether they differ from one colour."""
    if found["pages"]:
        yield f"{found['pages']:,} images have several pages; the first is taken, and dataset.pages=all takes every one"
    if found["depth"]:
        yield f"{found['depth']:,} images have 16 bits in each of several bands, of which Pillow reads the upper 8"
    if found["bands"]:
        yield f"{found['bands']:,} images have more bands than red, green, blue and alpha; the first three are taken"
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    if std.max() < 8:
        colour = "black" if mean.max() < 16 else "white" if mean.min() > 239 else "of one colour"
        yield (
            f"the images are nearly all {colour}: of 0 to 255, mean {', '.join(f'{each:.1f}' for each in mean)}, "
            f"standard deviation {', '.join(f'{each:.1f}' for each in std)}"
        )


def without_blank(value: Any) -> Any:
    """A value of a table; None for a blank or a NaN."""
    if isinstance(value, str):
        return value.strip() or None
    return None if isinstance(value, float) and math.isnan(value) else value


def number_labels(
    labels: Iterable[int | float | str | None], name: str, class_names: list[str] | None = None
) -> tuple[list[int], list[str] | None]:
    """Number classes given by name in alphabetical order.

    Args:
        labels: numbers or names.
        name: of the dataset, for messages.
        class_names: of numbers, if known.

    Returns:
        The numbers, -1 for a blank, and the names of the classes, if known.

    Raises:
        UserError: for a number that is not whole.
    """
    present = [without_blank(label) for label in labels]
    names = sorted({label for label in present if isinstance(label, str)})
    numbers = {each: number for number, each in enumerate(names)}
    if fractions := [label for label in present if isinstance(label, float) and not label.is_integer()]:
        raise UserError(
            f"dataset.label_column: the labels of {name!r} are neither whole numbers nor names, such as {fractions[0]}"
        )
    numbered = [-1 if label is None else numbers[label] if isinstance(label, str) else int(label) for label in present]
    shown = names or class_names
    return numbered, None if shown is None else [for_terminal(each) for each in shown]


class Decoded(NamedTuple):
    """What one file holds.

    Attributes:
        pages: its images.
        problem: why it, or one of its pages, cannot be read.
        notes: how often something in it was left out.
    """

    pages: list[Pixels | Deep]
    problem: str | None
    notes: Counter[str]


def _decode_in_order(examples: Iterable[Example], transform: Transform) -> Iterator[tuple[Example, Decoded]]:
    remaining, num_started = iter(examples), 0
    pending: deque[tuple[list[Example], Future[list[Decoded]]]] = deque()
    with _Workers(transform) as workers:
        while chunk := list(itertools.islice(remaining, CHUNK_SIZE)):
            num_started += len(chunk)
            pending.append((chunk, workers.submit(chunk, num_started > NUM_IN_THREADS)))
            if len(pending) > 2 * workers.count:
                done, future = pending.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in pending:
            yield from zip(done, future.result(), strict=True)


class _Workers:
    """Threads that decode, each in a process of its own where that pays."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.count = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        self.pool = ThreadPoolExecutor(self.count, "decode")
        self.local = threading.local()
        self.processes: list[_Process] = []

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        for process in self.processes:
            process.close()

    def submit(self, chunk: list[Example], in_process: bool) -> Future[list[Decoded]]:
        """Decode images; those that are in memory already are not sent to a process."""
        are_files = not any(isinstance(example.file, Image.Image) for example in chunk)
        in_process = in_process and self.count > 1 and are_files
        return self.pool.submit(self._in_process if in_process else self._in_thread, chunk)

    def _in_thread(self, chunk: list[Example]) -> list[Decoded]:
        return decode_chunk(chunk, self.transform)

    def _in_process(self, chunk: list[Example]) -> list[Decoded]:
        if not hasattr(self.local, "process"):
            self.local.process = _Process(self.transform)
            self.processes.append(self.local.process)
        return self.local.process.decode(chunk)


class _Process:
    """A process that decodes. Unlike one of `multiprocessing`, it neither copies this one nor runs its main program."""

    def __init__(self, transform: Transform) -> None:
        self.connection, theirs = Pipe()
        code = f"from ddpm_hf.data.decoding import serve; serve({theirs.fileno()})"
        path = os.pathsep.join(folder or "." for folder in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C is for this process, whose end ends the other
        )
        theirs.close()
        self.connection.send(transform)

    def decode(self, chunk: list[Example]) -> list[Decoded]:
        """Decode images there; an error there is raised here."""
        try:
            self.connection.send(chunk)
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise OSError(
                "a process that decodes images ended, perhaps because memory ran out; it was decoding "
                f"{chunk[0].name} to {chunk[-1].name}"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Let the process end."""
        self.connection.close()
        self.process.wait()


def serve(descriptor: int) -> None:
    """Decode for another process until it closes its end of the pipe.

    Args:
        descriptor: of this end.
    """
    warnings.simplefilter("ignore")
    connection = Connection(descriptor)
    answer: list[Decoded] | Exception
    try:
        transform = connection.recv()
        while True:
            chunk = connection.recv()
            try:
                answer = decode_chunk(chunk, transform)
            except (OSError, MemoryError) as error:
                answer = error
            connection.send(answer)
    except (EOFError, ConnectionError):
        pass


def decode_chunk(chunk: list[Example], transform: Transform) -> list[Decoded]:
    """Decode some images, one after the other."""
    return [_decode_one(example, transform) for example in chunk]


def _decode_one(example: Example, transform: Transform) -> Decoded:
    file, decoded = example.file, Decoded([], example.problem, Counter())
    if example.problem is not None:
        return decoded
    if isinstance(file, str) and "://" in file:  # on the Hub, or inside an archive
        import fsspec  # only such files need it

        try:
            with fsspec.open(file) as stream:
                file = stream.read()
        except Exception as error:  # a failing network or archive does not make the image a damaged one
            raise OSError(f"dataset.name: {file} could not be read: {error}") from error
    try:
        pages = (
            iter([file])
            if isinstance(file, Image.Image)
            else open_pages(file, example.name, transform.pages == "all", decoded.notes)
        )
        for page in pages:
            decoded.pages.append(transform.prepare(page))
    except (ValueError, OSError) as error:
        page_name = f"from page {len(decoded.pages) + 1} on: " if decoded.pages else ""
        decoded = decoded._replace(problem=f"{page_name}{error}")
    return decoded
