"""A loopback Hub, in this process for speed, and programs in processes of their own that know no other Hub."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import processes
import pytest
from huggingface_hub import constants
from loopback import LoopbackHub
from loopback.server import TOKEN
from PIL import Image
from sklearn.datasets import load_digits

from ddpm_hf.config import load_config
from ddpm_hf.evaluation.programs import evaluate_once
from ddpm_hf.runtime.hub_client import HubClient, RetryPolicy
from ddpm_hf.training.trainer import Trainer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forgive the client what it does itself: it hands its own HTTP library an argument that is deprecated there."""
    for item in items:
        if "hub" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture(params=["lfs", "xet"])
def transfer(request: pytest.FixtureRequest) -> str:
    """How large files travel; a test that asks for it runs both ways."""
    return request.param


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub that this process may speak to, with Ada's token and an empty cache."""
    by_xet = "transfer" in request.fixturenames and request.getfixturevalue("transfer") == "xet"
    store = tmp_path / "xet-store"
    if by_xet:
        store.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not by_xet)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with LoopbackHub(xet=store if by_xet else None) as running:
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def environment(hub: LoopbackHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a program that knows no other Hub than the loopback one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "0" if hub.xet else "1",
        "DDPM_HF_CACHE": str(tmp_path / "ddpm-hf"),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def run_python(environment: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a program in a process of its own; `installed=False` hides ddpm_hf from it, `cwd` is an empty folder."""

    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(program: str, *arguments: str, installed: bool = True, **variables: str) -> subprocess.CompletedProcess:
        environment_of_program = {**environment, **variables}
        return processes.run_python(program, *arguments, installed=installed, env=environment_of_program, cwd=folder)

    return run


RUN = """
seed: 3
model_config: {time_steps: 20, beta_schedule: cosine, image_size: 8, image_channels: 1, hidden_channels: 4,
  channel_multipliers: [1, 1], attention_levels: [], norm_groups: 2}
training: {num_steps: 6, batch_size: 8, learning_rate: 1e-3, mixed_precision: "no", checkpoint_every: 2,
  checkpoints_to_keep: 2, preview_every: 4, num_preview_images: 1}
benchmark: {n_samples: 70, batch_size: 70, features: digits, save_samples: false, allow_few_samples: true,
  metrics: {kid: false, ssim: false, psnr: false, bits_per_dim: false}}
"""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 updates on a folder of images, trained, evaluated and then littered with files of its user."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "faces").mkdir()
    for number, image in enumerate(load_digits().images[:100]):
        Image.fromarray((image * 15).astype("uint8")).save(folder / "faces" / f"{number}.png")
    (folder / "tiny.yaml").write_text(RUN)
    run = folder / "digits"
    config = load_config(folder / "tiny.yaml", [f"output_dir={run}", f"dataset.name={folder / 'faces'}"])
    Trainer(config).train()
    evaluate_once(run, config)
    (run / "train.log").write_text("/home/ada said hello")
    (run / "optimizer.pt").write_bytes(b"pickled")
    return run


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """The folder of a finished run, to do with as a test likes."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def client(hub: LoopbackHub, request: pytest.FixtureRequest) -> HubClient:
    """The Hub, with little patience; with its silence only where that is the fault, since a busy machine is none."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    answer = 0.2 if "hang" in parameters.get("fault", {}) else 30.0
    return HubClient(hub.url, retries=RetryPolicy(attempts=5, base=0.01, longest=0.05, timeout=answer))
