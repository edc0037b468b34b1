"""A run from its configuration to its pictures, and every way to stop and go on."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline as StockPipeline
from PIL import Image
from safetensors.torch import load_file

from ddpm_hf.checkpoints.format import find_damage
from ddpm_hf.config import load_config
from ddpm_hf.pipelines.sampling import SamplingSettings
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.signals import Stopped
from ddpm_hf.training.run_logger import MetricsFile, RunLogger
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep

CLOCK = ("seconds", "images_per_second", "data_wait", "memory_gb")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint or pipeline, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def figures(run: Path) -> list[dict]:
    """metrics.jsonl without what the clock and the machine say."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in figures(run) if "loss" in line]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit by bit the same weights, average, moments and figures."""
    last = "checkpoints/step-6"
    torch.testing.assert_close(tensors(one / last), tensors(other / last), rtol=0, atol=0)
    torch.testing.assert_close(tensors(one / "unet"), tensors(other / "unet"), rtol=0, atol=0)
    assert figures(one) == figures(other)


def break_before(monkeypatch, step: int, action) -> None:
    """Let something happen before an update, once."""
    update = TrainStep.update

    def breaking(self, at):
        if at == step:
            monkeypatch.setattr(TrainStep, "update", update)
            action()
        return update(self, at)

    monkeypatch.setattr(TrainStep, "update", breaking)


@pytest.fixture
def whole_run(tiny, tmp_path) -> Path:
    """A run that nothing disturbed."""
    Trainer(tiny(f"output_dir={tmp_path / 'whole'}")).train()
    return tmp_path / "whole"


def test_a_run_writes_all_documented_files(tiny, tmp_path, capsys, caplog):
    config = tiny()
    Trainer(config).train()
    assert "The colours of the preview at step 4 are off: gray" in caplog.text  # after four updates, they are
    assert "or v_prediction with these betas (model_config.prediction_type)" in caplog.text
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.yaml",
        "denoising.png",
        "environment.json",
        "loss.png",
        "manifest.json",
        "metrics.jsonl",
        "model_index.json",
        "previews",
        "samples.png",
        "scheduler",
        "unet",
    }
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-4", "step-6"}
    assert {path.name for path in (run / "previews").iterdir()} == {"step-4.png"}
    assert load_config(run / "config.yaml") == config
    assert [line["step"] for line in figures(run)] == [3, 4, 6]  # the preview's at 4
    with Image.open(run / "samples.png") as picture:
        assert picture.mode == "L"
    said = capsys.readouterr().out
    assert f"python pipelines/generate.py --model {run}" in said
    assert f"--config {run}/config.yaml --resume latest" in said
    assert "from diffusers import DiffusionPipeline" in said


def test_the_saved_pipeline_holds_the_ema_weights(whole_run):
    checkpoint = whole_run / "checkpoints" / "step-6"
    average = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    raw = load_file(checkpoint / "training_state" / "network.safetensors")
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    torch.testing.assert_close(tensors(whole_run / "unet"), tensors(checkpoint / "unet"), rtol=0, atol=0)


def test_every_checkpoint_is_a_stock_pipeline(whole_run):
    for checkpoint in (whole_run / "checkpoints").iterdir():
        pipeline = StockPipeline.from_pretrained(checkpoint)
        assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_resuming_after_a_crash_is_exact(tiny, tmp_path, whole_run, monkeypatch):
    def crash():
        raise RuntimeError("power cut")

    break_before(monkeypatch, 5, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(tiny()).train()
    Trainer(tiny(), resume="latest").train()
    assert_same_run(tmp_path / "run", whole_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_to_resume_from(tiny, tmp_path, whole_run, monkeypatch, number):
    break_before(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match="stopped at step 3 with a checkpoint; resume with") as caught:
        Trainer(tiny()).train()
    assert caught.value.exit_code == 128 + number
    Trainer(tiny(), resume="latest").train()
    assert_same_run(tmp_path / "run", whole_run)


def test_a_run_without_a_checkpoint_yet_starts_at_the_beginning(tiny, tmp_path, whole_run, monkeypatch, caplog):
    def crash():
        raise RuntimeError

    break_before(monkeypatch, 1, crash)
    with pytest.raises(RuntimeError):
        Trainer(tiny()).train()
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(), resume="latest").train()
    assert "no complete checkpoint yet" in caplog.text
    assert_same_run(tmp_path / "run", whole_run)


def test_a_finished_run_can_be_extended(tiny, tmp_path, whole_run):
    Trainer(tiny(f"output_dir={whole_run}", "training.num_steps=8"), resume="latest").train()
    assert [line["step"] for line in figures(whole_run)] == [3, 4, 6, 8]  # the preview's at 4


def test_a_checkpoint_can_be_resumed_in_another_folder(tiny, tmp_path, whole_run):
    Trainer(tiny(), resume=str(whole_run / "checkpoints" / "step-4")).train()
    torch.testing.assert_close(tensors(tmp_path / "run" / "unet"), tensors(whole_run / "unet"), rtol=0, atol=0)


def test_accumulation_is_exact_up_to_rounding(tiny, tmp_path, whole_run):
    # dropout draws one mask for the whole part, so only without it are the parts those of one batch
    runs = []
    for parts in (1, 2, 4):
        run = tmp_path / f"parts-{parts}"
        options = ("model_config.dropout=0", f"training.gradient_accumulation_steps={parts}", f"output_dir={run}")
        Trainer(tiny(*options)).train()
        runs.append(losses(run))
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[2] == pytest.approx(runs[0], rel=1e-5)


def test_non_finite_gradients_end_the_run_and_keep_its_last_checkpoint(tiny, trained):
    last = trained / "checkpoints" / "step-6"
    before = tensors(last)
    options = ("training.num_steps=12", "training.learning_rate=1e30", "training.max_grad_norm=null")
    with pytest.raises(FloatingPointError, match="step 7"):  # the update before it makes the weights huge
        Trainer(tiny(*options), resume="latest").train()
    assert sorted(path.name for path in last.parent.iterdir()) == ["step-4", "step-6"]
    assert find_damage(last) is None
    torch.testing.assert_close(tensors(last), before, rtol=0, atol=0)


def test_a_full_disk_is_logged_and_does_not_end_the_run(tiny, tmp_path, monkeypatch, caplog):
    save = TrainState.save
    kept = []

    def full(self, folder, progress, files):
        if progress.step == 4:
            kept.extend(path.name for path in folder.parent.glob("step-*"))
            (folder / "big").symlink_to("/dev/full")
            with (folder / "big").open("w") as big:
                big.write("more than there is room for")
        save(self, folder, progress, files)

    monkeypatch.setattr(TrainState, "save", full)
    Trainer(tiny("training.checkpoints_to_keep=1")).train()
    assert "Cannot write the checkpoint at step 4: [Errno 28] No space left on device" in caplog.text
    assert kept == ["step-2"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-6"]


def test_metrics_that_cannot_be_written_are_logged_and_do_not_end_the_run(tiny, tmp_path, caplog, monkeypatch):
    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsFile, "append", full)
    Trainer(tiny()).train()
    assert "Cannot write metrics.jsonl at step 3: [Errno 28]" in caplog.text
    assert (tmp_path / "run" / "model_index.json").exists()


@pytest.mark.parametrize("work", ["preview", "evaluation", "validation"])
def test_work_interrupted_by_a_signal_is_done_after_resuming(tiny, tmp_path, monkeypatch, work):
    options = [
        "training.preview_every=3",
        "training.validate_every=3",
        "training.evaluate_every=3",
        "training.num_evaluation_samples=80",
        "benchmark.features=digits",
        "dataset.validation_fraction=0.1",
    ]
    trainer = Trainer(tiny(*options))
    method = {"preview": "_preview", "evaluation": "_evaluate", "validation": "_validate"}[work]
    original = getattr(Trainer, method)

    def stopped(self):
        self.stop.request()
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, stopped)
        with pytest.raises(Stopped):
            trainer.train()
    assert not any(work in line for line in figures(tmp_path / "run"))
    Trainer(tiny(*options), "latest").train()
    kinds = ["preview", "validation", "evaluation"]
    told = [(line["step"], kind) for line in figures(tmp_path / "run") for kind in kinds if kind in line]
    assert sorted(told) == sorted([(3, kind) for kind in kinds] + [(6, "validation"), (6, "evaluation")])


def test_a_run_that_fails_in_its_set_up_can_be_started_again(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("no such tracker")

    with monkeypatch.context() as patch:
        patch.setattr(RunLogger, "start", fail)
        with pytest.raises(UserError, match="no such tracker"):
            Trainer(tiny(), "auto").train()
    Trainer(tiny(), "auto").train()
    assert (tmp_path / "run" / "samples.png").exists()


def test_a_run_started_after_another_wrote_to_the_folder_writes_nothing(tiny, tmp_path):
    late = Trainer(tiny())
    Trainer(tiny()).train()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.name != ".lock"}
    with pytest.raises(UserError, match="another run has written to"):
        late.train()
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_run_resumed_from_an_earlier_step_evaluates_it_again(tiny, tmp_path):
    options = ["training.evaluate_every=6", "training.num_evaluation_samples=80", "benchmark.features=digits"]
    Trainer(tiny(*options, "training.checkpoints_to_keep=3")).train()
    start = tmp_path / "run" / "checkpoints" / "step-4"
    Trainer(tiny(*options, "training.learning_rate=5e-3"), str(start)).train()
    assert [line["step"] for line in figures(tmp_path / "run") if "evaluation" in line] == [6]


def test_a_class_conditional_run(tiny, tmp_path):
    Trainer(tiny("model_config.num_classes=10")).train()
    config = json.loads((tmp_path / "run" / "unet" / "config.json").read_text())
    assert config["num_class_embeds"] == 11  # the last one stands for no class


@pytest.mark.parametrize(
    "options",
    [
        ("training.optimizer=adamw", "training.weight_decay=0.1"),
        ("training.mixed_precision=bf16",),
        ("training.max_grad_norm=null", "training.preview_every=null", "training.checkpoint_every=null"),
        ("loss_config.timestep_sampling=importance",),
        ("loss_config.loss_type=hybrid", "loss_config.use_time_weighting=true", "model_config.prediction_type=sample"),
        ("training.num_steps=null", "training.num_epochs=1", "training.batch_size=1000"),
        ("training.preview_inference_steps=3", "training.preview_sampler=ddim", "logging.tracker=tensorboard"),
        ("training.gradient_checkpointing=true", "training.channels_last=true"),
        ("training.ema_schedule=power",),
    ],
    ids=lambda options: options[0],
)
def test_options_run(tiny, tmp_path, options):
    Trainer(tiny(*options)).train()
    assert (tmp_path / "run" / "samples.png").exists()
    assert all(0 < loss < 10 for loss in losses(tmp_path / "run"))


def test_evaluation_during_training(tiny, tmp_path):
    benchmark = ("benchmark.features=digits", "benchmark.allow_few_samples=true")
    Trainer(tiny("training.evaluate_every=3", "training.num_evaluation_samples=12", *benchmark)).train()
    measured = [line for line in figures(tmp_path / "run") if "evaluation" in line]
    assert [line["step"] for line in measured] == [3, 6]
    assert measured[0]["evaluation"]["frechet_distance"] > 0
    assert "in-training evaluation at step 3" in (tmp_path / "run" / "evaluation" / "step-3" / "report.md").read_text()


def test_impossible_evaluations_are_reported_before_the_first_step(tiny, tmp_path):
    with pytest.raises(UserError, match=r"training\.num_evaluation_samples: given 12; allowed: at least 65"):
        Trainer(tiny("training.evaluate_every=3", "training.num_evaluation_samples=12", "benchmark.features=digits"))
    assert not (tmp_path / "run").exists()


def test_a_failed_preview_restores_the_trained_weights(tiny, monkeypatch):
    trainer, before = Trainer(tiny()), {}
    preview, draw = Trainer._preview, SamplingSettings.draw

    def watched(self):
        before.update({name: tensor.clone() for name, tensor in self.state.network.state_dict().items()})
        return preview(self)

    def failing(self, *arguments):
        draw(self, *arguments)
        raise RuntimeError("no picture")

    monkeypatch.setattr(Trainer, "_preview", watched)
    monkeypatch.setattr(SamplingSettings, "draw", failing)
    with pytest.raises(RuntimeError, match="no picture"):
        trainer.train()
    torch.testing.assert_close(trainer.state.network.state_dict(), before, rtol=0, atol=0)
    assert trainer.state.network.training
    assert not torch.equal(trainer.state.pipeline.unet.conv_in.weight, before["conv_in.weight"])


def test_ema_weights_of_several_decays_are_variants_of_the_pipeline(tiny, tmp_path):
    options = ("training.ema_extra_decays=[0.5,0]", "training.ema_schedule=constant")
    Trainer(tiny(*options, f"output_dir={tmp_path / 'whole'}")).train()
    whole = tmp_path / "whole"
    networks = {
        variant: StockPipeline.from_pretrained(whole, variant=variant).unet for variant in (None, "ema-0_5", "ema-0")
    }
    raw = load_file(whole / "checkpoints/step-6/training_state/network.safetensors")
    torch.testing.assert_close(networks["ema-0"].state_dict(), raw, rtol=0, atol=0)
    weights = {variant: network.conv_in.weight for variant, network in networks.items()}
    assert not torch.equal(weights["ema-0_5"], weights["ema-0"])
    assert not torch.equal(weights["ema-0_5"], weights[None])
    Trainer(tiny(*options), resume=str(whole / "checkpoints" / "step-4")).train()
    last = "checkpoints/step-6"
    torch.testing.assert_close(tensors(tmp_path / "run" / last), tensors(whole / last), rtol=0, atol=0)


def test_resume_auto_starts_or_resumes_a_run(tiny, tmp_path, whole_run):
    Trainer(tiny("training.num_steps=4"), resume="auto").train()
    Trainer(tiny(), resume="auto").train()
    assert tensors(tmp_path / "run/unet").keys() == tensors(whole_run / "unet").keys()
    assert figures(tmp_path / "run")[-1]["step"] == 6


def test_a_changed_dataset_is_refused_on_resume(tiny, tmp_path, whole_run):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(8):
        Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    options = (f"dataset.name={folder}", "dataset.in_memory=true", "training.num_steps=2")
    Trainer(tiny(*options)).train()
    Image.new("L", (8, 8), 99).save(folder / "9.png")
    with pytest.raises(UserError, match=r"a run on 8 images.* now has 9.*output_dir="):
        Trainer(tiny(*options, "training.num_steps=4"), resume="latest")


def test_a_run_is_not_overwritten(tiny, whole_run):
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    with pytest.raises(UserError, match="holds a run already"):
        Trainer(tiny(f"output_dir={whole_run}"))
    assert {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")} == before


def test_another_model_cannot_resume_a_run(tiny, whole_run, caplog):
    with pytest.raises(UserError, match=r"model_config.num_res_blocks: 1 → 2; seed: 0 → 3|seed.*num_res_blocks"):
        Trainer(tiny(f"output_dir={whole_run}", "model_config.num_res_blocks=2", "seed=3"), "latest")
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(f"output_dir={whole_run}", "training.learning_rate=1e-4"), "latest")
    assert "training.learning_rate: 0.001 → 0.0001" in caplog.text
