"""Inception-v3 of the FID paper, as torch-fidelity converted it and torchmetrics wraps it."""

import hashlib
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import torch

from ddpm_hf.evaluation.features import FeatureExtractor, Features, Images
from ddpm_hf.runtime.errors import UserError

PACKAGES = {"torchmetrics": "torchmetrics", "torch_fidelity": "torch-fidelity", "torchvision": "torchvision"}
"""Modules that must be there, and what pip calls them."""

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
HASH = "6726825d"

RESIZES = {
    "tensorflow": "bilinear without anti-aliasing to 299x299, as TensorFlow 1 (the literature's)",
    "antialias": "bilinear with anti-aliasing to 299x299",
}


class Inception(FeatureExtractor):
    """Pool3's 2,048 features and the 1,008 unbiased logits (Heusel et al. 2017; Salimans et al. 2016).

    Args:
        network: torchmetrics' NoTrainInceptionV3.
        resize: a key of `RESIZES`.
        other: the file of weights that are not torch-fidelity's; None where they are.
    """

    def __init__(self, network: Any, resize: str, other: str | None = None) -> None:
        own = "2,048 features of Inception-v3 of 2015-12-05, the network of FID and Inception score"
        super().__init__(
            name="inception" if other is None else f"inception with the weights of {other}",
            label="Inception" if other is None else f"Inception, weights of {other}",
            description=own
            if other is None
            else f"2,048 features of Inception-v3 with the weights of {other}, which "
            "are not those of FID and Inception score",
            resize=RESIZES[resize],
            num_features=2048,
            num_classes=1008,
        )
        self.network = network

    def forward(self, images: Images) -> Features:
        """Look at images.

        Args:
            images: gray or RGB, 0 to 255, of any size.
        """
        # forward() gives the first of the features only
        values, logits = self.network._torch_fidelity_forward(images.expand(-1, 3, -1, -1))
        return Features(values.float(), logits.float())


def load_inception(weights: str | None, resize: str) -> Inception:
    """Load the network.

    Args:
        weights: a local file; None takes torch-fidelity's own, downloaded once into torch's cache. Figures in other
            weights than these are not called FID.
        resize: a key of `RESIZES`.

    Raises:
        UserError: naming every package that is missing, and the weights, with the commands that get them.
    """
    problems = []
    if missing := [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]:
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
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], str(file), antialias=resize == "antialias"
        )
    except (ImportError, RuntimeError) as error:
        raise UserError(f"features 'inception' cannot be loaded: {error}") from error
    is_own = hashlib.sha256(file.read_bytes()).hexdigest().startswith(HASH)
    return Inception(network, resize, None if is_own else file.name)


def find_weights(weights: str | None) -> Path:
    """The file of weights, safe to load: torch-fidelity unpickles whatever it is given.

    Args:
        weights: a local file; None takes the one in torch's cache, downloaded first where it is not there.

    Raises:
        UserError: if it is not there, cannot be downloaded, or holds more than tensors.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    file = Path(weights).expanduser() if weights else cached
    if weights and not file.is_file():
        raise UserError(f"benchmark.inception_weights: there is no file {file}; get it with: {_command(file)}")
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL, str(file), HASH, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Inception's weights cannot be downloaded ({error}); where there is a network: {_command(WEIGHTS)},"
                f" then here benchmark.inception_weights={WEIGHTS}, its path"
            ) from error
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{file} holds no weights that can be loaded safely: {str(error).splitlines()[0]}") from error
    return file


def _install(packages: list[str]) -> str:
    """The command that installs packages and leaves torch as it is; a torchvision for another torch breaks both."""
    if "torchvision" not in packages:
        return f"pip install {' '.join(packages)}"
    build = torch.__version__.partition("+")[2]  # such as cpu or cu128
    index = f" --extra-index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install {' '.join(packages)} torch=={torch.__version__}{index}"


def _command(file: str | Path) -> str:
    return f"curl -L -o {file} {URL}"
