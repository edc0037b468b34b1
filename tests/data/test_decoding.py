"""Images of every kind become the pixels that one expects."""

import contextlib
import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.data import ImageSet
from ddpm_hf.data.decoding import Source, _Process, decode
from ddpm_hf.data.pixels import Example, Transform, open_image

GRAY = 128
RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette(transparent: bool = False) -> bytes:
    image = Image.new("RGB", (8, 8), (GRAY, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    return file_of(image, transparency=image.getpixel((0, 0))) if transparent else file_of(image)


def plain(mode: str, colour, kind: str = "PNG", size: tuple[int, int] = (8, 8), **options) -> bytes:
    return file_of(Image.new(mode, size, colour), kind, **options)


def of_array(values: np.ndarray, kind: str = "PNG") -> bytes:
    return file_of(Image.fromarray(values), kind)


# file, and the colour that all of its pixels have once it is decoded
ZOO = {
    "1 white": (plain("1", 1), WHITE),
    "1 black": (plain("1", 0), BLACK),
    "L": (plain("L", GRAY), (GRAY,) * 3),
    "L, transparent level": (plain("L", GRAY, transparency=GRAY), WHITE),
    "LA, transparent": (plain("LA", (0, 0)), WHITE),
    "LA, opaque": (plain("LA", (GRAY, 255)), (GRAY,) * 3),
    "P": (palette(), (GRAY, 0, 0)),
    "P, transparent": (palette(transparent=True), WHITE),
    "RGB": (plain("RGB", (GRAY, 1, 2)), (GRAY, 1, 2)),
    "RGB, transparent colour": (plain("RGB", RED, transparency=RED), WHITE),
    "RGBA, half": (plain("RGBA", (0, 0, 0, 127)), (GRAY,) * 3),
    "RGBA, WebP": (plain("RGBA", (255, 0, 0, 255), "WEBP", lossless=True), RED),
    "CMYK, TIFF": (plain("CMYK", (0, 255, 255, 0), "TIFF"), RED),
    "CMYK, JPEG": (plain("CMYK", (255, 255, 255, 255), "JPEG", quality=100), BLACK),
    "L, JPEG": (plain("L", GRAY, "JPEG"), (GRAY,) * 3),
    "16 bit, PNG": (of_array(np.full((8, 8), GRAY * 257, np.uint16)), (GRAY,) * 3),
    "16 bit, TIFF": (of_array(np.full((8, 8), 65535, np.uint16), "TIFF"), WHITE),
    "32 bit, TIFF": (of_array(np.full((8, 8), GRAY * 257, np.int32), "TIFF"), (GRAY,) * 3),
    "float to 1, TIFF": (of_array(np.full((8, 8), GRAY / 255, np.float32), "TIFF"), (GRAY,) * 3),
    "float to 255, TIFF": (of_array(np.full((8, 8), GRAY, np.float32), "TIFF"), (GRAY,) * 3),
    "float, no number": (of_array(np.full((8, 8), np.nan, np.float32), "TIFF"), BLACK),
    "wide": (plain("RGB", RED, size=(300, 8)), RED),
    "tall and thin": (plain("RGB", RED, size=(1, 2000)), RED),
    "one pixel": (plain("RGB", RED, "BMP", size=(1, 1)), RED),
    "GIF": (plain("L", GRAY, "GIF"), (GRAY,) * 3),
}


@pytest.mark.parametrize(("file", "expected"), ZOO.values(), ids=ZOO)
def test_every_kind_gives_its_colour(file, expected):
    array = Transform(8, 3)(open_image(file))
    assert array.shape == (3, 8, 8)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.broadcast_to(np.array(expected)[:, None, None], (3, 8, 8)))


@pytest.mark.parametrize("file", [file for file, _ in ZOO.values()], ids=ZOO)
@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_every_kind_becomes_gray(file, resize):
    array = Transform(4, 1, resize)(open_image(file))
    assert (array.shape, array.dtype) == ((1, 4, 4), np.uint8)


def test_colour_becomes_gray_by_its_luma():
    assert (Transform(4, 1)(Image.new("RGB", (4, 4), (255, 0, 0))) == 76).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("L", (8, 8), value) for value in (10, 200)]
    array = Transform(8, 1)(open_image(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert (array == 10).all()


def test_a_photograph_is_turned_upright():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    array = Transform(8, 1)(open_image(file_of(image, "PNG", exif=exif)))[0]
    np.testing.assert_array_equal(array, np.rot90(np.asarray(image), -1))


def test_the_middle_square_is_cut_out():
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 255
    assert (Transform(8, 1)(Image.fromarray(wide)) == 255).all()


def test_bars_of_the_background_pad_to_a_square():
    file = plain("RGB", RED, size=(16, 4))
    array = Transform(8, 3, "pad", (1, 2, 3))(open_image(file))
    np.testing.assert_array_equal(array[:, 3:5], np.broadcast_to(np.array(RED)[:, None, None], (3, 2, 8)))
    for bar in (array[:, :3], array[:, 5:]):
        np.testing.assert_array_equal(bar, np.broadcast_to(np.array([1, 2, 3])[:, None, None], (3, 3, 8)))
    upright = Transform(8, 3, "pad", (1, 2, 3))(open_image(file).transpose(Image.Transpose.ROTATE_90))
    np.testing.assert_array_equal(upright, array.transpose(0, 2, 1))


def test_padding_crops_nothing_from_the_thinnest_image():
    array = Transform(8, 1, "pad", BLACK)(Image.new("L", (1, 2000), 255))
    assert array.sum() == 8 * 255


def test_transparency_shows_the_background():
    file = plain("RGBA", (0, 0, 0, 0))
    assert Transform(8, 3, background=(9, 8, 7))(open_image(file))[:, 0, 0].tolist() == [9, 8, 7]
    assert (Transform(8, 1, background=RED)(open_image(file)) == 76).all()


def test_an_image_of_the_right_size_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(Transform(8, 3)(Image.fromarray(pixels)), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "damage", [b"hello", b"", file_of(Image.new("RGB", (64, 64)))[:60]], ids=["text", "empty", "cut"]
)
def test_what_cannot_be_read_is_a_value_error(damage):
    with pytest.raises(ValueError):
        open_image(damage)


def bomb(side: int) -> bytes:
    """A small PNG file of side x side black pixels of one bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = bytes(side // 8 + 1) * 100
    data = b"".join(packer.compress(rows) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000])  # 100 and 900 million pixels
def test_a_bomb_is_refused_before_it_is_decoded(side):
    file = bomb(side)
    assert len(file) < 1_000_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # as `decode` does
        began = time.process_time()  # not what other processes take
        with pytest.raises(ValueError, match="pixels"):
            open_image(file)
    assert time.process_time() - began < 0.1


def test_a_bomb_of_few_pixels_is_an_image():
    assert Transform(8, 1)(open_image(bomb(800))).max() == 0


def test_postscript_is_not_run():
    with pytest.raises(ValueError, match="PostScript"):
        open_image(file_of(Image.new("RGB", (8, 8)), "EPS"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damage_anywhere_is_an_image_or_a_value_error(kind):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
    whole = np.frombuffer(file_of(Image.fromarray(pixels), kind), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(100):
            damaged = whole.copy()
            damaged[random.integers(0, len(whole), 3)] = random.integers(0, 256, 3)
            cut = damaged[: random.integers(1, len(whole) + 1)]
            with contextlib.suppress(ValueError):
                assert Transform(8, 3)(open_image(cut.tobytes())).shape == (3, 8, 8)


def test_threads_and_processes_give_the_same_in_the_same_order(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    files: list[bytes | str] = [of_array(random.integers(0, 256, (9, 7, 3), np.uint8)) for _ in range(200)]
    files[7], files[150] = b"broken", str(tmp_path / "gone.png")
    files[20:40] = [of_array(random.integers(0, 4096, (9, 7), np.uint16)) for _ in range(20)]
    examples = [Example(file, f"image {number}", number) for number, file in enumerate(files)]

    def decoded(num_workers: int, num_in_threads: int):
        monkeypatch.setattr("ddpm_hf.data.decoding.os.sched_getaffinity", lambda _: range(num_workers))
        monkeypatch.setattr("ddpm_hf.data.decoding.NUM_IN_THREADS", num_in_threads)
        return ImageSet.in_memory(decode(Source(examples, 200, True, None), Transform(8, 3), "some"))

    one, *others = decoded(1, 1000), decoded(3, 1000), decoded(3, 0), decoded(2, 100)
    assert (len(one), len(one.skipped), one.value_range) == (198, 2, (0, 4095))
    for other in others:
        assert other.images.equal(one.images)
        assert other.labels.equal(one.labels)
        assert (other.skipped, other.notes) == (one.skipped, one.notes)


def test_a_process_that_dies_is_told(monkeypatch):
    file = plain("L", GRAY)
    process = _Process(Transform(8, 1))
    assert process.decode([Example(file, "a", 0)])[0].problem is None
    process.process.kill()
    process.process.wait()
    with pytest.raises(OSError, match="a to b"):
        process.decode([Example(file, "a", 0), Example(file, "b", 0)])
    process.close()


def test_a_failing_address_is_raised_from_a_process():
    process = _Process(Transform(8, 1))
    with pytest.raises(OSError, match=r"dataset.name: memory://nothing.png"):
        process.decode([Example("memory://nothing.png", "nothing.png", None)])
    process.close()
