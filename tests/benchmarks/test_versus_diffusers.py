"""benchmarks/versus_diffusers.py and what it counts, at tiny size."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def import_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_arithmetic_and_traffic_are_counted(import_benchmark):
    work_of = import_benchmark("rates").work_of
    a = torch.randn(32, 48, requires_grad=True)
    b = torch.randn(48, 16, requires_grad=True)
    operations, _ = work_of(lambda: (a @ b).backward(torch.ones(32, 16)))
    assert operations == 3 * 2 * 32 * 48 * 16
    c = torch.zeros(1000)
    assert work_of(lambda: c.view(10, 100).add(1)) == (0, 8000)


def test_rates_are_of_this_machine(import_benchmark, monkeypatch):
    rates = import_benchmark("rates")
    monkeypatch.setattr(rates, "REPETITIONS", 1)
    assert rates.matrix_rate("cpu") > 1e8
    assert rates.memory_rate("cpu") > 1e8


@pytest.mark.slow
def test_contenders_are_compared(import_benchmark, monkeypatch, tmp_path, capsys):
    versus = import_benchmark("versus_diffusers")
    monkeypatch.setattr(versus, "RESULTS", tmp_path)
    small = ["--network", "tiny", "--batches", "2", "--rounds", "1", "--steps", "1", "--warm_up", "0"]
    monkeypatch.setattr(sys, "argv", ["versus_diffusers.py", *small, "--pairs", "fp32", "--save"])
    versus.main()
    text = (tmp_path / "versus_diffusers.md").read_text()
    assert "## tiny, batch 2, " in text
    assert "| equal dtype, fp32: *ours, fp32* / *script* | " in text
    assert text in capsys.readouterr().out
