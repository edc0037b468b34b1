"""Images for training: where they come from, how they are decoded, and in which order they are seen."""

from ddpm_hf.data.image_set import ImageSet
from ddpm_hf.data.loading import load_image_set, load_image_sets
from ddpm_hf.data.order import SampleOrder

__all__ = ["ImageSet", "SampleOrder", "load_image_set", "load_image_sets"]
