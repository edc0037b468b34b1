"""The processes, precision, trackers and shards that a run may use."""

import os
import sys
from pathlib import Path

import pytest
import torch
from processes import TRAIN, run

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training import accelerator
from ddpm_hf.training.accelerator import choose_precision
from ddpm_hf.training.trainer import Trainer

CPU = torch.device("cpu")


def test_auto_is_what_the_processor_multiplies_natively():
    assert choose_precision("auto", CPU) == ("bf16" if torch.cpu._is_avx512_bf16_supported() else "no")
    assert choose_precision("auto", torch.device("mps")) == "no"
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)


def test_a_tracker_that_is_not_installed_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=r"logging.tracker: given .wandb., .*allowed here: none, tensorboard"):
        Trainer(tiny("logging.tracker=wandb"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", accelerator.KEYS)
def test_a_tracker_of_an_account_needs_its_key(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setattr(accelerator, "get_available_trackers", lambda: [name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    variables, files, command = accelerator.KEYS[name]
    for variable in variables:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f"logging.tracker: given '{name}', .*{command}.*{variables[0]}"):
        Trainer(tiny(f"logging.tracker={name}"))
    assert not (tmp_path / "run").exists()
    file = Path(files[0]).expanduser()
    file.parent.mkdir(exist_ok=True)
    file.touch()
    accelerator._check_tracker(name)


def test_a_tracker_without_its_key_is_refused_before_anything_is_written(tiny, tmp_path):
    """In a process of its own: wandb reads the environment once."""
    config = tmp_path / "tiny.yaml"
    home = {name: str(tmp_path) for name in ("HOME", "WANDB_CONFIG_DIR", "NETRC")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | home
    words = (sys.executable, TRAIN, "--config", config, f"output_dir={tmp_path}/run", "logging.tracker=wandb")
    for options, env, code in (([], {}, 2), (["--dry_run"], {}, 2), (["--dry_run"], {"WANDB_MODE": "offline"}, 0)):
        done = run(*words, *options, env=environment | env)
        assert done.returncode == code, done.stderr
        assert ("WANDB_API_KEY" in done.stderr) == (code == 2)
        assert (tmp_path / "run").exists() == (code == 0)


@pytest.mark.parametrize(("kind", "instead"), [("FSDP", "fsdp_version.*allowed: 2"), ("DEEPSPEED", "zero2.yaml")])
def test_other_ways_to_cut_weights_are_refused(tiny, monkeypatch, kind, instead):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=instead):
        Trainer(tiny())
