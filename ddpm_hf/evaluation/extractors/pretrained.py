"""Features of pretrained networks: Inception-v3, and any vision model of transformers."""

import hashlib
import importlib.util
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.config.hub import REPO_ID
from ddpm_hf.evaluation.extractors.base import FeatureExtractor, Features, Images, to_network_size
from ddpm_hf.models.classifier import preprocessing_of
from ddpm_hf.runtime.cli import waiting
from ddpm_hf.runtime.errors import UserError, first_line

PACKAGES = {"torchmetrics": "torchmetrics", "torch_fidelity": "torch-fidelity", "torchvision": "torchvision"}
"""Modules that Inception needs, and the packages that contain them."""

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
HASH = "6726825d"
NUM_INCEPTION_FEATURES = 2048

RESIZES = {
    "tensorflow": "bilinear without anti-aliasing to 299x299, as TensorFlow 1 (the literature's)",
    "antialias": "bilinear with anti-aliasing to 299x299",
}


class Inception(FeatureExtractor):
    """Inception-v3 of the FID paper (Heusel et al. 2017), as torch-fidelity converted it and torchmetrics wraps it.

    Pool3's 2,048 features, and the 1,008 logits without bias of the Inception score (Salimans et al. 2016).

    Args:
        network: torchmetrics' NoTrainInceptionV3.
        resize: a key of `RESIZES`.
        other_weights: name of the file, if the weights are not torch-fidelity's.
    """

    def __init__(self, network: Any, resize: str, other_weights: str | None = None) -> None:
        description, name, label = "2,048 features of Inception-v3 of 2015-12-05", "inception", "Inception"
        if other_weights is None:
            description += ", the network of FID and Inception score"
        else:
            name, label = f"inception with the weights of {other_weights}", f"Inception, weights of {other_weights}"
            description = f"2,048 features of Inception-v3 with the weights of {other_weights}, not those of FID"
        super().__init__(
            name=name,
            label=label,
            description=description,
            resize=RESIZES[resize],
            num_features=NUM_INCEPTION_FEATURES,
            num_classes=1008,
        )
        self.network = network

    def forward(self, images: Images) -> Features:
        """Extract features of gray or RGB images of any size; see `FeatureExtractor.forward`."""
        # forward() returns only the first of the two outputs
        values, logits = self.network._torch_fidelity_forward(images.expand(-1, 3, -1, -1))
        return Features(values.float(), logits.float())


def load_inception(weights: str | None, resize: str) -> Inception:
    """Load Inception-v3.

    Args:
        weights: a local file; None takes torch-fidelity's, downloaded once into torch's cache. With other weights than
            these, no metric is called FID.
        resize: a key of `RESIZES`.

    Raises:
        UserError: naming every missing package and the missing weights, with the commands that install them.
    """
    problems = []
    if missing := _missing(PACKAGES):
        problems.append(
            f"features 'inception' needs packages that are not installed: {_install(missing)} (or choose other "
            "benchmark.features, such as 'digits' for handwritten digits or a transformers vision model)"
        )
    try:
        file = find_weights(weights)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3  # an optional package

        network = NoTrainInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(file), antialias=resize == "antialias"
        )
    except (ImportError, RuntimeError) as error:
        raise UserError(f"features 'inception' cannot be loaded: {error}") from error
    is_own = hashlib.sha256(file.read_bytes()).hexdigest().startswith(HASH)
    return Inception(network, resize, None if is_own else file.name)


def find_weights(weights: str | None) -> Path:
    """Find the file of Inception's weights, and check that it is safe: torch-fidelity unpickles whatever it is given.

    Args:
        weights: a local file; None takes the one in torch's cache, and downloads it first if needed.

    Raises:
        UserError: if it is missing, cannot be downloaded, or holds anything but tensors.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    file = Path(weights).expanduser() if weights else cached
    if weights and not file.is_file():
        raise UserError(f"benchmark.inception_weights: there is no file {file}; get it with: {_command(file)}")
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with waiting("downloading Inception's weights, 91 MB"):
                torch.hub.download_url_to_file(URL, str(file), HASH, progress=False)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "reason", error)  # of urllib's errors
            reason = getattr(reason, "strerror", None) or reason
            raise UserError(
                f"Inception's weights cannot be downloaded ({reason}); where there is a network: {_command(WEIGHTS)},"
                f" then here benchmark.inception_weights={WEIGHTS}, its path"
            ) from error
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        mend = "leave benchmark.inception_weights out" if weights else "delete it"
        raise UserError(
            f"benchmark.inception_weights: {file} holds no weights, or code beside them, which is not loaded; {mend}, "
            "and torch-fidelity's are downloaded"
        ) from error
    return file


def install_command(config: BenchmarkConfig) -> str | None:
    """A command that installs the packages that an evaluation lacks; None if it lacks none.

    Args:
        config: the section `benchmark`.
    """
    packages: dict[str, str] = {}
    if config.features == "inception":
        packages |= PACKAGES
    elif config.features != "digits" and ".py:" not in config.features:
        packages["transformers"] = "transformers"
    if config.metrics.ssim or config.metrics.psnr:
        packages["torchmetrics"] = PACKAGES["torchmetrics"]
    missing = _missing(packages)
    return _install(missing) if missing else None


def _missing(packages: dict[str, str]) -> list[str]:
    """Those of some packages, by module, that are not installed."""
    return [name for module, name in packages.items() if importlib.util.find_spec(module) is None]


def _install(packages: list[str]) -> str:
    """A command that installs packages without replacing torch: a torchvision for another torch breaks both."""
    if "torchvision" not in packages:
        return f"pip install {' '.join(packages)}"
    build = torch.__version__.partition("+")[2]  # such as cpu or cu128
    index = f" --extra-index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install {' '.join(packages)} torch=={torch.__version__}{index}"


def _command(file: str | Path) -> str:
    return f"curl -L -o {file} {URL}"


class VisionModel(FeatureExtractor):
    """A vision model of transformers; DINOv2 gives FD-DINOv2 (Stein et al. 2023).

    The features are CLIP's image embedding, a convolutional network's pooled map, or a transformer's first token.

    Args:
        name: Hub id or folder.
        network: the transformers model.
        takes_pooled: whether its `pooler_output` has pretrained weights; otherwise the first token is used.
        side: of its square images, in pixels.
        mean, std: of each channel of its training images, in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, network: Any, takes_pooled: bool, side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(
            name=name,
            label=name.rstrip("/").rsplit("/", 1)[-1],
            description=f"features of {name} ({type(network).__name__}), of transformers",
            resize=f"bicubic with anti-aliasing to {side}x{side}",
            num_features=0,
            channels=(1, 3) if len(mean) == 3 else (1,),
        )
        self.network, self.takes_pooled, self.side = network, takes_pooled, side
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Images) -> Features:
        """Extract features of images of any size; see `FeatureExtractor.forward`."""
        pixels = to_network_size(images, (self.side, self.side), len(self.mean), "bicubic")
        pixels = (pixels - self.mean) / self.std
        if hasattr(self.network, "get_image_features"):
            output = self.network.get_image_features(pixel_values=pixels)
        else:
            output = self.network(pixel_values=pixels)
        if isinstance(output, Tensor):
            return Features(output.float(), None)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self.takes_pooled:
            return Features(pooled.flatten(1).float(), None)
        hidden = output.last_hidden_state
        values = hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))
        return Features(values.float(), None)


def load_vision_model(name: str) -> VisionModel:
    """Load a vision model of transformers.

    Args:
        name: Hub id or folder.

    Raises:
        UserError: if it is not found, is no vision model, or lacks pretrained weights.
    """
    if not Path(name).exists() and re.fullmatch(REPO_ID, name) is None:
        raise UserError(
            f"benchmark.features: given {name!r}; allowed: inception, digits, FILE.py:NAME, or the Hub id or folder of "
            "a transformers vision model"
        )
    try:
        # takes seconds to import
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging as transformers_logging
    except ModuleNotFoundError as error:
        raise UserError(f"features {name!r} need transformers: pip install transformers") from error
    transformers_logging.disable_progress_bar()
    try:
        with waiting(f"loading {name}"):
            config = AutoConfig.from_pretrained(name)
            network, report = AutoModel.from_pretrained(name, config=config, output_loading_info=True)
    except (OSError, ImportError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise UserError(
            f"benchmark.features: given {name!r}; allowed: inception, digits, FILE.py:NAME, or the Hub id or folder of "
            f"a transformers vision model, and that cannot be loaded: {reason}"
        ) from error
    if network.main_input_name != "pixel_values" and not hasattr(network, "get_image_features"):
        raise UserError(f"benchmark.features: {name} is a {config.model_type}, which looks at no images")
    missing = sorted(report["missing_keys"])
    takes_pooled = not any("pooler" in key for key in missing)
    if lacking := [key for key in missing if "pooler" not in key]:
        raise UserError(
            f"benchmark.features: {name} lacks weights of its own, such as {lacking[0]}: its features would be random"
        )
    extractor = VisionModel(name, network.eval(), takes_pooled, *preprocessing_of(name, config))
    black = torch.zeros(1, extractor.channels[-1], extractor.side, extractor.side, dtype=torch.uint8)
    with torch.no_grad():
        extractor.num_features = extractor(black).values.shape[1]
    return extractor
