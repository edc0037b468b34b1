"""benchmarks/cifar10.py trains in pieces, measures each, and sets it beside the published curve: here at tiny size."""

import importlib
import json
from pathlib import Path

import pytest
from PIL import Image

from ddpm_hf.runtime import cli

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW = ["--features", "digits", "--samples", "70", "--num_inference_steps", "2"]


@pytest.fixture
def cifar10(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("cifar10")


@pytest.mark.slow
def test_pieces_become_a_curve(cifar10, tiny_yaml, tmp_path):
    for num_steps in (6, 10):
        command = ["--config", str(tiny_yaml), "--output", str(tmp_path / "run"), "--minutes", "5", *FEW]
        cli.run(cifar10.make_parser(), cifar10.main, [*command, f"training.num_steps={num_steps}"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "cifar10.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [6, 10]
    assert {row["name"] for row in rows} == {"FD (digits classifier)"}
    text = (tmp_path / "run" / "cifar10.md").read_text()
    assert "| 10 | " in text
    assert "| 46,800 | 9.16 |" in text
    for picture in ("cifar10.png", "cifar10_samples.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            assert image.width > 50


@pytest.mark.slow
def test_a_time_too_short_for_a_checkpoint_is_told(cifar10, tiny_yaml, tmp_path, capfd):
    command = ["--config", str(tiny_yaml), "--output", str(tmp_path / "run"), "--minutes", "0.001", *FEW]
    with pytest.raises(SystemExit) as leaving:
        cli.run(cifar10.make_parser(), cifar10.main, command)
    assert leaving.value.code == 2
    assert "has no checkpoint: --minutes 0.001 are too few" in capfd.readouterr().err
