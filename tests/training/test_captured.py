"""A recorded update does what an eager one does, and whatever cannot be recorded runs eagerly.

On a machine without graphs a stand-in runs the same work again in the same tensors; see `graphs.rerun`.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from ddpm_hf.data import load_image_set
from ddpm_hf.models.fast import graphs
from ddpm_hf.training import captured
from ddpm_hf.training.captured import CapturedUpdate, choose_run
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep

QUIET = ("training.preview_every=null", "training.num_preview_images=1")
KINDS = {
    "plain": (),
    "dropout": ("model_config.dropout=0.3",),
    "accumulation": ("training.gradient_accumulation_steps=4",),
    "classes": ("model_config.num_classes=10", "training.label_dropout=0.5"),
    "learned variance": ("model_config.variance_type=learned_range",),
    "checkpointing": ("training.gradient_checkpointing=true", "model_config.dropout=0"),
    "importance sampling": ("loss_config.timestep_sampling=importance",),
    "several averages": ("training.ema_extra_decays=[0.5]", "training.ema_schedule=power"),
    "channels last": ("training.channels_last=true",),
    "adamw": ("training.optimizer=adamw", "training.weight_decay=0.1"),
}


@pytest.fixture
def recorded(monkeypatch) -> list[graphs.Work]:
    """Have the CPU record work, by the stand-in; returns the updates that were recorded, not the passes of sampling."""
    works: list[graphs.Work] = []

    def record(work: graphs.Work) -> graphs.Work:
        if "CapturedUpdate" in work.__qualname__:
            works.append(work)
        return graphs.rerun(work)

    monkeypatch.setitem(graphs.RECORDERS, "cpu", record)
    return works


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    files = sorted((folder / f"checkpoints/step-{step}").rglob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def made(config) -> tuple[TrainState, TrainStep]:
    state = TrainState(config, Accelerator(cpu=True))
    return state, TrainStep(state, load_image_set(config.dataset, config.model), 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_run_is_bit_equal_to_an_eager_one_and_resumes_exactly(kind, tiny, tmp_path, recorded):
    Trainer(tiny(*QUIET, *KINDS[kind])).train()
    assert len(recorded) == 1
    Trainer(tiny(*QUIET, *KINDS[kind]), resume=str(tmp_path / "run/checkpoints/step-4"))  # is found
    config = tiny(*QUIET, *KINDS[kind], f"output_dir={tmp_path / 'resumed'}")
    Trainer(config, resume=str(tmp_path / "run/checkpoints/step-4")).train()
    del graphs.RECORDERS["cpu"]
    Trainer(tiny(*QUIET, *KINDS[kind], f"output_dir={tmp_path / 'eager'}")).train()
    whole = tensors(tmp_path / "eager", 6)
    for other in ("run", "resumed"):
        torch.testing.assert_close(tensors(tmp_path / other, 6), whole, rtol=0, atol=0)
    assert losses(tmp_path / "run") == losses(tmp_path / "eager")


def test_trying_an_update_out_changes_nothing(tiny, recorded):
    state, step = made(tiny("model_config.dropout=0.3"))
    step.run = choose_run(step, 0)
    step.update(0)

    def snapshot():
        state.optimizer.zero_grad()
        weights = {f"weight {index}": value for index, value in enumerate(state.parameters)}
        averages = {f"average {index}": value for index, value in enumerate(state.averages[0].network.parameters())}
        files = state.gather()
        everything = weights | averages | {f"{a}/{b}": value for a, each in files.items() for b, value in each.items()}
        return {name: value.detach().clone() for name, value in everything.items()} | {
            "skipped": torch.tensor(state.finite.num_skipped)
        }

    before = snapshot()
    choose_run(step, 1)
    torch.testing.assert_close(snapshot(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("loss_config.adversarial.weight=0.1",), "adversarial"),
        (("training.gradient_checkpointing=true", "model_config.dropout=0.1"), "gradient checkpointing"),
    ],
)
def test_what_cannot_be_recorded_runs_eagerly_and_says_why(options, reason, tiny, recorded, caplog):
    with caplog.at_level(logging.WARNING):
        _, step = made(tiny(*options))
        choose_run(step, 0)
    assert not recorded
    assert reason in caplog.text


def test_a_recording_that_fails_ends_in_eager_updates(tiny, tmp_path, monkeypatch, caplog):
    def broken(work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    Trainer(tiny(*QUIET, f"output_dir={tmp_path / 'eager'}")).train()
    monkeypatch.setitem(graphs.RECORDERS, "cpu", broken)
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(*QUIET)).train()
    assert "not permitted when stream is capturing" in caplog.text
    torch.testing.assert_close(tensors(tmp_path / "run", 6), tensors(tmp_path / "eager", 6), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_recording_that_differs_is_given_up(name, tiny, monkeypatch, caplog):
    def wrong(work):
        replay = graphs.rerun(work)
        return lambda: {key: value * (1 + 1e-5) if key == name else value for key, value in replay().items()}

    monkeypatch.setitem(graphs.RECORDERS, "cpu", wrong)
    _, step = made(tiny())
    with caplog.at_level(logging.WARNING):
        run = choose_run(step, 0)
    assert not isinstance(run, CapturedUpdate)
    assert name in caplog.text


def test_a_compilation_that_fails_ends_in_uncompiled_updates(tiny, tmp_path, monkeypatch, recorded, caplog):
    def broken(network, device):
        def fail(*args, **kwargs):
            raise RuntimeError("no compiler")

        network._compiled_call_impl = fail

    monkeypatch.setattr("ddpm_hf.training.state.compile_network", broken)
    with caplog.at_level(logging.WARNING):
        Trainer(tiny(*QUIET, "training.compile=true")).train()
    assert "torch.compile failed: no compiler" in caplog.text
    assert len(recorded) == 1
    Trainer(tiny(*QUIET, f"output_dir={tmp_path / 'plain'}")).train()
    torch.testing.assert_close(tensors(tmp_path / "run", 6), tensors(tmp_path / "plain", 6), rtol=0, atol=0)


def test_compiled_code_is_compared_with_dropout_masks_of_its_own(tiny, recorded):
    """Its loss and gradient norm may differ by as much as those of other masks do, and by its rounding."""
    state, step = made(tiny("model_config.dropout=0.3"))
    state.compiled = True  # of which only the comparison sees something
    original = captured.CapturedUpdate.first

    def other_masks(self, index, batch):
        step.seed_dropout(1000)
        return original(self, index, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured.CapturedUpdate, "first", other_masks)
        assert isinstance(choose_run(step, 0), CapturedUpdate)
    state.compiled = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured.CapturedUpdate, "first", other_masks)
        assert not isinstance(choose_run(step, 0), CapturedUpdate)


def test_nothing_changes_until_the_host_reads_of_a_gradient_that_is_not_finite(tiny, monkeypatch, poison, recorded):
    poison(2)
    state, step = made(tiny())
    step.run = choose_run(step, 0)
    monkeypatch.setattr(type(state.finite), "read", lambda self: None)  # as on a GPU, where an update does not read
    outputs = [step.update(0), step.update(1)]
    before = [parameter.clone() for parameter in state.parameters]
    outputs += [step.update(2), step.update(3), step.update(4)]
    monkeypatch.undo()
    assert [output.applied.item() for output in outputs[2:]] == [0, 0, 0]
    assert outputs[2].settings.keys() == {"learning_rate", "data_seconds"}
    for parameter, kept in zip(state.parameters, before, strict=True):
        torch.testing.assert_close(parameter.detach(), kept, rtol=0, atol=0)
    with pytest.raises(FloatingPointError, match=r"step 2 .*training\.learning_rate"):
        state.finite.read()


def test_skipped_updates_leave_averages_and_optimizer_as_they_were(tiny, poison, recorded):
    poison(1)
    state, step = made(tiny("training.max_skipped_updates=1", "training.ema_extra_decays=[0.5]"))
    step.run = choose_run(step, 0)
    step.update(0)
    files = {name: {key: value.clone() for key, value in each.items()} for name, each in state.gather().items()}
    averages = [[value.clone() for value in each.network.parameters()] for each in state.averages]
    assert step.update(1).applied == 0
    torch.testing.assert_close(state.gather(), files, rtol=0, atol=0)
    torch.testing.assert_close([[*each.network.parameters()] for each in state.averages], averages, rtol=0, atol=0)
    assert step.update(2).applied == 1
    assert state.finite.num_skipped == 1


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_recorded_updates_are_bit_equal_to_eager_ones_and_resume_exactly(kind, tiny, tmp_path, monkeypatch):
    options = (*QUIET, *KINDS[kind], "training.compile=false")
    Trainer(tiny(*options)).train()
    config = tiny(*options, f"output_dir={tmp_path / 'resumed'}")
    Trainer(config, resume=str(tmp_path / "run/checkpoints/step-4")).train()
    monkeypatch.delitem(graphs.RECORDERS, "cuda")
    Trainer(tiny(*options, f"output_dir={tmp_path / 'eager'}")).train()
    whole = tensors(tmp_path / "eager", 6)
    for other in ("run", "resumed"):
        torch.testing.assert_close(tensors(tmp_path / other, 6), whole, rtol=0, atol=0)


@pytest.mark.cuda
def test_on_a_gpu_a_compiled_update_is_recorded_and_waits_for_nothing(tiny, caplog):
    config = tiny("training.compile=true")
    state = TrainState(config, Accelerator())
    step = TrainStep(state, load_image_set(config.dataset, config.model), 6)
    with caplog.at_level(logging.WARNING):
        step.run = choose_run(step, 0)
    assert isinstance(step.run, CapturedUpdate), caplog.text
    step.update(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.update(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
