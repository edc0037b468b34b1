"""`dataset`: what its fields get wrong together."""

import pytest
from pydantic import ValidationError

from ddpm_hf.config import DatasetConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_split": "test", "validation_fraction": 0.1}, "validation_fraction"),
        ({"validation_split": "train"}, "images that are not in split train"),
        ({"validation_split": "train[80%:]"}, "images that are not in split train"),
        ({"split": "train[:80%]", "validation_split": "train"}, r"images that are not in split train\[:80%\]"),
        ({"split": "train[:80%]", "validation_split": "train[70%:90%]"}, "images that are not in split"),
        ({"split": "train[:1000]", "validation_split": "train[999:]"}, "images that are not in split"),
        ({"in_memory": True, "cache_dir": "somewhere"}, "in_memory"),
        ({"validation_fraction": 1}, "less than 1"),
        ({"validation_fraction": -0.1}, "greater than or equal to 0"),
        ({"background": [0, 0, 256]}, "less than or equal to 255"),
        ({"resize": "stretch"}, "'crop' or 'pad'"),
    ],
)
def test_what_does_not_fit_together_is_told(values, message):
    with pytest.raises(ValidationError, match=message):
        DatasetConfig(**values)


@pytest.mark.parametrize(
    ("split", "validation"),
    [
        ("train", "test"),
        ("train[:80%]", "train[80%:]"),
        ("train[1000:]", "train[:1000]"),
        ("train[:80%]", "train[50000:]"),  # not to be told without the number of images
        ("train+test", "validation"),
    ],
)
def test_splits_that_are_apart_are_taken(split, validation):
    assert DatasetConfig(split=split, validation_split=validation).validation_split == validation
