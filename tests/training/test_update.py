"""An update: what it does without enough memory, and with a loss or gradient that is not finite."""

import json
import logging

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ddpm_hf.data import load_image_set
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep


def test_training_keeps_its_batch_with_too_little_memory(tiny, tmp_path, limited_memory, caplog):
    options = ("model_config.dropout=0", "training.preview_every=null", "training.fit_memory=true")
    Trainer(tiny(*options, f"output_dir={tmp_path / 'ample'}")).train()
    limited_memory(training=2, sampling=4)
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(*options)).train()
    assert "using 4, with 8 images per update as before" in caplog.text
    runs = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("ample", "run")
    ]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    progress = json.loads((tmp_path / "run/checkpoints/step-6/training_state/progress.json").read_text())
    assert progress["num_accumulation_steps"] == 4


def test_an_update_without_enough_memory_says_what_helps(tiny, limited_memory):
    limited_memory(training=2, sampling=4)
    with pytest.raises(MemoryError, match=r"out of memory in the update at step 0; training.fit_memory=true"):
        Trainer(tiny()).train()


def test_a_gradient_that_is_not_finite_spares_the_weights_and_ends_the_run(tiny):
    config = tiny("training.learning_rate=1e30", "training.max_grad_norm=null")  # the first update makes weights huge
    state = TrainState(config, Accelerator(cpu=True))
    subject = TrainStep(state, load_image_set(config.dataset, config.model), 6)
    subject.update(0)
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"step 1 .*training\.learning_rate"):
        subject.update(1)
    torch.testing.assert_close(state.network.state_dict(), before, rtol=0, atol=0)


def test_updates_that_are_not_finite_may_be_skipped(tiny, tmp_path, poison, caplog):
    poison(1, 4)
    Trainer(tiny("training.max_skipped_updates=2", f"output_dir={tmp_path / 'skipping'}")).train()
    assert "Skipping the update at step 4: the loss is nan" in caplog.text
    assert "(2 skipped so far)" in caplog.text
    weights = load_file(tmp_path / "skipping/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    progress = tmp_path / "skipping/checkpoints/step-6/training_state/progress.json"
    assert json.loads(progress.read_text())["num_skipped"] == 2
    with pytest.raises(FloatingPointError, match="step 4"):
        Trainer(tiny("training.max_skipped_updates=1")).train()
