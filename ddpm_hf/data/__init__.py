"""Images for training: where they come from, how they are decoded, and in which order they are seen.

The names are imported when they are first used: processes that decode images need no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_hf.data.image_loading import load_image_set, load_image_sets
    from ddpm_hf.data.image_set import ImageSet, SampleOrder

__all__ = ["ImageSet", "SampleOrder", "load_image_set", "load_image_sets"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddpm_hf.data import image_loading, image_set  # torch takes seconds to import

    return getattr(image_set if name in ("ImageSet", "SampleOrder") else image_loading, name)
