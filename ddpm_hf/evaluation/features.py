"""From images to features: what every extractor is, and how one is found by name."""

import hashlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.runtime.distributed import main_process_first
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.memory import Chunks

Images = UInt8[Tensor, "batch channels height width"]


@dataclass(frozen=True)
class Features:
    """What an extractor sees in a batch.

    Attributes:
        values: one row per image.
        logits: of the extractor's own classes, or None if it is no classifier.
    """

    values: Float32[Tensor, "batch features"]
    logits: Float32[Tensor, "batch classes"] | None


class FeatureExtractor(nn.Module):
    """A frozen network that looks at uint8 images; subclasses implement `forward`.

    Args:
        name: as given in `benchmark.features`.
        label: how the report names the features.
        description: what they are, in one sentence.
        resize: how images come to the network's size.
        num_features: length of a row.
        num_classes: of its logits; 0 if it is no classifier.
        channels: of the images that it takes; an extractor of 3 takes gray ones too.
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
        """Look at images.

        Args:
            images: 0 to 255, of any size.
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


class Extraction:
    """An extractor at work on one batch after the other, in parts where a batch is too large for the memory.

    Args:
        extractor: what looks at the images.
        device: where it is.
    """

    def __init__(self, extractor: FeatureExtractor, device: torch.device | str) -> None:
        self.extractor, self.device, self._chunks = extractor, device, Chunks("looking at")

    @torch.inference_mode()
    def __call__(self, images: Images) -> Features:
        """Look at images, wherever they are."""

        def look(part: range) -> Features:
            return self.extractor(images[part.start : part.stop].to(self.device))

        found = self._chunks(range(len(images)), look)
        if len(found) == 1:
            return found[0]
        logits = [each.logits for each in found if each.logits is not None]
        return Features(torch.cat([each.values for each in found]), torch.cat(logits) if logits else None)


def to_network_size(
    images: Images, size: tuple[int, int], channels: int, mode: str
) -> Float32[Tensor, "batch network_channels network_height network_width"]:
    """Resize images to what a network takes, and repeat a gray channel for one that takes colours.

    Args:
        images: 0 to 255.
        size: height and width.
        channels: 1 or 3.
        mode: of torch's interpolation, with anti-aliasing.

    Returns:
        In [0, 1].
    """
    pixels = images.float() / 255
    if pixels.shape[1] == 1 and channels == 3:
        pixels = pixels.expand(-1, 3, -1, -1)
    if tuple(pixels.shape[2:]) != size:
        pixels = F.interpolate(pixels, size=size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)
    return pixels


def load_extractor(config: BenchmarkConfig, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Find the extractor that a configuration names, with its weights, ready to use.

    All processes of a launch call this together; what has to be fetched or trained, one of them does.

    Raises:
        UserError: if it is unknown, or a package or its weights are missing; with the command that mends it.
    """
    extractor = main_process_first(lambda: _load(config))
    return extractor.eval().requires_grad_(False).to(device)


def _load(config: BenchmarkConfig) -> FeatureExtractor:
    name = config.features
    if name == "inception":
        from ddpm_hf.evaluation.inception import load_inception

        return load_inception(config.inception_weights, config.inception_resize)
    if name == "digits":
        from ddpm_hf.evaluation.digits_classifier import load_digits_classifier

        return load_digits_classifier()
    if ".py:" in name:
        return UserExtractor(name, *load_user_module(name))
    from ddpm_hf.evaluation.vision_models import load_vision_model

    return load_vision_model(name)


class UserExtractor(FeatureExtractor):
    """A module of the user's, from uint8 images to one row of features each.

    Args:
        name: how the report names the features.
        module: takes (batch, channels, height, width), 0 to 255.
        code: that the module runs, beside its weights; None for that of its class.
        channels: of the images that it takes.
    """

    def __init__(
        self, name: str, module: nn.Module, code: str | None = None, channels: tuple[int, ...] = (1, 3)
    ) -> None:
        super().__init__(name, name, "a module of the user's", "the module's own", 0, channels=channels)
        self.module = module.eval()
        self._code = _code_of(module) if code is None else code

    @property
    def fingerprint(self) -> str:
        """A hash of name, weights and code: a module without weights may be changed all the same."""
        return f"{super().fingerprint}|{hashlib.sha256(self._code.encode()).hexdigest()[:16]}"

    def probe(self, image_shape: tuple[int, int, int]) -> None:
        """Learn the number of features from two images, a black and a white one.

        Args:
            image_shape: channels, height, width.

        Raises:
            UserError: if the module fails on them, or returns anything but a row for each.
        """
        device = next((tensor.device for tensor in self.module.state_dict().values()), torch.device("cpu"))
        try:
            images = torch.tensor([0, 255], dtype=torch.uint8, device=device).view(2, 1, 1, 1)
            with torch.no_grad():
                rows = self.module(images.expand(2, *image_shape).contiguous())
        except Exception as error:
            raise UserError(f"benchmark.features: {self.name} fails on uint8 images {image_shape}: {error}") from error
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != 2 or not rows.shape[1]:
            shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise UserError(
                f"benchmark.features: {self.name} returns {shape} for two images; allowed: a tensor (batch, features)"
            )
        self.num_features = rows.shape[1]

    def forward(self, images: Images) -> Features:
        """Look at images.

        Args:
            images: 0 to 255.
        """
        return Features(self.module(images).float(), None)


def load_user_module(name: str) -> tuple[nn.Module, str]:
    """Import FILE.py:NAME, a module or a function that makes one; returns it and the text of the file.

    Raises:
        UserError: if there is no such file or name, or it is no module.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"benchmark.features: given {name!r}, but there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_ddpm_hf_features_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"benchmark.features: {path} is no Python file")
    source = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = source
    try:
        spec.loader.exec_module(source)
        found = getattr(source, attribute)
        module = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise UserError(f"benchmark.features: {name} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"benchmark.features: {name} is {type(module).__name__}; allowed: a torch module")
    return module, path.read_text(encoding="utf-8", errors="replace")


def _code_of(module: nn.Module) -> str:
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):  # of a class that was typed in, there is none
        return ""
