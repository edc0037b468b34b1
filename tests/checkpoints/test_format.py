"""A checkpoint is complete or it does not exist."""

import json
import logging
import os
import tracemalloc

import pytest

from ddpm_hf.checkpoints.format import (
    MANIFEST,
    PROGRESS,
    REQUIRED,
    STATE,
    UNET,
    WEIGHTS,
    Progress,
    find_best,
    find_damage,
    find_latest,
    list_checkpoints,
    step_of,
    write_checkpoint,
)
from ddpm_hf.runtime.errors import UserError

OTHERS = (*REQUIRED, f"{UNET}/{WEIGHTS}.safetensors")


def fill(folder):
    for name in ("sub/state.json", *OTHERS):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"step": 1}')
    (folder / "weights").write_bytes(bytes(range(256)) * 4)


@pytest.fixture
def root(tmp_path):
    for step in (1, 2, 10):
        write_checkpoint(tmp_path, step, fill, keep=5)
    return tmp_path


def test_they_are_listed_newest_first_by_number(root):
    assert [path.name for path in list_checkpoints(root)] == ["step-10", "step-2", "step-1"]
    assert find_latest(root) == root / "step-10"
    assert find_damage(root / "step-10") is None


def test_exactly_the_newest_are_kept(root):
    write_checkpoint(root, 11, fill, keep=2)
    assert sorted(path.name for path in root.iterdir()) == ["step-10", "step-11"]


def test_every_flipped_byte_and_every_cut_is_found(root):
    checkpoint = root / "step-10"
    for file in [path for path in checkpoint.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 10)):
            # blanks and line ends of the manifest carry nothing
            if file.name == MANIFEST and whole[place : place + 1].isspace():
                continue
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert find_damage(checkpoint) is not None, (file, place)
            file.write_bytes(whole[:place])
            assert find_damage(checkpoint) is not None, (file, place)
        file.unlink()
        assert find_damage(checkpoint) is not None, file
        file.write_bytes(whole)
    assert find_damage(checkpoint) is None


def test_damaged_checkpoints_are_named_and_skipped(root, caplog):
    (root / "step-10" / "weights").write_bytes(b"short")
    (root / "step-2" / "sub" / "state.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert find_latest(root) == root / "step-1"
    assert "step-10: weights has 5 bytes instead of 1024" in caplog.text
    assert "step-2: state.json is missing" in caplog.text


@pytest.mark.parametrize("manifest", ["", "[]", "null", "3", "{}", '{"files": 3}', '{"files": {"weights": 3}}', "\x00"])
def test_a_strange_manifest_is_damage(root, manifest):
    (root / "step-10" / MANIFEST).write_text(manifest)
    assert find_damage(root / "step-10") is not None


@pytest.mark.parametrize(
    "manifest",
    [
        {"files": {}},
        {"files": {"/dev/zero": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"../../../etc/passwd": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"unet/../../up": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"C:up": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"a\\..\\up": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"weights": {"size": "1024", "sha256": "0" * 64}}},
        {"files": {"weights": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"weights": {"size": 1024, "sha256": 7}}},
        {"files": {"weights": {"size": 1024, "sha256": "Z" * 64}}},
        {"files": {"weights": {"size": 1024}}},
        {"files": [1]},
        "[" * 100_000,
        '{"files":' * 100_000,
        "1" * 100_000,
        b"\xff\xfe" + b"{\0}\0",
    ],
    ids=lambda manifest: str(manifest)[:40],
)
def test_a_hostile_manifest_is_damage(root, manifest):
    """Nothing outside of the folder is opened, nothing is read without end, and an empty list is not complete."""
    content = json.dumps(manifest).encode() if isinstance(manifest, dict) else manifest
    (root / "step-10" / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert MANIFEST in find_damage(root / "step-10")
    assert find_latest(root) == root / "step-2"


def test_a_file_that_is_not_regular_is_damage(root):
    """A pipe without a writer, a device without an end: opening them would hang."""
    for name in (MANIFEST, "weights", "training_state/progress.json"):
        file = root / "step-10" / name
        whole = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        assert "not a regular file" in find_damage(root / "step-10")
        file.unlink()
        file.symlink_to("/dev/zero")
        assert "not a regular file" in find_damage(root / "step-10")
        file.unlink()
        file.mkdir()
        assert find_damage(root / "step-10") is not None
        file.rmdir()
        file.write_bytes(whole)
    assert find_damage(root / "step-10") is None


def test_a_manifest_without_end_is_not_read(root):
    with (root / "step-10" / MANIFEST).open("wb") as file:
        file.truncate(300 * 2**20)  # a hole, which takes no room on the disk
    tracemalloc.start()
    assert "bytes" in find_damage(root / "step-10")
    assert tracemalloc.get_traced_memory()[1] < 40 * 2**20
    tracemalloc.stop()


def test_strange_neighbours_are_left_alone(root):
    for name in ("step-x", "step-5.bak", "other"):
        (root / name).mkdir()
    (root / "step-99").write_text("a file")
    write_checkpoint(root, 12, fill, keep=1)
    assert find_latest(root) == root / "step-12"
    assert sorted(path.name for path in root.iterdir()) == ["other", "step-12", "step-5.bak", "step-99", "step-x"]


def test_a_failed_write_keeps_the_others_and_is_cleaned_up_by_the_next(root):
    def fail(folder):
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(root, 11, fail, keep=1)
    assert find_latest(root) == root / "step-10"
    assert len(list_checkpoints(root)) == 3
    write_checkpoint(root, 12, fill, keep=1)
    assert [path.name for path in root.iterdir()] == ["step-12"]


def test_a_damaged_one_is_written_anew(root):
    (root / "step-10" / "weights").write_bytes(b"short")
    write_checkpoint(root, 10, fill, keep=5)
    assert find_damage(root / "step-10") is None


def test_the_manifest_names_every_file(root):
    files = json.loads((root / "step-10" / MANIFEST).read_text())["files"]
    assert set(files) == {"weights", "sub/state.json", *OTHERS}


def test_progress_survives_the_disk(tmp_path):
    progress = Progress(step=4, seconds=1.5, num_accumulation_steps=2, pending=["preview"], config={"seed": 3})
    (tmp_path / STATE).mkdir()
    progress.write(tmp_path)
    assert Progress.read(tmp_path) == progress


def test_progress_of_the_first_version_is_read(tmp_path):
    (tmp_path / STATE).mkdir()
    written = {"step": 4, "seconds": 1.5, "num_parts": 2, "owed": ["preview"], "score": 0.5}
    (tmp_path / STATE / PROGRESS).write_text(json.dumps(written))
    expected = Progress(step=4, seconds=1.5, num_accumulation_steps=2, pending=["preview"], score=0.5)
    assert Progress.read(tmp_path) == expected


@pytest.mark.parametrize("text", [None, "", "[]", '{"unknown": 1}'])
def test_progress_that_cannot_be_read_is_a_users_error(tmp_path, text):
    (tmp_path / STATE).mkdir()
    if text is not None:
        (tmp_path / STATE / PROGRESS).write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        Progress.read(tmp_path)


def test_the_best_is_kept_beside_the_newest(tmp_path):
    def scored(score):
        def write(folder):
            (folder / STATE).mkdir()
            Progress(score=score).write(folder)

        return write

    for step, score in enumerate([0.5, 0.2, 0.4, 0.2, None, 0.9], start=1):
        write_checkpoint(tmp_path, step, scored(score), keep=1)
    assert [step_of(path) for path in list_checkpoints(tmp_path)] == [6, 4]
    assert find_best(list_checkpoints(tmp_path)) == tmp_path / "step-4"
