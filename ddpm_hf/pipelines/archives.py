"""Many images in one file, read from their PNGs one after the other: memory does not grow with their number."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from ddpm_hf.runtime.files import atomic_write

Archive = Literal["npz", "parquet"]
ARCHIVES: tuple[str, ...] = get_args(Archive)


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
