"""The picture of the weights, and docs/losses.md: complete, and its example runs."""

import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from ddpm_hf.config.loss import TimestepSampling, TimeWeight
from docs import loss_weights as plot

DOCS = Path(__file__).parents[2] / "docs"


def test_picture_has_a_panel_per_prediction_and_a_line_per_formula() -> None:
    figure = plot.plot_weights(torch.linspace(0.99, 0.01, 20, dtype=torch.float64))
    assert len(figure.axes) == 3
    for axis in figure.axes:
        assert {line.get_label() for line in axis.lines} == set(get_args(TimeWeight))
        assert all(len(line.get_xdata()) == 20 for line in axis.lines)


def test_program_writes_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "new" / "weights.png"
    monkeypatch.setattr(sys, "argv", ["plot", str(picture)])
    plot.main()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_documentation_covers_every_choice() -> None:
    text = (DOCS / "losses.md").read_text(encoding="utf-8")
    for name in (*get_args(TimeWeight), *get_args(TimestepSampling), "python docs/loss_weights.py"):
        assert name in text
    assert (DOCS / "images" / "loss_weights.png").is_file()


def test_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (DOCS / "losses.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, "losses.md", "exec"), {})
    assert len(re.findall(r"tensor\(\d\.\d+\)", capsys.readouterr().out)) == 2
