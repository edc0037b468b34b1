"""Training of the small classifiers whose features compare images without a download."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from ddpm_hf.runtime.randomness import generator_at

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
