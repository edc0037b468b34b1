"""Runs on disks that are full, in the way, or gone: what the run does, says at its end, and leaves."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from ddpm_hf.checkpoints.format import find_damage, find_latest, list_checkpoints
from ddpm_hf.runtime.errors import RunError
from ddpm_hf.runtime.signals import Stopped
from ddpm_hf.training.state import TrainState
from ddpm_hf.training.trainer import Trainer
from ddpm_hf.training.update import TrainStep


@pytest.fixture
def fail_to_save(monkeypatch):
    """Let the checkpoints of some steps find a full disk."""

    def at_steps(*steps):
        save = TrainState.save

        def failing(self, folder, progress, files):
            save(self, folder, progress, files)
            if progress.step in steps:
                with Path("/dev/full").open("w") as full:
                    full.write("more than there is room for")

        monkeypatch.setattr(TrainState, "save", failing)

    return at_steps


@pytest.mark.parametrize(
    ("failing", "is_error"),
    [((2, 4), False), ((6,), False), ((4, 6), False), ((2, 4, 6), True)],
    ids=["recovered", "the last", "two intervals", "three intervals"],
)
def test_checkpoints_that_fail_for_more_than_two_intervals_are_the_last_words(
    tiny, tmp_path, fail_to_save, failing, is_error
):
    fail_to_save(*failing)
    trainer = Trainer(tiny())
    if is_error:
        with pytest.raises(RunError, match="no checkpoint could be written for 6 steps: there is none"):
            trainer.train()
    else:
        trainer.train()
    run = tmp_path / "run"
    assert (run / "samples.png").exists(), "the pipeline is not lost with the checkpoints"
    written = {f"step-{step}" for step in (2, 4, 6) if step not in failing}
    assert {path.name for path in (run / "checkpoints").iterdir()} <= written, "nothing is left of what failed"
    assert bool(find_latest(run / "checkpoints")) == bool(written)


def test_a_stop_after_as_long_says_so_too(tiny, fail_to_save, monkeypatch):
    fail_to_save(*range(1, 100))
    observe = Trainer._observe

    def stop_at_7(self, is_last):
        if self.step == 7:
            self.stop.request(signal.SIGTERM)
        observe(self, is_last)

    monkeypatch.setattr(Trainer, "_observe", stop_at_7)
    with pytest.raises(RunError, match="stopped at step 7, but no checkpoint could be written for 7 steps"):
        Trainer(tiny("training.num_steps=100")).train()


def test_the_program_ends_with_code_1(tiny_yaml, tmp_path, program, fail_to_save):
    fail_to_save(2, 4, 6)
    code, _, err = program("training/train.py", "--config", tiny_yaml, f"output_dir={tmp_path / 'run'}")
    assert code == 1
    assert "no checkpoint could be written" in err.splitlines()[-1]


def test_a_checkpoint_on_another_disk_ends_no_later_ones(tiny, tmp_path, monkeypatch, caplog):
    checkpoints, elsewhere = tmp_path / "run" / "checkpoints", tmp_path / "elsewhere"
    save = TrainState.save

    def move_the_first(self, folder, progress, files):
        if progress.step == 4:
            shutil.move(checkpoints / "step-2", elsewhere)
            (checkpoints / "step-2").symlink_to(elsewhere)
            (checkpoints / ".tmp-x").touch()
        save(self, folder, progress, files)

    monkeypatch.setattr(TrainState, "save", move_the_first)
    Trainer(tiny("training.num_steps=40")).train()
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step-40", "step-38"]
    assert not any(map(find_damage, [*list_checkpoints(checkpoints), elsewhere]))
    assert "Cannot write" not in caplog.text


def delete_before(monkeypatch, step, folder, then=lambda: None):
    """Let somebody delete a folder before an update, once."""
    update = TrainStep.update

    def deleting(self, at):
        if at == step:
            monkeypatch.setattr(TrainStep, "update", update)
            shutil.rmtree(folder)
            then()
        return update(self, at)

    monkeypatch.setattr(TrainStep, "update", deleting)


@pytest.mark.parametrize("what", [".", "checkpoints"])
def test_a_run_folder_that_is_deleted_is_made_again_with_a_checkpoint_to_resume_from(
    tiny, tmp_path, monkeypatch, caplog, what
):
    run, options = tmp_path / "run", ("training.num_steps=9", "training.checkpoint_every=4", "logging.log_every=1")
    Trainer(tiny(*options, f"output_dir={tmp_path / 'whole'}")).train()
    delete_before(monkeypatch, 5, run / what)

    def stop(self, is_last):
        if self.step == 7:
            self.stop.request(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_observe", stop)
        with pytest.raises(Stopped, match="stopped at step 7 with a checkpoint"):
            Trainer(tiny(*options)).train()
    expected = ["step-7", "step-6"] if what == "." else ["step-7"]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == expected
    assert ("was deleted" in caplog.text) == (what == ".")
    AcceleratorState._reset_state(reset_partial_state=True)
    Trainer(tiny(*options), resume="latest").train()
    for name in ("unet/diffusion_pytorch_model.safetensors", "checkpoints/step-9/training_state/network.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_run_that_begins_in_a_deleted_folder_is_left_alone(tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def begin_another():
        run.mkdir()
        (run / "config.yaml").write_text("another's")
        (run / ".lock").touch()

    delete_before(monkeypatch, 2, run, begin_another)
    with pytest.raises(RunError, match="was deleted, and another run has begun there"):
        Trainer(tiny("logging.log_every=1")).train()
    assert {path.name for path in run.iterdir()} == {"config.yaml", ".lock"}
    assert (run / "config.yaml").read_text() == "another's"


@pytest.mark.slow
def test_a_run_on_a_disk_that_is_too_small_ends_with_its_pipeline(tiny, tmp_path):
    """The disk holds three checkpoints, but not all of them and the pipeline at the end."""
    Trainer(tiny(f"output_dir={tmp_path / 'measured'}")).train()
    checkpoint, pipeline = (
        int(subprocess.run(["du", "-sk", *folders], capture_output=True, check=True).stdout.split()[0])
        for folders in ([tmp_path / "measured/checkpoints/step-6"], [tmp_path / "measured/unet"])
    )
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={3 * checkpoint + pipeline // 2}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a disk in memory")
    try:
        run = disk / "run"
        with pytest.raises(RunError, match="trained, and the pipeline is complete, but no checkpoint"):
            Trainer(tiny(f"output_dir={run}", "training.num_steps=20", "training.checkpoints_to_keep=10")).train()
        assert (run / "model_index.json").exists()
        assert find_latest(run / "checkpoints") is not None
        assert not [path for path in run.rglob(".*") if path.name != ".lock"]
    finally:
        os.sync()
        subprocess.run(["umount", "--lazy", disk], check=True)
