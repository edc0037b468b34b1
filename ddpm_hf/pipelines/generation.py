"""Images to disk: sampling runs, resumable and spread over processes; archives of them; interpolations; manifests."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from ddpm_hf.checkpoints.find import weights_hash
from ddpm_hf.pipelines.ddpm import DDPMPipeline
from ddpm_hf.pipelines.pictures import denoising_strips, image_grid, save_gif, save_png
from ddpm_hf.pipelines.sampling import SamplingSettings, show_steps
from ddpm_hf.runtime.distributed import assert_same_across_ranks
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import atomic_write, visible_files, write_text_atomic
from ddpm_hf.runtime.values import read_json_mapping

Archive = Literal["npz", "parquet"]

MANIFEST = "manifest.json"
MAX_GRID_IMAGES = 64
NUM_STRIPS = 6
"""Images whose intermediate steps are shown."""


@dataclass(frozen=True)
class Extras:
    """What is written beside the images.

    Attributes:
        grid: rows and columns of the grid; None makes it square, of up to 64 images.
        num_intermediates: steps in the strips from noise to image; 0 draws none.
        archive: one file with all images; None makes none.
    """

    grid: tuple[int, int] | None = None
    num_intermediates: int = 0
    archive: Archive | None = None


def generate(
    pipeline: DDPMPipeline,
    model: str,
    settings: SamplingSettings,
    num_samples: int,
    folder: Path,
    batch_size: int,
    extras: Extras | None = None,
) -> int:
    """Write images 0 to num_samples - 1 of a sampling run as PNG files, a grid of the first ones and a manifest.

    Image i is a function of the network, the settings and i. So a folder with fewer images, or with some of them, is
    completed; any number of processes may share the work. A process draws complete batches, which are the same for any
    number of processes: images that are computed together may differ in the last bits from those computed alone.

    Args:
        pipeline: draws the images.
        model: folder or Hub id of the pipeline, for the manifest.
        settings: of the run.
        num_samples: at least 1.
        folder: made if it does not exist.
        batch_size: images drawn at a time.
        extras: made of the images, when all are there.

    Returns:
        The number of images drawn by this process; the others were there.

    Raises:
        UserError: if the folder holds anything but images of the same settings, or processes differ in them.
    """
    state, extras = PartialState(), extras or Extras()
    manifest = {"model": model, "weights": weights_hash(pipeline.unet), **asdict(settings)}
    check_folder(folder, manifest)
    assert_same_across_ranks({"the folder": str(folder), **manifest})
    files = [folder / f"{index:06}.png" for index in range(num_samples)]
    batches = [range(start, min(start + batch_size, num_samples)) for start in range(0, num_samples, batch_size)]
    missing = {index for index in range(num_samples) if not files[index].exists()}
    own = [batch for batch in batches if not missing.isdisjoint(batch)][state.process_index :: state.num_processes]
    num_own = sum(index in missing for batch in own for index in batch)
    state.wait_for_everyone()  # until then, nobody adds to the files that others count
    quiet = not state.is_main_process or not own
    show_steps(pipeline, quiet)
    bar = tqdm(total=num_own, desc="sampling", unit="img", disable=quiet, dynamic_ncols=True, delay=0.5)
    with bar, pipeline.sampling():  # once for all batches
        for batch in own:
            output = settings.draw(pipeline, batch)
            # only now: settings that the pipeline refuses leave nothing behind
            write_manifest(folder, manifest)
            for index, image in zip(batch, output.images, strict=True):
                if index in missing:
                    save_png(image, files[index])
                    bar.update()
    state.wait_for_everyone()
    if state.is_main_process:
        _write_extras(pipeline, settings, files, batch_size, extras)
    return num_own


def _write_extras(
    pipeline: DDPMPipeline, settings: SamplingSettings, files: list[Path], batch_size: int, extras: Extras
) -> None:
    folder = files[0].parent
    rows, columns = extras.grid or (0, None)
    shown = files[: rows * columns if columns else MAX_GRID_IMAGES]
    save_png(image_grid([_read(file) for file in shown], columns), folder / "grid.png")
    if extras.num_intermediates:
        first = range(min(NUM_STRIPS, batch_size, len(files)))
        output = settings.draw(pipeline, first, return_intermediates=extras.num_intermediates)
        save_png(denoising_strips([output], "x_t"), folder / "denoising.png")
        save_png(denoising_strips([output], "x_0"), folder / "predicted.png")
    if extras.archive:
        labels = settings.labels(range(len(files)))
        write_archive(extras.archive, files, labels, folder / f"samples.{extras.archive}", batch_size)


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        return image


def write_archive(kind: Archive, pngs: Sequence[Path], labels: Sequence[int] | None, file: Path, rows: int) -> None:
    """Collect PNG files of one size and mode in one file, which appears when it is complete.

    Args:
        kind: "npz", as guided-diffusion's evaluator and others read it: arr_0, uint8, (count, height, width, channels),
            and arr_1 with the labels; or "parquet" for `datasets`: a column image, and a column label.
        pngs: the images; at least one.
        labels: the class of each, if they have classes.
        file: to write.
        rows: images held in memory at a time.
    """
    with atomic_write(file) as aside:
        if kind == "npz":
            _write_npz(pngs, labels, aside)
        else:
            _write_parquet(pngs, labels, aside, rows)


def _write_npz(pngs: Sequence[Path], labels: Sequence[int] | None, file: Path) -> None:
    arrays = (_pixels(png) for png in pngs)
    first = next(arrays)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as stream:
            shape = (len(pngs), *first.shape)
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            stream.write(first.tobytes())
            for array in arrays:
                stream.write(array.tobytes())
        if labels is not None:
            of_labels = io.BytesIO()
            np.save(of_labels, np.asarray(labels, np.int64))
            archive.writestr("arr_1.npy", of_labels.getvalue())


def _write_parquet(pngs: Sequence[Path], labels: Sequence[int] | None, file: Path, rows: int) -> None:
    # take seconds to import, and only this archive needs them
    from datasets import Features, Value
    from datasets import Image as ImageFeature
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetWriter

    columns = {"image": ImageFeature()} | ({} if labels is None else {"label": Value("int64")})
    schema = Features(columns).arrow_schema
    with ParquetWriter(file, schema, write_statistics=False) as writer:  # they would hold images
        for start in range(0, len(pngs), rows):
            some = pngs[start : start + rows]
            values: dict[str, list] = {"image": [{"bytes": png.read_bytes(), "path": png.name} for png in some]}
            if labels is not None:
                values["label"] = list(labels[start : start + rows])
            writer.write_batch(RecordBatch.from_pydict(values, schema))


def _pixels(png: Path) -> np.ndarray:
    with Image.open(png) as image:
        array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def write_interpolation(images: Sequence[Image.Image], settings: Mapping[str, Any], folder: Path) -> None:
    """Write the images of an interpolation as PNG files, a strip and a GIF of them, and a manifest.

    Args:
        images: from one end to the other; at least two.
        settings: everything that the images depend on, as plain values, for the manifest.
        folder: made if it does not exist.
    """
    write_manifest(folder, settings)
    for index, image in enumerate(images):
        save_png(image, folder / f"{index:03}.png")
    save_png(image_grid(images, columns=len(images)), folder / "strip.png")
    save_gif(images, folder / "interpolation.gif")


def pixels_hash(image: Image.Image) -> str:
    """A hash of an image's mode, size and pixels, whatever file they came from."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make sure that a folder is new, empty, or holds images of these settings.

    Args:
        folder: where images are to be written.
        settings: everything that the images depend on, as plain values.

    Raises:
        UserError: the folder holds something else.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        if folder.exists() and (not folder.is_dir() or visible_files(folder)):
            raise UserError(f"--output: {folder} exists and holds no images of this program; choose another folder")
        return
    try:
        before = read_json_mapping(manifest)
    except (OSError, ValueError):
        raise UserError(f"--output: {manifest} is not of this program; choose another folder") from None
    names = [*settings, *(name for name in before if name not in settings)]
    changed = [f"{name} was {before.get(name)!r}" for name in names if before.get(name) != settings.get(name)]
    if changed:
        raise UserError(
            f"--output: {folder} holds images of other settings ({', '.join(changed)}); choose another folder"
        )


def write_manifest(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings beside the images, once; several processes may do so at the same time."""
    if not (folder / MANIFEST).exists():
        write_text_atomic(folder / MANIFEST, json.dumps(dict(settings), indent=2) + "\n")
