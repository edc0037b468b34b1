"""benchmarks/gpu.py at tiny size, with the stand-in for a GPU's graphs."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from ddpm_hf.models.fast import graphs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The module, which measures one update, one that is compiled, and sampling."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(importlib.import_module("contenders"), "NUM_IMAGES", 8)
    monkeypatch.setattr(importlib.import_module("rates"), "REPETITIONS", 1)
    monkeypatch.setitem(graphs.RECORDERS, "cpu", graphs.rerun)
    module = importlib.import_module("gpu")
    parts = [("cifar10", 4, ("recorded", "any kernels")), ("sampling", 1, ("bfloat16",)), ("cifar10", 4, ("compiled",))]
    monkeypatch.setattr(module, "PARTS", parts)
    return module


@pytest.fixture
def run(gpu, monkeypatch, tmp_path):
    """Run the program; returns the JSON and the Markdown that it writes."""

    def run(*options):
        small = ["--device", "cpu", "--tiny", "--pairs", "2", "--turn", "0", "--sampling_steps", "6"]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *small, "--output", str(tmp_path), *options])
        gpu.main()
        return json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()

    return run


def test_all_that_the_budget_suffices_for_is_measured(run, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "STARTED", gpu.time.monotonic())
    results, text = run("--budget", "100")
    update = results["updates"]["cifar10, batch 4: recorded"]
    assert update["ran"] == "recorded"
    assert update["low"] <= update["times_stock"] <= update["high"]
    assert update["images_per_second"] == pytest.approx(4 / update["seconds"])
    assert "cost_of_determinism" in update
    assert "| cifar10, batch 4: recorded | " in text
    assert {"sampling, batch 1, bfloat16: a call", "sampling, batch 1, bfloat16: within sampling()"} == set(
        results["sampling"]
    )
    assert list(results["left_out"]) == ["cifar10, batch 4: compiled"]
    goals = [line for line in text.splitlines() if "| sampling, batch 1, bfloat16: a call | times stock |" in line]
    assert goals[0].endswith(("| met |", "| missed |"))
    assert "| cifar10, batch 128: compiled | times stock | >= 2.80 |  | not measured |" in text


def test_a_part_that_fails_leaves_the_others(run, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "STARTED", gpu.time.monotonic())
    monkeypatch.setattr(gpu, "PARTS", [("no_such_recipe", 4, ("recorded",)), ("sampling", 1, ("float32",))])
    with pytest.raises(SystemExit, match="no_such_recipe"):
        run("--budget", "100")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="GPU"):
        gpu.main()
    assert not any(tmp_path.iterdir())


def test_a_trial_does_not_overwrite_the_results_of_a_gpu(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--output" in capsys.readouterr().err
