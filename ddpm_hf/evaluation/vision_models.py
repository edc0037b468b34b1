"""Any vision model of transformers as a feature extractor: DINOv2 gives FD-DINOv2 (Stein et al. 2023)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_hf.evaluation.features import FeatureExtractor, Features, Images, to_network_size
from ddpm_hf.runtime.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224


class VisionModel(FeatureExtractor):
    """One vector per image: CLIP's image embedding, a convolutional network's pooled map, or a transformer's token.

    Args:
        name: Hub id or folder.
        network: the transformers model.
        takes_pooled: whether its `pooler_output` has weights of its own; if not, the first token is taken.
        side: of the square images that it takes, in pixels.
        mean, std: per channel, of images in [0, 1] as it was trained on them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, network: Any, takes_pooled: bool, side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(
            name=name,
            label=name.rstrip("/").rsplit("/", 1)[-1],
            description=f"features of {name} ({type(network).__name__}), of transformers",
            resize=f"bicubic with anti-aliasing to {side}x{side}",
            num_features=0,
            channels=(1, 3) if len(mean) == 3 else (1,),
        )
        self.network, self.takes_pooled, self.side = network, takes_pooled, side
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Images) -> Features:
        """Look at images.

        Args:
            images: 0 to 255, of any size.
        """
        pixels = to_network_size(images, (self.side, self.side), len(self.mean), "bicubic")
        pixels = (pixels - self.mean) / self.std
        if hasattr(self.network, "get_image_features"):
            output = self.network.get_image_features(pixel_values=pixels)
        else:
            output = self.network(pixel_values=pixels)
        if isinstance(output, Tensor):
            return Features(output.float(), None)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self.takes_pooled:
            return Features(pooled.flatten(1).float(), None)
        hidden = output.last_hidden_state
        values = hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))
        return Features(values.float(), None)


def load_vision_model(name: str) -> VisionModel:
    """Load a model by Hub id or local folder.

    Raises:
        UserError: if it is not found, is no vision model, or lacks weights of its own.
    """
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging as transformers_logging
    except ModuleNotFoundError as error:
        raise UserError(f"features {name!r} need transformers: pip install transformers") from error
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
        network, report = AutoModel.from_pretrained(name, config=config, output_loading_info=True)
    except (OSError, ImportError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"benchmark.features: given {name!r}; allowed: inception, digits, FILE.py:NAME, or the Hub id or folder of "
            f"a transformers vision model, and that cannot be loaded: {reason}"
        ) from error
    if network.main_input_name != "pixel_values" and not hasattr(network, "get_image_features"):
        raise UserError(f"benchmark.features: {name} is a {config.model_type}, which looks at no images")
    missing = sorted(report["missing_keys"])
    takes_pooled = not any("pooler" in key for key in missing)
    if lacking := [key for key in missing if "pooler" not in key]:
        raise UserError(
            f"benchmark.features: {name} lacks weights of its own, such as {lacking[0]}: its features would be random"
        )
    extractor = VisionModel(name, network.eval(), takes_pooled, *_preprocessing(name, config))
    extractor.num_features = _count(extractor)
    return extractor


def _count(extractor: VisionModel) -> int:
    with torch.no_grad():
        black = torch.zeros(1, extractor.channels[-1], extractor.side, extractor.side, dtype=torch.uint8)
        return extractor(black).values.shape[1]


def _preprocessing(name: str, config: Any) -> tuple[int, Sequence[float], Sequence[float]]:
    """Side, mean and deviation of the model's own preprocessing, or else what its config and ImageNet have."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        options, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # a folder may hold the network alone
        options = {}
    vision = getattr(config, "vision_config", config)
    channels = getattr(vision, "num_channels", 3)
    size = options.get("crop_size") or options.get("size") or getattr(vision, "image_size", None) or DEFAULT_SIDE
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or DEFAULT_SIDE
    if isinstance(size, list | tuple):
        size = size[0]
    mean, std = options.get("image_mean") or IMAGENET_MEAN, options.get("image_std") or IMAGENET_STD
    if len(mean) != channels:
        mean, std = [0.5] * channels, [0.5] * channels
    return int(size), mean, std
