"""What cannot be removed, and disks that are full: neither costs a checkpoint."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from ddpm_hf.checkpoints.format import (
    REQUIRED,
    UNET,
    WEIGHTS,
    find_damage,
    find_latest,
    list_checkpoints,
    write_checkpoint,
)
from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.runtime.errors import UserError

NUM_STEPS = 12


def fill(folder):
    for name in (*REQUIRED, f"{UNET}/{WEIGHTS}.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "weights").write_bytes(bytes(1000))


def link(checkpoint, elsewhere):
    """A checkpoint that was moved to another disk, and linked."""
    checkpoint.rename(elsewhere / "moved")
    checkpoint.symlink_to(elsewhere / "moved")


def dangling_link(checkpoint, elsewhere):
    checkpoint.rename(elsewhere / "moved")
    checkpoint.symlink_to(elsewhere / "nowhere")


def stray_file(checkpoint, elsewhere):
    (checkpoint.parent / ".tmp-x").write_text("somebody's")


def held_file(checkpoint, elsewhere):
    """As `.nfs0123`, or of another owner: see `held`."""
    (checkpoint / "held").touch()


def held_folder(checkpoint, elsewhere):
    """It can be neither renamed nor deleted, as a mount."""
    (checkpoint / "held-fast").mkdir()


def file_in_its_place(checkpoint, elsewhere):
    checkpoint.rename(elsewhere / "moved")
    checkpoint.write_text("a file")


KINDS = [link, dangling_link, stray_file, held_file, held_folder, file_in_its_place]


@pytest.fixture
def held(monkeypatch):
    """Let nobody delete files named held, nor rename or delete a folder that holds held-fast."""
    unlink, rename, rmdir = os.unlink, os.rename, os.rmdir

    def guarded_unlink(path, *args, **kwargs):
        if Path(path).name == "held":
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, *args, **kwargs)

    def guarded_rmdir(path, *args, **kwargs):
        if Path(path).name == "held-fast":
            raise OSError(16, "Device or resource busy", str(path))
        rmdir(path, *args, **kwargs)

    def guarded_rename(source, target, **kwargs):
        if (Path(source) / "held-fast").exists():
            raise OSError(16, "Device or resource busy", str(source))
        rename(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", guarded_unlink)
        patch.setattr(os, "rename", guarded_rename)
        patch.setattr(os, "rmdir", guarded_rmdir)
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_cannot_be_removed_every_checkpoint_is_written(tmp_path, held, caplog, kind):
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for step in range(1, NUM_STEPS + 1):
        assert write_checkpoint(root, step, fill, keep=2) == root / f"step-{step}"
        if step == 3:
            kind(root / "step-3", elsewhere)
    assert find_latest(root) == root / f"step-{NUM_STEPS}"
    complete = [path.name for path in list_checkpoints(root) if find_damage(path) is None and path.name != "step-3"]
    assert complete == [f"step-{NUM_STEPS}", f"step-{NUM_STEPS - 1}"]
    assert caplog.text.count("cannot be removed") == (kind in (held_file, held_folder))
    if kind is link:
        assert (elsewhere / "moved" / "weights").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_that_cannot_be_removed_is_replaced_all_the_same(tmp_path, held, kind):
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    elsewhere.mkdir()
    written = write_checkpoint(root, 6, fill, keep=2)
    (written / "weights").write_text("damaged")
    kind(written, elsewhere)
    for _ in range(2):
        latest = write_checkpoint(root, 6, fill, keep=1)
        assert find_damage(latest) is None
        assert find_latest(root) == latest


def test_a_file_that_the_system_protects_costs_no_checkpoint(tmp_path):
    first = write_checkpoint(tmp_path, 1, fill, keep=1)
    if subprocess.run(["chattr", "+i", first / "weights"], capture_output=True, check=False).returncode:
        pytest.skip("this user or file system cannot make a file immutable")
    try:
        for step in range(2, NUM_STEPS):
            write_checkpoint(tmp_path, step, fill, keep=1)
        assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{NUM_STEPS - 1}"]
    finally:
        for file in tmp_path.glob(".tmp-*/weights"):
            subprocess.run(["chattr", "-i", file], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """Mount a small disk in memory; skip the test where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a disk in memory")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_failed_save_leaves_the_room_that_it_lacked(tmp_path):
    def too_large(folder):
        for number in range(100):
            (folder / f"{number}").write_bytes(bytes(1 << 16))

    with small_disk(tmp_path / "disk", "1m"):
        root = tmp_path / "disk" / "checkpoints"
        write_checkpoint(root, 1, fill, keep=2)
        for step in range(2, 2 + NUM_STEPS):
            with pytest.raises(OSError, match="No space left"):
                write_checkpoint(root, step, too_large, keep=2)
            assert [path.name for path in root.iterdir()] == ["step-1"]
        assert write_checkpoint(root, 90, fill, keep=2) == root / "step-90"


def write_full(folder: Path) -> None:
    """Fail as on a full disk, with a file half written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "half").write_bytes(bytes(1000))
    (folder / "full").symlink_to("/dev/full")
    with (folder / "full").open("w") as full:
        full.write("more than there is room for")


def test_a_failed_save_leaves_nothing(tmp_path):
    write_checkpoint(tmp_path, 1, fill, keep=2)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, 2, write_full, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("num_needed", [0, 1, 2, 3])
def test_the_finished_pipeline_takes_the_place_of_as_many_old_checkpoints_as_it_needs(tmp_path, num_needed):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        write_checkpoint(run.checkpoints, step, fill, keep=3)
    for staging in (run.checkpoints / ".tmp-step-4", run.path / ".tmp-pipeline"):  # of an earlier version, killed
        staging.mkdir()

    def save(folder):
        if len(list_checkpoints(run.checkpoints)) > 3 - num_needed:
            write_full(folder)
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")

    with contextlib.nullcontext() if num_needed < 3 else pytest.raises(OSError, match="No space left"):
        run.publish(save)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["step-3", "step-2", "step-1"][
        : 3 - min(num_needed, 2)
    ]
    assert (run.path / "model_index.json").exists() == (num_needed < 3)
    assert not [path for path in run.path.rglob(".*") if "tmp" in path.name]


def test_another_error_costs_no_checkpoint(tmp_path):
    def save(folder):
        raise PermissionError(13, "Permission denied")

    run = RunFolder(tmp_path)
    for step in (1, 2):
        write_checkpoint(run.checkpoints, step, fill, keep=3)
    with pytest.raises(PermissionError):
        run.publish(save)
    assert len(list_checkpoints(run.checkpoints)) == 2


def test_a_folder_in_the_place_of_the_lock_locks_as_well(tmp_path):
    run = RunFolder(tmp_path)
    run.lock.mkdir()
    with run.locked():
        with pytest.raises(UserError, match="in use by another run"):
            RunFolder(tmp_path).check_unlocked()
        with pytest.raises(UserError, match="in use by another run"), RunFolder(tmp_path).locked():
            pass
    run.check_unlocked()
