"""docs/faq.md: its Python runs on a run as it describes."""

import re
from pathlib import Path

import pytest

from ddpm_hf.training.trainer import Trainer

TEXT = (Path(__file__).parents[2] / "docs" / "faq.md").read_text(encoding="utf-8")


@pytest.mark.slow
# diffusers' own, with recent numpy
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_python_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ("model_config.time_steps=100", "training.preview_inference_steps=2", "training.preview_every=null")
    Trainer(tiny("output_dir=runs/digits", "training.ema_extra_decays=[0.999]", *steps)).train()
    names = {}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(example, "faq.md", "exec"), names)
    assert len(names["images"]) == 4
    assert names["average"].config.in_channels == 1
    assert names["loss"].isfinite()
