"""A loopback Hub, in this process for speed, and programs in processes of their own that know no other Hub."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
import tiny
import torch
import yaml
from huggingface_hub import constants
from loopback import LoopbackHub
from loopback.server import TOKEN
from PIL import Image
from processes import HIDE_DDPM_HF
from safetensors.torch import save_file

from ddpm_hf.checkpoints.environment import record_environment
from ddpm_hf.checkpoints.format import write_checkpoint
from ddpm_hf.runtime.hub_client import HubClient, RetryPolicy


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

    def run(program: str, *arguments: str, installed: bool = True, **variables: str) -> subprocess.CompletedProcess:
        code = ("" if installed else HIDE_DDPM_HF) + textwrap.dedent(program)
        folder = tmp_path / "elsewhere"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-W", "error::FutureWarning", "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**environment, **variables},
            cwd=folder,
        )

    return run


def _make_run(folder: Path) -> None:
    """Write what a finished run of 6 updates leaves, two checkpoints included, with paths of this machine in it."""
    pipeline = tiny.pipeline()
    config = {
        "seed": 3,
        "output_dir": str(folder),
        "dataset": {"name": "/home/ada/data/faces", "split": "train"},
        "training": {"batch_size": 8, "learning_rate": 1e-3, "optimizer": "adam", "ema_decay": 0.999},
        "hub": {"repo_id": "ada/digits", "license": "apache-2.0"},
    }

    def write(step: int) -> Callable[[Path], None]:
        def fill(checkpoint: Path) -> None:
            pipeline.save_pretrained(checkpoint)
            state = checkpoint / "training_state"
            state.mkdir()
            for name in ("network", "optimizer", "timestep_sampler"):
                save_file({"x": torch.full((64,), float(step))}, state / f"{name}.safetensors")
            (state / "progress.json").write_text(json.dumps({"step": step, "seconds": 61.0 * step, "config": config}))

        return fill

    for step in (4, 6):
        write_checkpoint(folder / "checkpoints", step, write(step), keep=2)
    pipeline.save_pretrained(folder)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text('{"step": 3, "seconds": 3}\n{"step": 6, "loss": 0.5, "seconds": 7384.2}\n')
    (folder / "previews").mkdir()
    for name in ("samples", "denoising", "loss", "previews/step-4"):
        Image.new("L", (8, 8), len(name)).save(folder / f"{name}.png")
    (folder / "train.log").write_text("/home/ada said hello")
    (folder / "optimizer.pt").write_bytes(b"pickled")
    (folder / ".lock").write_text("1")
    record_environment(folder)
    figures = {
        "metrics": {"fid": {"value": 31.5, "std": 0.25}, "inception_score": 2.0, "kid": float("nan")},
        "protocol": {
            "n_samples": 2000,
            "sampler": "ddpm",
            "num_inference_steps": 10,
            "seed": 0,
            "extractor": "digits-classifier",
            "reference": "train",
        },
        "folder": "/home/ada/runs/digits",
    }
    (folder / "metrics.json").write_text(json.dumps(figures))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    folder.mkdir()
    _make_run(folder)
    return folder


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
