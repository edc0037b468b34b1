"""What is tried and told before the first step."""

import logging

import pytest
from PIL import Image

from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.training.preflight import disk_bytes, draw_plan
from ddpm_hf.training.trainer import Trainer


def test_a_dry_run_tells_the_cost_and_draws_the_plan(tiny, tmp_path):
    trainer = Trainer(tiny())
    said = trainer.describe()
    assert not (tmp_path / "run").exists()
    for part in (
        "44,969 parameters",
        "schedule:",
        "in an epoch, of 10 classes",
        "6 of 8 images",
        "memory:",
        "disk:",
        "run/",
    ):
        assert part in said
    for picture in draw_plan(trainer.plan):
        with Image.open(picture) as image:
            assert min(image.size) > 200
    Trainer(tiny("training.num_steps=1")).train()  # the pictures of a plan are in nobody's way


def test_a_disk_that_is_too_small_is_told_before_it_is_full(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(RunFolder, "free_bytes", lambda self: 2_000_000)
    with caplog.at_level(logging.WARNING):
        Trainer(tiny("training.checkpoints_to_keep=1")).train()
        assert "GB are free" not in caplog.text
        Trainer(tiny("training.checkpoints_to_keep=9", f"output_dir={tmp_path / 'more'}"))
    assert "need about 0.01 GB more, and 0.00 GB are free" in caplog.text
    assert "Fewer training.checkpoints_to_keep" in caplog.text


def test_a_run_takes_what_was_told_of_the_disk(tiny, tmp_path):
    config = tiny("training.ema_extra_decays=[0.5]", "training.checkpoint_every=1")
    Trainer(config).train()
    weights = [*(tmp_path / "run").rglob("*.safetensors")]
    kept = sum(file.stat().st_size for file in weights)
    assert RunFolder(tmp_path / "run").kept_bytes() < kept * 1.1
    one_more = kept * 3 / 2  # a third checkpoint while two are kept
    assert disk_bytes(44_969, config) == pytest.approx(one_more, rel=0.2)


@pytest.mark.parametrize(
    ("overrides", "resume", "message"),
    [
        (("training.batch_size=1798",), None, "training.batch_size: given 1798; allowed: at most 1797"),
        (("dataset.name=/nowhere",), None, "the folder '/nowhere' does not exist"),
        (("training.mixed_precision=fp16",), None, "given 'fp16', which needs a GPU"),
        ((), "latest", "there is no run in"),
        ((), "/nowhere/step-3", "there is no such folder"),
        (("model_config.num_classes=5",), None, "at least 10 classes"),
        (("training.preview_inference_steps=21",), None, r"preview_inference_steps: .*at most time_steps \(20\)"),
        (("training.preview_sampler=magic",), None, "training.preview_sampler, .*'magic'; possible are ddpm, ddim"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tiny, tmp_path, overrides, resume, message):
    with pytest.raises(UserError, match=message):
        Trainer(tiny(*overrides), resume)
    assert not (tmp_path / "run").exists()
