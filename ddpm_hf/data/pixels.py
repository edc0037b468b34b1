"""One image: from a file of any kind to a square uint8 array."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from ddpm_hf.runtime.errors import UserError

try:
    import pillow_heif  # optional: reads HEIC
except ImportError:
    HEIF = ""
else:
    pillow_heif.register_heif_opener()
    HEIF = f", pillow-heif {pillow_heif.__version__}"

Pixels = UInt8[np.ndarray, "channels height width"]
ValueRange = tuple[float, float]

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can hold a huge one."""

DECODER = f"1, Pillow {PIL.__version__}{HEIF}"
"""What decoded images depend on besides their files and `Transform`; the number counts changes of this module."""

PAGED = ("TIFF", "GIF", "WEBP", "PNG", "AVIF", "HEIF")
"""Formats whose further frames are images of their own, rather than thumbnails or layers."""

SUBFILE_TYPE, PHOTOMETRIC, SAMPLES_PER_PIXEL, EXTRA_SAMPLES, RGB = 254, 262, 277, 338, 2
"""Tags of TIFF, and the value of PHOTOMETRIC for colour."""

RAW = "camera raw, which holds only a thumbnail for Pillow; develop it first, as with rawpy"
UNREADABLE = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC, which pillow-heif reads: pip install pillow-heif"),
    ".avif": "AVIF, which Pillow 11.3 or later reads: pip install -U pillow",
    ".jxl": "JPEG XL, which is not supported; convert it first, as with djxl",
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw"), RAW),
    **dict.fromkeys((".svg", ".svgz"), "SVG, which has no pixels; draw it first, as with cairosvg"),
    ".psb": "a large Photoshop document; save it as PNG first",
    ".xcf": "GIMP's own format; export it as PNG first",
    ".exr": "OpenEXR; convert it to float TIFF first, as with OpenEXR",
    ".hdr": "Radiance HDR; convert it to float TIFF first, as with imageio",
    ".dcm": "DICOM; convert it to 16-bit PNG or TIFF first, as with pydicom",
    ".nii": "NIfTI; convert its slices to TIFF first, as with nibabel",
}
"""Images that Pillow cannot read, by the ending of their names, with what can."""


def image_suffixes() -> set[str]:
    """Endings of the names of images, whether or not they can be read."""
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return {*suffixes, *UNREADABLE} - {".h5", ".hdf", ".bufr", ".grib", ".mpg", ".mpeg"}  # which Pillow only recognises


class Example(NamedTuple):
    """One encoded image.

    Attributes:
        file: its bytes, its path or URL, or an image already in memory.
        name: for messages.
        label: the number or name of its class, if it has one.
        problem: why it cannot be opened, if that is known.
    """

    file: bytes | str | Image.Image
    name: str
    label: int | float | str | None
    problem: str | None = None


class Deep(NamedTuple):
    """An image of 16 bits, 32 bits or floats, already in its final size, whose range of values is yet to be chosen.

    Attributes:
        values: as they are in the file.
        low: least value of the image before it was resized.
        high: greatest value.
        is_float: whether the file holds floats.
    """

    values: Float32[np.ndarray, "rows columns"]
    low: float
    high: float
    is_float: bool


def open_image(file: bytes | str | Path) -> Image.Image:
    """Decode an image from its bytes or path: its first page, upright as its EXIF data say.

    Raises:
        ValueError: if the file is not an image, is damaged, or has more than MAX_PIXELS pixels.
    """
    return next(open_pages(file, "" if isinstance(file, bytes) else str(file), False, Counter()))


def open_pages(file: bytes | str | Path, name: str, all_pages: bool, notes: Counter[str]) -> Iterator[Image.Image]:
    """Decode the first page of an image, or every page in turn; see `open_image`.

    Args:
        file: bytes or path.
        name: whose ending tells what kind of image it is if Pillow cannot.
        all_pages: whether to go on after the first page.
        notes: counts images with further "pages" that are left out, with "bands" that are, and with a "depth" of 16
            bits of which Pillow reads 8.
    """
    kind = UNREADABLE.get(Path(name).suffix.lower())
    try:
        if kind is RAW:
            raise ValueError(kind)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            pages = _pages(image)
            if len(pages) > 1 and not all_pages:
                notes["pages"] += 1
            for page in pages if all_pages else [0]:
                if page:
                    image.seek(page)
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS:,} in all are decoded")
                if image.format == "EPS":
                    raise ValueError("PostScript is a program, and is not run")
                tags = getattr(image, "tag_v2", {})  # of a TIFF
                num_bands = tags.get(SAMPLES_PER_PIXEL, 1) if tags.get(PHOTOMETRIC) == RGB else 1
                is_deep = any(";16" in str(tile[3]) for tile in image.tile) and not image.mode.startswith("I")
                notes["depth"] += is_deep
                has_alpha = num_bands == 4 and bool({1, 2} & set(tags.get(EXTRA_SAMPLES, ())))
                image.load()
                upright = ImageOps.exif_transpose(image)
                if num_bands > 3 and not has_alpha:
                    notes["bands"] += 1
                    upright = upright.convert("RGB")
                yield upright
    except MemoryError:
        raise
    except PIL.UnidentifiedImageError:
        raise ValueError(kind or "no image that Pillow can read" if _size_of(file) else "empty") from None
    except Exception as error:  # Pillow's readers raise struct.error, KeyError, IndexError and others
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(" ".join(text.split()) or type(error).__name__) from error


def _pages(image: Image.Image) -> list[int]:
    """The numbers of the frames that are images of their own."""
    if image.format not in PAGED or not getattr(image, "is_animated", False):
        return [0]
    pages = []
    for page in range(getattr(image, "n_frames", 1)):
        if image.format == "TIFF":
            image.seek(page)
            if page and image.tag_v2.get(SUBFILE_TYPE, 0) & 5:  # type: ignore[attr-defined]
                continue  # a smaller copy or a mask of another page
        pages.append(page)
    image.seek(0)
    return pages


def _size_of(file: bytes | str | Path) -> int:
    return len(file) if isinstance(file, bytes) else Path(file).stat().st_size


@dataclass(frozen=True)
class Transform:
    """How images come to have one shape.

    Attributes:
        size: side of a square, or height and width, in pixels.
        channels: 1 for gray, 3 for RGB.
        resize: "crop" makes an image cover the shape and takes its centre; "pad" makes it fit and adds bars.
        background: red, green and blue, 0 to 255, behind transparent pixels and in the bars.
        value_range: black and white of images of 16 bits, 32 bits or floats; None chooses it by their values.
        pages: "first" takes one image of each file, "all" every page.
    """

    size: int | tuple[int, int]
    channels: int
    resize: Literal["crop", "pad"] = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    value_range: ValueRange | None = None
    pages: Literal["first", "all"] = "first"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, image: Image.Image) -> Pixels:
        """Convert an image of any mode; one of 16 bits or floats by `value_range`, or else by its own values."""
        prepared = self.prepare(image)
        if isinstance(prepared, Deep):
            value_range = self.value_range or choose_range(prepared.low, prepared.high, prepared.is_float)
            return self.scale(prepared.values, value_range)
        return prepared

    def prepare(self, image: Image.Image) -> Pixels | Deep:
        """Convert an image of 8 bits; resize one of more."""
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image, dtype=np.float32)
            finite = values[np.isfinite(values)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
            values = np.where(np.isfinite(values), values, np.float32(low))
            resized = self._resize(Image.fromarray(values))
            return Deep(np.asarray(resized), low, high, image.mode.startswith("F"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*self.background, 255)), image)
        return self._framed(self._resize(image.convert("L" if self.channels == 1 else "RGB")))

    def scale(self, values: Float32[np.ndarray, "rows columns"], value_range: ValueRange) -> Pixels:
        """Map a range of values to 0 to 255, and cut off what lies outside."""
        low, high = value_range
        levels = ((values.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255)
        return self._framed(Image.fromarray(levels.astype(np.uint8)).convert("L" if self.channels == 1 else "RGB"))

    def _resize(self, image: Image.Image) -> Image.Image:
        height, width = self.sides
        if image.size == (width, height):
            return image
        if self.resize == "crop":
            return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        scale = min(width / image.width, height / image.height)
        fitting = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(fitting, Image.Resampling.LANCZOS)

    def _framed(self, image: Image.Image) -> Pixels:
        """Add the bars of `pad`."""
        height, width = self.sides
        if image.size != (width, height):
            padded = Image.new("RGB", (width, height), self.background).convert(image.mode)
            padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
            image = padded
        return np.asarray(image).reshape(height, width, self.channels).transpose(2, 0, 1)


def choose_range(low: float, high: float, is_float: bool) -> ValueRange:
    """Choose black and white by the least and greatest value of a set of images.

    Returns:
        0 to 1, -1 to 1 or 0 to 255 for floats that plainly have that range; else 0 to the greatest value of the fewest
        bits, 8 to 16, that hold all values.

    Raises:
        UserError: if values are negative or beyond 16 bits, so that a person must say which of them matter.
    """
    slack = 1e-3
    if is_float and low >= 0 and high <= 1 + slack:
        return 0.0, 1.0
    if is_float and -1 - slack <= low <= -0.5 and 0.5 <= high <= 1 + slack:
        return -1.0, 1.0
    if low >= 0 and high < 2**16 and (not is_float or high >= 16):
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    raise UserError(
        f"dataset.value_range: given auto, but the images hold {'floats' if is_float else 'whole numbers'} from "
        f"{low:,.6g} to {high:,.6g}; say which become black and white, such as [{low:.6g}, {high:.6g}]"
    )
