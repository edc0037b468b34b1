"""A backbone for the perceptual loss on the built-in digits: trained in seconds, nothing to download."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_hf.runtime.randomness import derive_seed, generator_at

EPOCHS, BATCH_SIZE, LEARNING_RATE = 8, 64, 3e-3


def train_digits_backbone() -> nn.Module:
    """Train a small ConvNeXt (Liu et al. 2022) to tell the digits of scikit-learn apart.

    It is the same network each time: its first weights, its images and their order are fixed, and one thread adds up.
    It has stages of 16 channels at 8x8 and 32 channels at 4x4, for gray images in [-1, 1], and shares nothing with the
    classifier whose features an evaluation of digits is done in.
    """
    from sklearn.datasets import load_digits
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
    labels = torch.from_numpy(digits.target)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive_seed(0, "digits backbone"))
            backbone = ConvNextBackbone(config)
            _train(backbone, nn.Linear(num_channels[-1], 10), images, labels)
    finally:
        torch.set_num_threads(threads)
    return backbone


def _train(backbone: nn.Module, head: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=LEARNING_RATE)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator_at(0, "digits backbone", epoch))
        for batch in order.split(BATCH_SIZE):
            features = backbone(images[batch]).feature_maps[-1].mean((2, 3))
            loss = F.cross_entropy(head(features), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
