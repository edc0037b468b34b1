"""A small classifier of CIFAR-10 at 16x16, trained on the spot: the features in which equal_time.py compares choices.

It is trained on images that no choice is trained on or measured against. A Fréchet distance in its features is an FD
(CIFAR-10 classifier), never an FID.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm_hf.data import ImageSet
from ddpm_hf.data.cache_folder import cache_folder
from ddpm_hf.evaluation.features import FeatureExtractor, Features, Images, to_network_size
from ddpm_hf.files import written_whole
from ddpm_hf.randomness import generator_at

SIDE, NUM_FEATURES = 16, 64
EPOCHS, BATCH_SIZE, LEARNING_RATE = 6, 128, 3e-3


class Cifar10Classifier(FeatureExtractor):
    """Three convolutions and a layer of 64 features below the ten classes."""

    def __init__(self) -> None:
        super().__init__(
            name="cifar10",
            label="CIFAR-10 classifier",
            description=f"{NUM_FEATURES} features of a small classifier of CIFAR-10 at {SIDE}x{SIDE}",
            resize=f"bilinear with anti-aliasing to {SIDE}x{SIDE}",
            num_features=NUM_FEATURES,
            num_classes=10,
            channels=(3,),
        )
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, NUM_FEATURES),
            nn.Tanh(),
        )
        self.head = nn.Linear(NUM_FEATURES, 10)

    def forward(self, images: Images) -> Features:
        """Look at images of any size, 0 to 255."""
        values = self.body(to_network_size(images, (SIDE, SIDE), 3, "bilinear"))
        return Features(values, self.head(values))


def load_cifar10_classifier(images: ImageSet) -> Cifar10Classifier:
    """The classifier from the cache; trained on some images first, where it is not there."""
    classifier, file = Cifar10Classifier(), cache_folder() / "benchmarks-cifar10-classifier.safetensors"
    if file.exists():
        classifier.load_state_dict(load_file(file))
        return classifier
    train(classifier, images)
    with written_whole(file) as aside:
        save_file(classifier.state_dict(), aside)
    return classifier


def train(classifier: Cifar10Classifier, images: ImageSet) -> None:
    """Train on labelled images, from the same first weights and in the same order each time."""
    assert images.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier.load_state_dict(Cifar10Classifier().state_dict())
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(images) // BATCH_SIZE))
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator_at(0, "CIFAR-10 classifier", epoch))
        for batch in order.split(BATCH_SIZE):
            loss = F.cross_entropy(_logits(classifier, images.images[batch]), images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()


@torch.no_grad()
def accuracy(classifier: Cifar10Classifier, images: ImageSet) -> float:
    """The share of labelled images that it names rightly."""
    assert images.labels is not None
    right = [
        _logits(classifier, pixels).argmax(1) == labels
        for pixels, labels in zip(images.images.split(1000), images.labels.split(1000), strict=True)
    ]
    return float(torch.cat(right).double().mean())


def _logits(classifier: Cifar10Classifier, images: Images) -> Tensor:
    logits = classifier(images).logits
    assert logits is not None
    return logits
