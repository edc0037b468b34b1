"""A loopback Hub, in this process for speed, and programs in processes of their own that know no other Hub."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import huggingface_hub
from huggingface_hub import constants
from loopback import LoopbackHub
from loopback.server import TOKEN

HIDE_DDPM_HF = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ddpm_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forgive the client what it does itself: it hands its own HTTP library an argument that is deprecated there."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
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
