"""Feature extractors: find one by its name in `benchmark.features`, or load a module of the user's own."""

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.evaluation.extractors.base import FeatureExtractor, Features, Images
from ddpm_hf.evaluation.extractors.digits_classifier import NUM_FEATURES as NUM_DIGITS_FEATURES
from ddpm_hf.evaluation.extractors.digits_classifier import load_digits_classifier
from ddpm_hf.evaluation.extractors.pretrained import (
    NUM_INCEPTION_FEATURES,
    install_command,
    load_inception,
    load_vision_model,
)
from ddpm_hf.runtime.distributed import main_process_first
from ddpm_hf.runtime.errors import UserError

__all__ = ["NUM_FEATURES", "UserExtractor", "install_command", "load_extractor", "load_user_module"]

NUM_FEATURES = {"inception": NUM_INCEPTION_FEATURES, "digits": NUM_DIGITS_FEATURES}
"""Features of the extractors for which it is known before they are loaded."""


def load_extractor(config: BenchmarkConfig, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Load the extractor that a configuration names, frozen and with its weights.

    All processes call this together; one of them downloads or trains what is missing.

    Args:
        config: the section `benchmark`.
        device: of the network.

    Raises:
        UserError: if it is unknown, or a package or its weights are missing; with the command that helps.
    """

    def load() -> FeatureExtractor:
        name = config.features
        if name == "inception":
            return load_inception(config.inception_weights, config.inception_resize)
        if name == "digits":
            return load_digits_classifier()
        return UserExtractor(name, *load_user_module(name)) if ".py:" in name else load_vision_model(name)

    return main_process_first(load).eval().requires_grad_(False).to(device)


class UserExtractor(FeatureExtractor):
    """A user's own module, from uint8 images to one feature vector for each.

    Args:
        name: for the report.
        module: takes (batch, channels, height, width), 0 to 255.
        code: source text that the module depends on, besides its weights; None for that of its class.
        channels: of the images that it accepts.
    """

    def __init__(
        self, name: str, module: nn.Module, code: str | None = None, channels: tuple[int, ...] = (1, 3)
    ) -> None:
        super().__init__(name, name, "a module of the user's", "the module's own", 0, channels=channels)
        self.module = module.eval()
        self._code = _source_of(module) if code is None else code

    @property
    def fingerprint(self) -> str:
        """A hash of name, weights and code, since a module without weights may change too."""
        return f"{super().fingerprint}|{hashlib.sha256(self._code.encode()).hexdigest()[:16]}"

    def probe(self, image_shape: tuple[int, int, int]) -> None:
        """Find the number of features by a black and a white image.

        Args:
            image_shape: channels, height, width.

        Raises:
            UserError: if the module fails on them, or does not return a row for each.
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
        """Extract features by the user's module; see `FeatureExtractor.forward`."""
        return Features(self.module(images).float(), None)


def load_user_module(name: str) -> tuple[nn.Module, str]:
    """Import a module, or a function that makes one, from a Python file.

    Args:
        name: FILE.py:NAME.

    Returns:
        The module, and the text of the file.

    Raises:
        UserError: if there is no such file or name, or it is no torch module.
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


def _source_of(module: nn.Module) -> str:
    try:
        return inspect.getsource(type(module))
    except (OSError, TypeError):  # a class that was defined interactively has none
        return ""
