"""`dataset`: the images to train on, and those held out."""

import re
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, model_validator
from typing_extensions import Self

from ddpm_hf.config.hub import repo_id_of
from ddpm_hf.config.section import NUMBER, Fraction, Section

Level = Annotated[int, Ge(0), Le(255), NUMBER]
Finite = Annotated[float, NUMBER]


class DatasetConfig(Section):
    """Where the images come from, and how they become squares of the model's size."""

    name: Annotated[str, BeforeValidator(repo_id_of)] = "digits"
    """`digits` (scikit-learn's handwritten digits, no download); a folder of images, of parquet or arrow files or of
    webdataset shards (.tar), or one written by `save_to_disk`; one such file; or the id of a dataset on the Hub."""
    config: str | None = None
    """Configuration of a Hub dataset that has several."""
    split: str = "train"
    """Split of the dataset, or a part of one, such as train[:80%]."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool = False
    """Decode the images as they arrive, without storing parquet files or archives on disk. Takes whole splits only."""
    image_column: str | None = None
    """Column that holds the images; null: the only column of type image."""
    label_column: str | None = None
    """Column that holds the class of each image, as numbers or names; null: the only column of type class label, or
    `cls` in webdataset shards. Used by a model with num_classes."""
    resize: Literal["crop", "pad"] = "crop"
    """How an image becomes a square: `crop` resizes its shorter side and takes the centre, `pad` resizes its longer
    side and adds bars of the background colour."""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """Red, green and blue (0 to 255) behind transparent pixels and in the bars of `pad`."""
    value_range: Literal["auto"] | tuple[Finite, Finite] = "auto"
    """Values of images of 16 bits, 32 bits or floats that become black and white, such as [-1000, 400]; auto chooses
    them once for all images of the set, and says which. Images of 8 bits stay as they are."""
    pages: Literal["first", "all"] = "first"
    """Images that a file of several pages, such as TIFF, or an animation gives."""
    horizontal_flip: bool = False
    """Mirror every other image at random; right for photographs, wrong for digits."""
    strict: bool = False
    """Refuse to start if any image cannot be read, instead of skipping it."""
    validation_split: str | None = None
    """Split, or part of one, that is held out to measure the loss on, such as test or train[80%:]."""
    validation_fraction: Fraction = 0.0
    """Fraction of the images of `split`, chosen by the run's seed, that is held out instead."""
    cache_dir: str | None = None
    """Folder of the decoded images, shared by all processes of a machine and reused by later runs; null: `images` in
    $DDPM_HF_CACHE, or else in ddpm-hf in $XDG_CACHE_HOME or ~/.cache."""
    in_memory: bool = False
    """Decode at every start, into the memory of every process, and write no file of decoded images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        split = self.validation_split
        return self.refuse(
            (split and self.validation_fraction, "validation_split", "null, or validation_fraction 0"),
            (
                split and overlap(split, self.split),
                "validation_split",
                f"images that are not in split {self.split}, as in train[:80%] and train[80%:]",
            ),
            (
                self.value_range != "auto" and self.value_range[0] >= self.value_range[1],
                "value_range",
                "auto, or [low, high] with low below high",
            ),
            (self.cache_dir is not None and self.in_memory, "cache_dir", "null, since in_memory writes no files"),
        )


def overlap(one: str, other: str) -> bool:
    """Whether two parts of a dataset share images, as far as their names tell without its size."""
    (name, *edges), (other_name, *other_edges) = parse_split(one), parse_split(other)
    if name != other_name:
        return False
    if not edges or not other_edges:
        return True
    (start, stop, unit), (other_start, other_stop, other_unit) = edges, other_edges
    units = {unit, other_unit} - {None}
    return len(units) < 2 and max(start, other_start) < min(stop, other_stop)


def parse_split(split: str) -> tuple:
    """Parse the `datasets` library's notation of a split, such as train[20%:40%].

    Returns:
        Its name; for a part of a split also start and stop, and their unit: "%", "images", or None for train[:].
    """
    match = re.fullmatch(r"(.+)\[(\d*)(%?):(\d*)(%?)\]", split)
    if match is None:
        return (split,)
    name, start, start_percent, stop, stop_percent = match.groups()
    unit = ("%" if start_percent or stop_percent else "images") if start or stop else None
    return name, float(start or 0), float(stop or "inf"), unit
