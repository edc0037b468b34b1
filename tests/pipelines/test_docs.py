"""docs/samplers.md: its Python runs, its pictures are there, and no sampler is left out."""

import re
from pathlib import Path

import pytest
from PIL import Image

from ddpm_hf.pipelines.editing import MIN_SIGNAL
from ddpm_hf.pipelines.samplers import SAMPLERS

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "samplers.md").read_text(encoding="utf-8")


def test_every_sampler_and_the_measured_signal_are_named():
    assert all(f"`{name}`" in TEXT for name in SAMPLERS)
    assert f"sqrt(alpha_bar_t) >= {MIN_SIGNAL}" in TEXT


def test_pictures_are_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        with Image.open(DOCS / picture) as image:
            assert image.width > 100


# diffusers' own, with recent numpy
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_python_runs(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline(time_steps=1000, dropout=0.0).save_pretrained("runs/digits")
    names = {}
    for example in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        quick = re.sub(r"num_inference_steps=\d+", "num_inference_steps=4", example)
        exec(compile(quick, "samplers.md", "exec"), names)
    assert [len(names[name]) for name in ("again", "way", "varied", "rebuilt", "painted")] == [4, 5, 4, 4, 4]
    assert Path("schedule.png").exists()
