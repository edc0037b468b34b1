"""The small networks that are trained on scikit-learn's digits: their training, and the perceptual loss's backbone."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from ddpm_hf.runtime.randomness import derive_seed, generator_at

LEARNING_RATE = 3e-3


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


def train_digits_backbone() -> nn.Module:
    """Train a small ConvNeXt (Liu et al. 2022) to classify scikit-learn's digits.

    It is the same network each time: its first weights, its images and their order are fixed, and one thread sums up.
    It has stages of 16 channels at 8x8 and 32 channels at 4x4, for gray images in [-1, 1], and shares nothing with the
    classifier whose features the evaluation of digits uses: no model is trained on the features that measure it.
    """
    from sklearn.datasets import load_digits  # only for this loss: both take a second to import
    from transformers import ConvNextBackbone, ConvNextConfig

    num_channels = [16, 32]
    options: dict[str, Any] = {"out_indices": [1, 2]}
    config = ConvNextConfig(
        num_channels=1,
        patch_size=1,
        num_stages=2,
        hidden_sizes=num_channels,
        depths=[1, 1],
        image_size=8,
        **options,
    )
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # sixteen levels of gray, 0 to 16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "digits backbone"))
            backbone, head = ConvNextBackbone(config), nn.Linear(num_channels[-1], 10)
            train_classifier(
                lambda some: head(backbone(some).feature_maps[-1].mean((2, 3))),
                [*backbone.parameters(), *head.parameters()],
                images,
                torch.from_numpy(digits.target),
                "digits backbone",
                epochs=8,
                batch_size=64,
                decay=False,
            )
    finally:
        torch.set_num_threads(threads)
    return backbone
