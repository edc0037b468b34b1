"""`loss_config.perceptual` and `loss_config.adversarial`: losses that judge the image a prediction stands for."""

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import field_validator
from pydantic_core import PydanticCustomError

from ddpm_hf.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

LPIPS_BACKBONES = ("lpips-alex", "lpips-vgg", "lpips-squeeze")


class PerceptualConfig(Section):
    """How much the predicted image must look like the real one to a frozen network."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term; 0: no perceptual loss, and nothing is loaded."""
    backbone: str | None = None
    """`lpips-alex`, `lpips-vgg` or `lpips-squeeze` (LPIPS, needs torchvision); the Hub id or local folder of an image
    backbone of transformers, such as microsoft/resnet-18; or `digits`, a small one of the built-in digits that is
    trained on the spot."""
    stages: Annotated[tuple[NonNegativeInt, ...], Len(min_length=1)] | None = None
    """Stages of the backbone whose features are compared, 0 being the stem; null: all but the stem. LPIPS has its
    own."""
    image_size: PositiveInt | None = None
    """Side to which images are resized for the backbone, in pixels; null: their own, but at least 64."""

    @field_validator("backbone")
    @classmethod
    def _named(cls, backbone: str | None, info: Any) -> str | None:
        if backbone is None and info.data.get("weight"):
            allowed = "{lpips}, digits, or the Hub id or folder of an image backbone, since weight is above 0"
            raise PydanticCustomError("no_backbone", allowed, {"lpips": ", ".join(LPIPS_BACKBONES)})
        if backbone is not None and backbone.startswith("lpips") and backbone not in LPIPS_BACKBONES:
            raise PydanticCustomError("lpips", "{lpips}", {"lpips": ", ".join(LPIPS_BACKBONES)})
        return backbone

    @field_validator("stages")
    @classmethod
    def _stages_of_a_backbone(cls, stages: tuple[int, ...] | None, info: Any) -> tuple[int, ...] | None:
        if stages is not None and info.data.get("backbone") in LPIPS_BACKBONES:
            raise PydanticCustomError("lpips_stages", "null, since LPIPS has stages of its own")
        if stages is not None and list(stages) != sorted(set(stages)):
            raise PydanticCustomError("stages", "each stage once, in rising order")
        return stages


class AdversarialConfig(Section):
    """How hard it must be for a discriminator to tell predicted images from real ones."""

    weight: NonNegativeFloat = 0.0
    """Weight of the term; 0: no adversarial loss, and no discriminator."""
    loss: Literal["hinge", "non_saturating"] = "hinge"
    """The game's losses (Lim & Ye 2017; Goodfellow et al. 2014)."""
    start_step: NonNegativeInt = 0
    """Training step at which the game begins; before it predictions are too blurry to learn from."""
    update_every: PositiveInt = 1
    """Steps of the network per step of the discriminator."""
    gradient_penalty: NonNegativeFloat = 1.0
    """Weight of R1, half the squared gradient of the discriminator at real images (Mescheder et al. 2018); 0: none."""
    learning_rate: PositiveFloat = 2e-4
    """Of the discriminator's Adam, constant."""
    hidden_channels: PositiveInt = 64
    """Channels of the discriminator at full resolution; twice as many per level, four times at most."""
    num_levels: PositiveInt = 2
    """Times that the discriminator halves the resolution; an image gets a verdict per patch that remains."""
