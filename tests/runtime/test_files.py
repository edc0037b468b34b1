"""A file is whole or as it was."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.files import atomic_write, check_writable, write_text_atomic


def test_a_file_and_its_folder_are_made(tmp_path):
    write_text_atomic(tmp_path / "new" / "file.txt", "größer")
    assert (tmp_path / "new" / "file.txt").read_bytes() == "größer".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "file.txt"
    write_text_atomic(file, "before")
    with pytest.raises(RuntimeError), atomic_write(file) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_processes_of_one_number_on_two_machines_do_not_share_what_they_write_aside(tmp_path):
    with atomic_write(tmp_path / "file.txt") as one, atomic_write(tmp_path / "file.txt") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file.txt").read_text() == "one"


def test_whether_a_folder_can_be_written_to_is_found_without_a_trace(tmp_path):
    check_writable(tmp_path / "a" / "b", "--output")
    check_writable(tmp_path, "--output")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for folder in (tmp_path / "file", tmp_path / "file/below/it", tmp_path / "link", tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match=f"--output: {tmp_path}"):
            check_writable(folder, "--output")
    with pytest.raises(UserError, match="--output: /proc/here"):
        check_writable(Path("/proc/here"), "--output")


def test_a_reader_finds_one_version_or_the_other(tmp_path):
    file = tmp_path / "file.txt"
    write_text_atomic(file, "a" * 100_000)
    with multiprocessing.get_context("spawn").Pool(2) as writers:
        done = writers.starmap_async(write_many, [(file, letter) for letter in "ab"])
        while not done.ready():
            text = file.read_text()
            assert len(text) == 100_000
            assert len(set(text)) == 1
        done.get()


def write_many(file, letter):
    for _ in range(100):
        write_text_atomic(file, letter * 100_000)


WRITER = """
import sys
from pathlib import Path
from ddpm_hf.runtime.files import atomic_write

with atomic_write(Path("samples.npz")) as aside:
    aside.write_bytes(bytes(1000))
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_was_writing_is_removed_by_the_next_and_what_a_living_one_writes_stays(tmp_path):
    for earlier in (".loss.png.0123456789abcdef", ".samples.npz.0123456789abcdef"):  # of earlier versions
        (tmp_path / earlier).touch()
    for others in (".bashrc", ".notes.txt", ".key.0123456789abcdef", "file.0123456789abcdef.tmp"):
        (tmp_path / others).touch()
    kept = set(tmp_path.iterdir())
    command, pipes = [sys.executable, "-c", WRITER], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as living:
        assert living.stdout.readline()
        (written,) = set(tmp_path.iterdir()) - kept
        for _ in range(3):
            with subprocess.Popen(command, cwd=tmp_path, **pipes) as killed:
                assert killed.stdout.readline()
                killed.kill()
        assert len(set(tmp_path.iterdir()) - kept) == 2  # the second and third removed those before
        write_text_atomic(tmp_path / "file.txt", "")
        assert written.stat().st_size == 1000
        living.stdin.close()
        assert living.wait() == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        ".bashrc",
        ".notes.txt",
        ".key.0123456789abcdef",
        "file.0123456789abcdef.tmp",
        "file.txt",
        "samples.npz",
    }
