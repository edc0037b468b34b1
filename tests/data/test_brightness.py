"""Black and white of images of 16 bits, 32 bits and floats belong to the set."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import load_image_set, load_image_sets
from ddpm_hf.data.image_loading import _Loader
from ddpm_hf.data.pixels import choose_range
from ddpm_hf.runtime.errors import UserError

MODEL = ModelConfig(image_size=8, image_channels=1, channel_multipliers=(1,), attention_levels=())


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DDPM_HF_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(folder: Path, values: list[float], dtype: type) -> Path:
    """One image for each value, all of whose pixels have it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, value in enumerate(values):
        file = folder / f"{number:02}.{'png' if dtype is np.uint16 else 'tif'}"
        Image.fromarray(np.full((8, 8), value, dtype)).save(file)
    return folder


def load(folder: Path, model: ModelConfig = MODEL, **options):
    return load_image_set(DatasetConfig(name=str(folder), **options), model)


def levels(images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("values", "dtype", "value_range", "expected"),
    [
        ([0, 2048, 4095], np.uint16, (0, 4095), [0, 128, 255]),
        ([0, 128, 255], np.uint16, (0, 255), [0, 128, 255]),
        ([0, 257 * 128, 65535], np.uint16, (0, 65535), [0, 128, 255]),
        ([0, 257 * 128, 65535], np.int32, (0, 65535), [0, 128, 255]),
        ([0, 0.25, 1], np.float32, (0, 1), [0, 64, 255]),
        ([0.01, 0.02], np.float32, (0, 1), [3, 5]),
        ([0.9, 10, 200], np.float32, (0, 255), [1, 10, 200]),
        ([-1, 0, 1], np.float32, (-1, 1), [0, 128, 255]),
        ([0, 1023.5], np.float32, (0, 1023), [0, 255]),
    ],
)
@pytest.mark.parametrize("in_memory", [False, True], ids=["file", "memory"])
def test_auto_looks_at_the_whole_set(tmp_path, values, dtype, value_range, expected, in_memory, caplog):
    folder = write(tmp_path / "images", values, dtype)
    images = load(folder, in_memory=in_memory)
    assert levels(images) == expected
    assert images.value_range == value_range
    assert f"{value_range[1]:,} white" in caplog.text
    assert load(folder, value_range=value_range, in_memory=in_memory).images.equal(images.images)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-1024, 3071], np.int32),
        ([-0.01, 1], np.float32),
        ([-1, 4], np.float32),
        ([0, 4], np.float32),
        ([0, 70_000], np.int32),
    ],
)
def test_what_is_not_plain_asks_for_a_window(tmp_path, values, dtype):
    folder = write(tmp_path / "images", values, dtype)
    with pytest.raises(UserError, match=r"dataset.value_range: given auto.*\["):
        load(folder)
    low, high = values
    assert levels(load(folder, value_range=(low, high))) == [0, 255]
    assert levels(load(folder, value_range=((low + high) / 2, high))) == [0, 255]


def test_whole_numbers_and_floats_together_are_asked_about(tmp_path):
    write(tmp_path / "images" / "a", [0, 4095], np.uint16)
    folder = write(tmp_path / "images" / "b", [0, 1], np.float32).parent
    with pytest.raises(UserError, match="some floats"):
        load(folder)


def test_images_of_eight_bits_stay_in_their_place(tmp_path):
    folder = write(tmp_path / "images", [0, 4095, 4095, 0], np.uint16)
    for number, level in {1: 7, 3: 200}.items():
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{number:02}.png")
    assert levels(load(folder)) == [0, 7, 255, 200]
    assert levels(load(folder, MODEL.model_copy(update={"image_channels": 3}))) == [0, 7, 255, 200]


def test_pixels_that_are_no_numbers_are_as_dark_as_the_darkest(tmp_path):
    folder = write(tmp_path / "images", [0, 1], np.float32)
    values = np.full((8, 8), 0.5, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(folder / "99.tif")
    assert load(folder).images[2].unique().tolist() == [128]


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_resizing_keeps_the_depth_and_bars_their_colour(tmp_path, resize):
    ramp = np.tile(np.linspace(0, 4095, 32).astype(np.uint16), (16, 1))
    (tmp_path / "images").mkdir()
    Image.fromarray(ramp).save(tmp_path / "images" / "0.png")
    image = load(tmp_path / "images", resize=resize, background=(9, 9, 9)).images[0, 0]
    assert (image[3].diff() > 0).all()
    assert (image[0].unique().tolist() == [9]) == (resize == "pad")


def test_held_out_images_have_the_range_of_the_training_images(tmp_path):
    write(tmp_path / "images" / "train", [0, 4095], np.uint16)
    write(tmp_path / "images" / "test", [1024, 16_000], np.uint16)
    dataset = DatasetConfig(name=str(tmp_path / "images"), validation_split="test")
    training, held_out = load_image_sets(dataset, MODEL, seed=0)
    assert (levels(training), levels(held_out)) == ([0, 255], [64, 255])
    in_parts = DatasetConfig(name=str(tmp_path / "images"), validation_fraction=0.5)
    assert [part.value_range for part in load_image_sets(in_parts, MODEL, seed=0)] == [(0, 4095)] * 2


def test_what_auto_chose_is_found_again_without_decoding(tmp_path, monkeypatch):
    dataset = DatasetConfig(name=str(write(tmp_path / "images", [0, 4095], np.uint16)))
    images = load_image_set(dataset, MODEL)
    chosen, other = (dataset.model_copy(update={"value_range": each}) for each in (images.value_range, (0.0, 100.0)))
    assert _Loader(chosen, MODEL, False).key != _Loader(dataset, MODEL, False).key
    monkeypatch.setattr("ddpm_hf.data.image_loading.open_source", lambda _: pytest.fail("opened"))
    torch.testing.assert_close(load_image_set(chosen, MODEL).images, images.images)
    with pytest.raises(pytest.fail.Exception):
        load_image_set(other, MODEL)


@pytest.mark.parametrize("value_range", ["all", [1, 1], [2, 1], [0], [0, float("inf")], [False, 1]])
def test_a_range_is_auto_or_two_numbers(value_range):
    with pytest.raises(ValueError, match="value_range"):
        DatasetConfig(value_range=value_range)


def test_a_range_is_the_fewest_bits_that_hold_the_values():
    for bits in range(8, 17):
        assert choose_range(0, 2**bits - 1, False) == (0, 2**bits - 1)
    with pytest.raises(UserError):
        choose_range(0, 2**16, False)


@pytest.mark.parametrize(("level", "colour"), [(3, "black"), (250, "white"), (120, "of one colour")])
def test_a_set_of_one_colour_is_told_with_its_figures(tmp_path, level, colour, caplog):
    folder = write(tmp_path / "images", [level, level + 4], np.uint8)
    for _ in range(2):  # from the cache, too
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load(folder)
        assert f"nearly all {colour}: of 0 to 255, mean {level + 2}.0, standard deviation 2.0" in caplog.text
    write(tmp_path / "images", [0, 255], np.uint8)
    caplog.clear()
    load(folder)
    assert not caplog.text


def tiff(file: Path, levels: list[int], kind: str = "TIFF") -> None:
    pages = [Image.new("L", (8, 8), level) for level in levels]
    file.parent.mkdir(exist_ok=True)
    pages[0].save(file, kind, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_pages_are_taken_when_asked_for_and_told_otherwise(tmp_path, kind, caplog):
    tiff(tmp_path / "a" / f"0.{kind.lower()}", [10, 60, 110], kind)
    tiff(tmp_path / "b" / "1.tif", [200])
    images = load(tmp_path)
    assert (levels(images), images.labels.tolist()) == ([10, 200], [0, 1])
    assert "1 images have several pages" in caplog.text
    caplog.clear()
    every = load(tmp_path, pages="all")
    assert (levels(every), every.labels.tolist()) == ([10, 60, 110, 200], [0, 0, 0, 1])
    assert not caplog.text


def test_a_smaller_copy_in_a_tiff_is_no_page(tmp_path, caplog):
    page, copy = (Image.new("L", (side, side), level) for side, level in ((16, 10), (8, 200)))
    copy.encoderinfo = {"tiffinfo": {254: 1}}
    page.save(tmp_path / "0.tif", save_all=True, append_images=[copy])
    with Image.open(tmp_path / "0.tif") as written:
        written.seek(1)
        assert written.tag_v2[254] == 1
    assert levels(load(tmp_path, pages="all")) == [10]
    load(tmp_path)
    assert "pages" not in caplog.text


def test_a_damaged_page_is_named(tmp_path):
    tiff(tmp_path / "0.tif", [10, 60, 110])
    with Image.open(tmp_path / "0.tif") as written:
        written.seek(2)
        start = written.tag_v2[273][0]
    (tmp_path / "0.tif").write_bytes((tmp_path / "0.tif").read_bytes()[:start])
    images = load(tmp_path, pages="all")
    assert len(images) < 3
    assert len(images.skipped) == (len(images) > 0)


def of_bands(levels: list[int], meaning: int | None) -> bytes:
    """A TIFF of 8x8 pixels with any number of bands, those beyond the third of one meaning (TIFF 6.0, ExtraSamples)."""
    count, pixels = len(levels), bytes(levels) * 64
    long, short = 4, 3
    tags = [(256, short, 8), (257, short, 8), (259, short, 1), (262, short, 2), (277, short, count), (278, short, 8)]
    num_tags = len(tags) + 3 + (meaning is not None)
    after = 8 + 2 + 12 * num_tags + 4
    arrays = [(258, struct.pack(f"<{count}H", *[8] * count))]
    if meaning is not None:
        arrays.append((338, struct.pack(f"<{count - 3}H", *[meaning] * (count - 3))))
    entries, data = [struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags], b""
    for tag, values in arrays:
        where = values.ljust(4, b"\0") if len(values) <= 4 else struct.pack("<I", after + len(data))
        data += values if len(values) > 4 else b""
        entries.append(struct.pack("<HHI", tag, short, len(values) // 2) + where)
    entries += [
        struct.pack("<HHII", 273, long, 1, after + len(data)),
        struct.pack("<HHII", 279, long, 1, len(pixels)),
    ]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    return b"II*\0" + struct.pack("<IH", 8, num_tags) + b"".join(entries) + bytes(4) + data + pixels


@pytest.mark.parametrize(
    ("extra", "meaning", "is_told"),
    [([], None, False), ([0], 0, True), ([0], None, True), ([255], 2, False), ([1, 2], 0, True), ([1, 2, 3], 0, True)],
)
def test_bands_beyond_colour_are_told(tmp_path, extra, meaning, is_told, caplog):
    (tmp_path / "0.tif").write_bytes(of_bands([200, 100, 50, *extra], meaning))
    images = load(tmp_path, MODEL.model_copy(update={"image_channels": 3}))
    assert images.images[0, :, 0, 0].tolist() == [200, 100, 50]
    assert ("more bands" in caplog.text) == is_told


def png_of_16_bits(level: int, colour_type: int, num_bands: int) -> bytes:
    """A PNG of 8x8 pixels with 16 bits in each band (PNG, table 11.1)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">H", level) * num_bands * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour_type", "num_bands", "is_told"), [(0, 1, False), (2, 3, True), (4, 2, True), (6, 4, True)]
)
def test_bits_of_colours_that_pillow_leaves_out_are_told(tmp_path, colour_type, num_bands, is_told, caplog):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png_of_16_bits(0xFF00 + number, colour_type, num_bands))
    images = load(tmp_path)
    assert len(images) == 3
    assert ("3 images have 16 bits in each of several bands" in caplog.text) == is_told
