"""`dataset`: which images the network learns from, and which it is held against."""

import re
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt
from pydantic import model_validator

from ddpm_hf.config.section import Float, Int, Section, mistakes

Level = Annotated[Int, Ge(0), Le(255)]


class DatasetConfig(Section):
    """Where the images come from, and how they become squares of the model's size."""

    name: str = "digits"
    """`digits` (scikit-learn's handwritten digits, no download); a folder of images, of parquet or arrow files or of
    webdataset shards (.tar), or one that `save_to_disk` wrote; one such file; or the id of a dataset on the Hub."""
    config: str | None = None
    """Configuration of a Hub dataset that has several."""
    split: str = "train"
    """Split of the dataset, or a part of one, such as train[:80%]."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool = False
    """Decode the images as they arrive and keep nothing else of them: no parquet files, archives or copies of them on
    disk. Takes whole splits."""
    image_column: str | None = None
    """Column that holds the images; null: the one column of type image."""
    label_column: str | None = None
    """Column that holds the class of each image, as numbers or names; null: the one column of type class label, or
    `cls` in webdataset shards. Used by a model with num_classes."""
    resize: Literal["crop", "pad"] = "crop"
    """How an image that is not square becomes one: `crop` resizes its shorter side and cuts out the middle, `pad`
    resizes its longer side and adds bars of the background's colour."""
    background: tuple[Level, Level, Level] = (255, 255, 255)
    """Red, green and blue (0 to 255) of what shows through transparent pixels and in the bars of `pad`."""
    horizontal_flip: bool = False
    """Mirror every other image at random; right for photographs, wrong for digits."""
    strict: bool = False
    """Refuse to start if any image cannot be read, instead of leaving it out."""
    validation_split: str | None = None
    """Split, or part of one, that is held out to measure the loss on, such as test or train[80%:]."""
    validation_fraction: Annotated[Float, Ge(0), Lt(1)] = 0.0
    """Share of the images of `split`, drawn by the run's seed, that is held out instead."""
    cache_dir: str | None = None
    """Folder of the decoded images, which all processes of a machine share and later runs find again; null: `images` in
    $DDPM_HF_CACHE, or else in ddpm-hf in $XDG_CACHE_HOME or ~/.cache."""
    in_memory: bool = False
    """Decode at every start, into the memory of every process, and keep no file of decoded images."""

    @model_validator(mode="after")
    def _check_together(self) -> "DatasetConfig":
        given = self.validation_split
        mistakes(
            ("validation_split", given, "null, since validation_fraction is given, too; leave one of them out")
            if given is not None and self.validation_fraction
            else None,
            ("validation_split", given, f"images that are not in split {self.split}, as in train[:80%] and train[80%:]")
            if given is not None and _overlap(given, self.split)
            else None,
            ("cache_dir", self.cache_dir, "null, since in_memory keeps no files")
            if self.cache_dir is not None and self.in_memory
            else None,
        )
        return self


def _overlap(one: str, other: str) -> bool:
    """Whether two parts of a dataset have images in common, as far as their names tell without knowing its size."""
    (name, *edges), (other_name, *other_edges) = _part(one), _part(other)
    if name != other_name:
        return False
    if not edges or not other_edges:
        return True
    (start, stop, unit), (other_start, other_stop, other_unit) = edges, other_edges
    units = {unit, other_unit} - {None}
    return len(units) < 2 and max(start, other_start) < min(stop, other_stop)


def _part(split: str) -> tuple:
    """The name of a split and, of a part such as train[20%:40%], where it starts and stops and in which unit."""
    match = re.fullmatch(r"(.+)\[(\d*)(%?):(\d*)(%?)\]", split)
    if match is None:
        return (split,)
    name, start, start_percent, stop, stop_percent = match.groups()
    unit = ("%" if start_percent or stop_percent else "images") if start or stop else None
    return name, float(start or 0), float(stop or "inf"), unit
