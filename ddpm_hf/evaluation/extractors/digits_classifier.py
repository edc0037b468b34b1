"""Features of digits without a download: a small classifier of scikit-learn's 8x8 digits, trained in seconds.

A Fréchet distance in its features is an FD (digits classifier), never an FID.
"""

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data import load_image_set
from ddpm_hf.evaluation.extractors.base import FeatureExtractor, Features, Images, to_network_size
from ddpm_hf.evaluation.feature_store import cached_tensors
from ddpm_hf.models.classifier import train_classifier
from ddpm_hf.runtime.files import cache_folder
from ddpm_hf.runtime.randomness import generator_at

VERSION = 2
"""Of the network, its training and the file; part of the name of the cached file."""

NUM_FEATURES = 64
EPOCHS, BATCH_SIZE = 30, 64


class DigitsClassifier(FeatureExtractor):
    """Two convolutions and a layer of 64 features below ten classes.

    Args:
        accuracy: on the held-out fifth of the digits, in [0, 1]; None before training.
    """

    def __init__(self, accuracy: float | None = None) -> None:
        tested = "" if accuracy is None else f", with an accuracy of {accuracy:.1%} on the held-out fifth"
        super().__init__(
            name="digits",
            label="digits classifier",
            description=f"{NUM_FEATURES} features of ddpm-hf's own small classifier of scikit-learn's digits{tested}",
            resize="bilinear with anti-aliasing to 8x8",
            num_features=NUM_FEATURES,
            num_classes=10,
            channels=(1,),
        )
        self.accuracy = accuracy
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, NUM_FEATURES),
            nn.Tanh(),
        )
        self.head = nn.Linear(NUM_FEATURES, 10)

    def forward(self, images: Images) -> Features:
        """Extract features of gray images of any size; see `FeatureExtractor.forward`."""
        values = self.body(to_network_size(images, (8, 8), 1, "bilinear"))
        return Features(values, self.head(values))


def load_digits_classifier() -> DigitsClassifier:
    """Load the classifier from the cache; train it first, which takes seconds, if it is not there or damaged."""
    tensors = cached_tensors(cache_folder() / f"digits-classifier-{VERSION}.safetensors", train_digits_classifier)
    classifier = DigitsClassifier(tensors.pop("accuracy").item())
    classifier.load_state_dict(tensors)
    return classifier


def train_digits_classifier() -> dict[str, Tensor]:
    """Train on four fifths of the digits: split, initialisation and order are fixed, and so are the weights.

    Returns:
        The weights, and "accuracy" on the last fifth.
    """
    digits = load_image_set(
        DatasetConfig(), ModelConfig(image_size=8, image_channels=1, channel_multipliers=(1,), attention_levels=())
    )
    assert digits.labels is not None
    order = torch.randperm(len(digits), generator=generator_at(0, "digits classifier"))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = DigitsClassifier()
    train_classifier(
        lambda images: _logits(classifier, images),
        classifier.parameters(),
        digits.images[train],
        digits.labels[train],
        classifier.label,
        EPOCHS,
        BATCH_SIZE,
        decay=True,
    )
    tested = torch.tensor(accuracy(classifier, digits.images[test], digits.labels[test]), dtype=torch.float64)
    return {**classifier.state_dict(), "accuracy": tested}


@torch.no_grad()
def accuracy(classifier: FeatureExtractor, images: Images, labels: Int64[Tensor, " batch"]) -> float:
    """The share of labelled images that are classified correctly, in [0, 1]."""
    batches = zip(images.split(1000), labels.split(1000), strict=True)
    is_correct = [_logits(classifier, batch).argmax(1) == classes for batch, classes in batches]
    return float(torch.cat(is_correct).double().mean())


def _logits(classifier: FeatureExtractor, images: Images) -> Float32[Tensor, "batch classes"]:
    logits = classifier(images).logits
    assert logits is not None
    return logits
