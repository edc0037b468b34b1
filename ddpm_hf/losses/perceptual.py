"""The perceptual loss: how different the predicted image looks from the real one, in features of a frozen network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int
from torch import Tensor, nn

from ddpm_hf.config.loss import LPIPS_BACKBONES, PerceptualConfig
from ddpm_hf.models.classifier import preprocessing_of, train_classifier
from ddpm_hf.runtime.errors import UserError, first_line
from ddpm_hf.runtime.randomness import derive_seed

Images = Float32[Tensor, "batch channels height width"]
PerImage = Float32[Tensor, " batch"]

SMALLEST_SIDE = 64  # pixels, below which deep stages have no room left


class PerceptualLoss(nn.Module):
    """Distance of predicted from real images in the features of a frozen backbone (Johnson et al. 2016; LPIPS).

    The backbone follows the module to its device, but is none of its parts: it is never trained, saved or counted.
    Construction fails if anything is missing or does not fit.

    Args:
        config: the backbone, its stages and the size of images for it.
        image_channels: of the images in training, 1 or 3.
        sides: their height and width, in pixels.

    Raises:
        UserError: if the backbone cannot be loaded or does not take these images.
    """

    def __init__(self, config: PerceptualConfig, image_channels: int, sides: tuple[int, int]) -> None:
        super().__init__()
        if config.backbone is None:
            raise UserError("a perceptual loss needs a backbone")
        scale = config.image_size / max(sides) if config.image_size else max(1.0, SMALLEST_SIDE / min(sides))
        self.sides = (round(sides[0] * scale), round(sides[1] * scale))
        distance = load_distance(config.backbone, config.stages)
        if image_channels not in (1, distance.num_channels):
            raise UserError(
                f"{config.backbone} takes images of {distance.num_channels} channels; given {image_channels}; allowed: "
                f"1 or {distance.num_channels}"
            )
        self.num_channels = distance.num_channels
        self._hidden = (distance,)  # in a tuple, so that Module does not see it
        self._try_out(config.backbone, image_channels, sides)

    def forward(self, predicted_x_0: Images, x_0: Images, timesteps: Int[Tensor, " batch"]) -> PerImage:
        """The distance of each image; `timesteps` does not matter.

        Args:
            predicted_x_0: images that the network's output implies, around [-1, 1].
            x_0: the real ones.
            timesteps: of each image.
        """
        with torch.autocast(x_0.device.type, enabled=False):
            return self._hidden[0](self._prepare(predicted_x_0), self._prepare(x_0))

    def _prepare(self, images: Images) -> Float32[Tensor, "batch backbone_channels rows columns"]:
        images = images.expand(-1, self.num_channels, -1, -1)  # grayscale: three equal channels
        if images.shape[-2:] == self.sides:
            return images
        return F.interpolate(images, self.sides, mode="bilinear", antialias=self.sides[1] < images.shape[-1])

    def _try_out(self, backbone: str, channels: int, sides: tuple[int, int]) -> None:
        try:
            with torch.no_grad():
                images = torch.zeros(1, channels, *sides)
                self(images, images, torch.zeros(1, dtype=torch.int64))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{backbone} does not take images of {self.sides[0]}x{self.sides[1]} pixels ({error}); set image_size "
                "to a side it takes"
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PerceptualLoss":
        self._hidden[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


class LpipsDistance(nn.Module):
    """LPIPS: a learned mean of squared feature differences (Zhang et al. 2018, eq. 1), from torchmetrics.

    Args:
        network: torchmetrics' LPIPS network.
    """

    num_channels = 3

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Images, references: Images) -> PerImage:
        """The distance of each image, in [-1, 1], from its reference."""
        return self.network(images, references).flatten()


class BackboneDistance(nn.Module):
    """Squared difference of unit-length features, summed over channels, averaged over places and stages.

    LPIPS (Zhang et al. 2018, eq. 1) with all channels weighted alike.

    Args:
        backbone: a transformers backbone, which returns one feature map per stage.
        mean, std: per channel, of images in [0, 1] as the backbone was trained on them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_channels: int = backbone.config.num_channels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Images, references: Images) -> PerImage:
        """The distance of each image, in [-1, 1], from its reference."""
        pairs = zip(self.features(images), self.features(references), strict=True)
        distances = [(one - other).square().sum(1).mean((1, 2)) for one, other in pairs]
        return torch.stack(distances).mean(0)

    def features(self, images: Images) -> list[Tensor]:
        """Feature maps (batch, channels, height, width) of each stage, of length 1 along the channels."""
        maps = self.backbone(((images + 1) / 2 - self.mean) / self.std).feature_maps
        return [F.normalize(each, dim=1, eps=1e-6) for each in maps]


def load_distance(backbone: str, stages: tuple[int, ...] | None) -> LpipsDistance | BackboneDistance:
    """Load a frozen network to compare images with, in evaluation mode.

    Args:
        backbone: one of `LPIPS_BACKBONES`, `digits` for a small one that is trained on the spot, or the Hub id or local
            folder of a transformers image backbone.
        stages: of a transformers backbone; None: all but the stem.

    Raises:
        UserError: if a package, the weights or a stage is missing, or the model is no image backbone.
    """
    if backbone in LPIPS_BACKBONES:
        distance: LpipsDistance | BackboneDistance = _load_lpips(backbone)
    elif backbone == "digits":
        distance = _train_digits(stages)
    else:
        distance = _load_backbone(backbone, stages)
    return distance.eval().requires_grad_(False)


def _load_lpips(backbone: str) -> LpipsDistance:
    try:
        # takes seconds to import, and may be missing
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(net_type=backbone.removeprefix("lpips-"))  # type: ignore[arg-type]
    except ModuleNotFoundError as error:
        raise UserError(f"{backbone} needs more packages: pip install torchmetrics torchvision") from error
    except RuntimeError as error:  # torchvision's compiled part does not find its operators in this torch
        raise UserError(f"{backbone} needs a torchvision that fits torch {torch.__version__}: {error}") from error
    except OSError as error:  # a failed download
        raise UserError(f"the weights of {backbone} cannot be loaded: {error}; or give a local backbone") from error
    return LpipsDistance(metric.net)


def _train_digits(stages: tuple[int, ...] | None) -> BackboneDistance:
    if stages is not None:
        raise UserError(f"stages of digits: given {list(stages)}; allowed: null, since it has two small ones")
    try:
        return BackboneDistance(train_digits_backbone(), [0.5], [0.5])
    except ModuleNotFoundError as error:
        raise UserError("the backbone digits needs transformers: pip install transformers") from error


def train_digits_backbone() -> nn.Module:
    """Train a small ConvNeXt (Liu et al. 2022) to classify scikit-learn's digits.

    It is the same network each time: its first weights, its images and their order are fixed, and one thread sums up.
    It has stages of 16 channels at 8x8 and 32 channels at 4x4, for gray images in [-1, 1], and shares nothing with the
    classifier whose features the evaluation of digits uses: no model is trained on the features that measure it.
    """
    # Both take a second to import.
    from sklearn.datasets import load_digits
    from transformers import ConvNextBackbone, ConvNextConfig

    options: dict[str, Any] = {"out_indices": [1, 2]}
    config = ConvNextConfig(
        num_channels=1, patch_size=1, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], image_size=8, **options
    )
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # sixteen levels of gray, 0 to 16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, "digits backbone"))
            backbone, head = ConvNextBackbone(config), nn.Linear(32, 10)
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


def _load_backbone(backbone: str, stages: tuple[int, ...] | None) -> BackboneDistance:
    try:
        # takes seconds to import, and may be missing
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING
    except ModuleNotFoundError as error:
        raise UserError(f"the backbone {backbone} needs transformers: pip install transformers") from error
    try:
        # AutoBackbone.from_pretrained asks the Hub first, and so knows no local folders; its mapping does
        config = AutoConfig.from_pretrained(backbone)
        network_class: Any = MODEL_FOR_BACKBONE_MAPPING.get(type(config), None)
        if network_class is None or not hasattr(config, "num_channels"):
            raise UserError(f"{backbone} is a {config.model_type}; allowed: image backbones, as resnet, dinov2 or swin")
        last = len(config.stage_names) - 1
        if stages is not None and stages[-1] > last:
            raise UserError(f"stages of {backbone}: given {list(stages)}; allowed: 0 to {last}")
        config.out_indices = list(stages or range(1, last + 1))
        network, report = network_class.from_pretrained(backbone, config=config, output_loading_info=True)
    except UserError:
        raise
    except (OSError, ImportError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"the backbone {backbone} cannot be loaded: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{backbone} lacks weights of its own, such as {missing[0]}: its features would be random")
    _, mean, std = preprocessing_of(backbone, config)
    return BackboneDistance(network, mean, std)
