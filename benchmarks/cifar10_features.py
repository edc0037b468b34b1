"""A small classifier of CIFAR-10 at 16x16, trained on the spot: the features in which equal_time.py compares choices.

It is trained on images that no choice is trained on or measured against. A Fréchet distance in its features is an FD
(CIFAR-10 classifier), never an FID.
"""

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.extractors.base import FeatureExtractor, Features, Images, to_network_size
from ddpm_hf.models.classifier import train_classifier
from ddpm_hf.runtime.files import atomic_write, cache_folder

SIDE, NUM_FEATURES = 16, 64
EPOCHS, BATCH_SIZE = 6, 128


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
    file = cache_folder() / "benchmarks-cifar10-classifier.safetensors"
    if file.exists():
        classifier = Cifar10Classifier()
        classifier.load_state_dict(load_file(file))
        return classifier
    classifier = train_cifar10_classifier(images)
    with atomic_write(file) as aside:
        save_file(classifier.state_dict(), aside)
    return classifier


def train_cifar10_classifier(images: ImageSet) -> Cifar10Classifier:
    """Train on labelled images, from the same first weights and in the same order each time."""
    assert images.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Cifar10Classifier()
    train_classifier(
        lambda some: classifier(some).logits,
        classifier.parameters(),
        images.images,
        images.labels,
        classifier.label,
        EPOCHS,
        BATCH_SIZE,
        decay=True,
    )
    return classifier
