"""docs/pictures.py makes every picture of docs/images, from the text's own commands."""

import runpy
import shutil
import sys
from pathlib import Path

import processes
import pytest
from PIL import Image

from ddpm_hf.runtime import cli
from ddpm_hf.training.trainer import Trainer

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = runpy.run_path(str(DOCS / "pictures.py"))
MADE = {
    *PICTURES["OF_THE_RUN"].values(),
    *(picture for pictures in PICTURES["OF_COMMANDS"].values() for picture in pictures.values()),
    *PICTURES["CURVES"],
    *PICTURES["OF_THE_DEMO"],
}


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        cli.run(PICTURES["make_parser"](), PICTURES["main"], [str(argument) for argument in arguments])
    return leaving.value.code, capsys.readouterr().err


def test_there_are_no_others():
    assert {file.name for file in (DOCS / "images").iterdir()} == MADE


def test_it_says_what_it_needs(tmp_path, monkeypatch, capsys):
    code, said = run(capsys, "--model", tmp_path)
    assert (code, "has no samples.png and no denoising.png; train it first" in said) == (2, True)
    for name in PICTURES["OF_THE_RUN"]:
        (tmp_path / name).touch()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    code, said = run(capsys, "--model", tmp_path)
    assert (code, "need a browser: apt-get install chromium" in said) == (2, True)


@pytest.mark.slow
def test_all_of_them_are_made(tiny, tmp_path):
    steps = ("model_config.time_steps=100", "training.preview_inference_steps=2", "training.preview_every=null")
    Trainer(tiny(*steps)).train()
    program = [sys.executable, DOCS / "pictures.py"]
    processes.run(*program, "--model", tmp_path / "run", "--output", tmp_path / "images", check=True)
    assert {file.name for file in (tmp_path / "images").iterdir()} == MADE
    for name in MADE:
        with Image.open(tmp_path / "images" / name) as image:
            assert image.width > 100
