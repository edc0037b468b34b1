"""Networks whose features compare images: small classifiers, trained without a download, and pretrained ones."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from ddpm_hf.runtime.randomness import generator_at

LEARNING_RATE = 3e-3

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224


@torch.enable_grad()
def train_classifier(
    logits_of: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    images: Shaped[Tensor, "num_images channels height width"],
    labels: Int64[Tensor, " num_images"],
    name: str,
    epochs: int,
    batch_size: int,
    decay: bool,
) -> None:
    """Train to classify labelled images by AdamW; the same first weights give the same network each time.

    Args:
        logits_of: from a batch of the images to a row of logits for each.
        parameters: to train.
        images: in the form that logits_of takes.
        labels: from 0.
        name: of the network; the order of the images follows from it.
        epochs: passes over the images.
        batch_size: images in an update.
        decay: whether the learning rate falls to 0 along a cosine, or stays.
    """
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    num_updates = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_updates) if decay else None
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator_at(0, name, epoch))
        for batch in order.split(batch_size):
            loss = F.cross_entropy(logits_of(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


def preprocessing_of(name: str, config: Any) -> tuple[int, Sequence[float], Sequence[float]]:
    """Read how a vision model of transformers wants its images.

    Args:
        name: Hub id or folder; it may hold the network alone.
        config: of the network, which together with ImageNet's statistics stands in for what is not stated.

    Returns:
        The side of its square images in pixels, and mean and standard deviation of each channel in [0, 1].
    """
    from transformers.image_processing_base import ImageProcessingMixin  # takes seconds to import

    try:
        options, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # the folder holds only the network
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
