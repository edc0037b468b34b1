"""The processes, precision, trackers and shards that a run may use."""

import pytest
import torch

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


@pytest.mark.parametrize(("kind", "instead"), [("FSDP", "fsdp_version.*allowed: 2"), ("DEEPSPEED", "zero2.yaml")])
def test_other_ways_to_cut_weights_are_refused(tiny, monkeypatch, kind, instead):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=instead):
        Trainer(tiny())
