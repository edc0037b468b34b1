"""The interface of feature extractors: uint8 images in, one feature vector for each image out."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from ddpm_hf.runtime.memory import Chunks

Images = UInt8[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Features:
    """The output of an extractor for a batch.

    Attributes:
        values: one feature vector for each image.
        logits: of the extractor's own classes; None if it is no classifier.
    """

    values: Float32[Tensor, "batch features"]
    logits: Float32[Tensor, "batch classes"] | None


class FeatureExtractor(nn.Module):
    """A frozen network that extracts features from uint8 images; subclasses implement `forward`.

    Args:
        name: as given in `benchmark.features`.
        label: short, for the names of metrics.
        description: one sentence for the report.
        resize: how images are brought to the network's size, for the report.
        num_features: length of a feature vector.
        num_classes: number of logits; 0 if it is no classifier.
        channels: of the images that it accepts; an extractor of RGB images accepts gray ones too.
    """

    def __init__(
        self,
        name: str,
        label: str,
        description: str,
        resize: str,
        num_features: int,
        num_classes: int = 0,
        channels: tuple[int, ...] = (1, 3),
    ) -> None:
        super().__init__()
        self.name, self.label, self.description, self.resize = name, label, description, resize
        self.num_features, self.num_classes, self.channels = num_features, num_classes, channels

    def forward(self, images: Images) -> Features:
        """Extract features.

        Args:
            images: 0 to 255, of any size, on the device of the network.

        Returns:
            `num_features` values and, of a classifier, `num_classes` logits for each image, in float32.

        Raises:
            NotImplementedError: in this base class.
        """
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """A hash of name, weights and resizing: features of different fingerprints are not comparable."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{self.name}|{self.resize}|{digest.hexdigest()[:16]}"


@torch.inference_mode()
def extract_features(
    extractor: FeatureExtractor, images: Images, device: torch.device | str, chunks: Chunks
) -> Features:
    """Extract the features of a batch.

    Args:
        extractor: to be applied.
        images: 0 to 255, on any device.
        device: of the extractor's network.
        chunks: remembers how many images at a time fit in memory.
    """
    found = chunks(range(len(images)), lambda chunk: extractor(images[chunk.start : chunk.stop].to(device)))
    logits = [each.logits for each in found if each.logits is not None]
    return Features(torch.cat([each.values for each in found]), torch.cat(logits) if logits else None)


def to_network_size(
    images: Images, size: tuple[int, int], channels: int, mode: str
) -> Float32[Tensor, "batch network_channels network_height network_width"]:
    """Resize images for a network, and repeat a gray channel for one of RGB images.

    Args:
        images: 0 to 255.
        size: height and width in pixels.
        channels: 1 or 3.
        mode: of torch's interpolation, with anti-aliasing.

    Returns:
        Images in [0, 1].
    """
    pixels = images.float() / 255
    if pixels.shape[1] == 1 and channels == 3:
        pixels = pixels.expand(-1, 3, -1, -1)
    if tuple(pixels.shape[2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
    return pixels
