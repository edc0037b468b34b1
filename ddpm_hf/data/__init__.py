"""Images for training: where they come from, how they are decoded, and in which order they are seen."""

from ddpm_hf.data.image_loading import load_image_set, load_image_sets
from ddpm_hf.data.image_set import ImageSet, SampleOrder

__all__ = ["ImageSet", "SampleOrder", "load_image_set", "load_image_sets"]
