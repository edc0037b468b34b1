"""Whole programs in processes of their own, for the tests that start them.

None of them is given so many seconds: a machine that is busy is no failure. What hangs is ended with its test by
pytest-timeout.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
ONE_PROCESS = ["--config_file", str(REPOSITORY / "configs" / "accelerate" / "one_process.yaml")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
TRAIN = str(REPOSITORY / "training" / "train.py")
HIDE_DDPM_HF = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ddpm_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""
"""What a program begins with for which ddpm_hf is not installed."""

_given_out: set[int] = set()


def run(*command: object, check: bool = False, **options) -> subprocess.CompletedProcess:
    """Run a command to its end; one thread each, since the tests share two cores.

    Raises:
        AssertionError: it failed, and was to be checked; the end of what it complained is in it.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = {"capture_output": True, "text": True, "env": environment, **options}
    done = subprocess.run([str(part) for part in command], check=False, **options)
    assert not check or done.returncode == 0, f"exit code {done.returncode}: {(done.stderr or '')[-3000:]}"
    return done


def run_python(code: str, *arguments: object, installed: bool = True, **options) -> subprocess.CompletedProcess:
    """Run code in a Python of its own, where warnings are errors; `installed=False` hides ddpm_hf from it."""
    strict = ("-W", "error::UserWarning", "-W", "error::FutureWarning")
    hiding = "" if installed else HIDE_DDPM_HF
    return run(sys.executable, *strict, "-c", hiding + textwrap.dedent(code), *arguments, **options)


def state(run_folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint."""
    newest = max((run_folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(newest.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def losses(run_folder: Path) -> list[float]:
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def rates(run_folder: Path) -> list[float]:
    """The learning rate of each line of losses."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [line["learning_rate"] for line in lines if "loss" in line]


def looks(run_folder: Path) -> list[dict]:
    """What previews and evaluations said, by step."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" not in line]


def free_port() -> str:
    """A port of this machine that nobody listens on.

    It lies below those that the system hands out (32768 and more on Linux), so that no connection made until somebody
    listens can be given it. Each process of pytest-xdist has a range of its own, and gives out no port twice.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = [port for port in range(20_000 + worker, 32_768, count) if port not in _given_out]
    for port in random.SystemRandom().sample(own, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given_out.add(port)
            return str(port)
    raise RuntimeError("a hundred ports were tried and none is free")


def page_of(process: subprocess.Popen, address: str) -> str:
    """What a program serves, once it does.

    Raises:
        AssertionError: it has ended, with what it said.
    """
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(process.stdout.read() if process.stdout else f"the program ended with {process.returncode}")


def wait_for(file: Path) -> None:
    """Wait until a run has begun to write."""
    while not (file.exists() and file.stat().st_size):
        time.sleep(0.05)
