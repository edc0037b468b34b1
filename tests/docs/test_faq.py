"""docs/faq.md: its Python runs on a run as it describes."""

import re
from pathlib import Path

import pytest
from processes import run_python

from ddpm_hf.training.trainer import Trainer

TEXT = (Path(__file__).parents[2] / "docs" / "faq.md").read_text(encoding="utf-8")

EXPORTED = """
x_t, timestep = torch.randn(3, *x_t.shape[1:]), torch.tensor([5, 0, 99])
with torch.no_grad():
    torch.testing.assert_close(
        torch.export.load("unet.pt2").module()(x_t, timestep).sample, network(x_t, timestep).sample, rtol=0, atol=1e-5
    )
"""


@pytest.mark.slow
# diffusers' own, with recent numpy
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_python_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ("model_config.time_steps=100", "training.preview_inference_steps=2", "training.preview_every=null")
    Trainer(tiny("output_dir=runs/digits", "training.ema_extra_decays=[0.999]", *steps)).train()
    names = {}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        if "torch.export" in example:  # which cannot trace the tests' own checks of shapes
            run_python(example + EXPORTED, cwd=tmp_path, check=True)
        else:
            exec(compile(example, "faq.md", "exec"), names)
    assert len(names["images"]) == 4
    assert names["average"].config.in_channels == 1
    assert names["loss"].isfinite()
