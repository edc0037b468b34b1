"""`dataset`: which images the network learns from."""

from ddpm_hf.config.section import Section


class DatasetConfig(Section):
    """Where the images come from. All of them are resized and cropped to the model's square size."""

    name: str = "digits"
    """`digits` (scikit-learn's handwritten digits, no download), a folder of images, a parquet file or a folder of
    parquet files, or the id of a dataset on the Hub."""
    config: str | None = None
    """Configuration of a Hub dataset that has several."""
    split: str = "train"
    """Split of the dataset, or a part of one, such as train[:80%]."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    image_column: str | None = None
    """Column that holds the images; null: the one column of type image."""
    label_column: str | None = None
    """Column that holds the class of each image; null: the one column of type class label. Used by a model with
    num_classes."""
    horizontal_flip: bool = False
    """Mirror every other image at random; right for photographs, wrong for digits."""
