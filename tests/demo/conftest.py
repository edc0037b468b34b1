"""A tiny model with random weights, as a saved folder, and the page of it in a process of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from processes import free_port, page_of

from ddpm_hf.demo.demo_model import DemoModel, load_model

REPOSITORY = Path(__file__).parents[2]


def save_tiny(folder: Path, **config) -> Path:
    tiny.pipeline(20, **config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(folder: Path) -> DemoModel:
    return load_model(str(folder))


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> DemoModel:
    """Three classes, and one label that stands for none."""
    folder = tmp_path_factory.mktemp("models") / "classes"
    return load_model(str(save_tiny(folder, in_channels=3, out_channels=3, num_class_embeds=4)))


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Start a program that serves a page; gives its address once it answers."""
    started: list[subprocess.Popen] = []

    def start(*command: object, cwd: Path = REPOSITORY, **variables: str) -> str:
        port = free_port()
        environment = {**os.environ, "GRADIO_SERVER_PORT": port, **variables}
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        address = f"http://127.0.0.1:{port}"
        page_of(process, address)
        return address

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("the tests of the page need a browser: apt-get install chromium (or put one on the path)")
    return found
