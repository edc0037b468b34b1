"""All images in one file: readable by the tools they are for, and written without holding them all."""

import tracemalloc

import datasets
import numpy as np
import pyarrow
import pytest
from PIL import Image

from ddpm_hf.pipelines.generation import write_archive


def write_pngs(folder, count, size=8, channels=1):
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)
    files = [folder / f"{index:06}.png" for index in range(count)]
    for array, file in zip(pixels, files, strict=True):
        Image.fromarray(array[:, :, 0] if channels == 1 else array).save(file)
    return files, pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, [3, 1, 2, 3, 1]])
def test_npz(tmp_path, channels, labels):
    files, pixels = write_pngs(tmp_path, 5, channels=channels)
    write_archive("npz", files, labels, tmp_path / "samples.npz", rows=2)
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive.files == (["arr_0"] if labels is None else ["arr_0", "arr_1"])
        assert archive["arr_0"].dtype == np.uint8
        assert (archive["arr_0"] == pixels).all()
        assert labels is None or archive["arr_1"].tolist() == labels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, [3, 1, 2, 3, 1]])
def test_parquet_is_a_dataset_of_images(tmp_path, channels, labels):
    files, pixels = write_pngs(tmp_path, 5, channels=channels)
    write_archive("parquet", files, labels, tmp_path / "samples.parquet", rows=2)
    dataset = datasets.Dataset.from_parquet(str(tmp_path / "samples.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(dataset.features["image"], datasets.Image)
    images = np.stack([np.asarray(image).reshape(8, 8, channels) for image in dataset["image"]])
    assert (images == pixels).all()
    assert dataset.column_names == (["image"] if labels is None else ["image", "label"])
    assert labels is None or list(dataset["label"]) == labels


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, kind):
    """300 images of 12 KiB make 3.5 MiB; no more than a few batches of 8 are ever held."""
    files, _ = write_pngs(tmp_path, 300, size=64, channels=3)
    write_archive(kind, files[:8], None, tmp_path / "first", rows=8)  # imports what is needed
    default = pyarrow.default_memory_pool()
    arrow = pyarrow.proxy_memory_pool(default)  # counts for itself
    pyarrow.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        write_archive(kind, files, None, tmp_path / "samples", rows=8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(default)
    assert (tmp_path / "samples").stat().st_size > 300 * 12_000
    assert peak < 8 * 8 * 12_288
    assert arrow.max_memory() < 8 * 8 * 12_288
    assert kind == "npz" or arrow.max_memory() > 8 * 12_000  # it did count


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_an_archive_is_whole_or_not_there(tmp_path, kind):
    files, _ = write_pngs(tmp_path, 3)
    write_archive(kind, files, None, tmp_path / "samples", rows=8)
    whole = (tmp_path / "samples").read_bytes()
    files[2].unlink()
    with pytest.raises(FileNotFoundError):
        write_archive(kind, files, None, tmp_path / "samples", rows=1)
    assert (tmp_path / "samples").read_bytes() == whole
