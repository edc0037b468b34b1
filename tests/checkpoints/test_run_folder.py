"""Nothing is overwritten, and one run at a time writes to a folder."""

import os

import pytest
from processes import run_python

from ddpm_hf.checkpoints.run_folder import RunFolder
from ddpm_hf.runtime.errors import UserError


def test_a_new_or_empty_folder_is_free(tmp_path):
    RunFolder(tmp_path / "new").check_free()
    RunFolder(tmp_path).check_free()
    for left in (".lock", ".stop", ".config.yaml.4711"):  # by a run that was killed before it was one
        (tmp_path / left).touch()
    (tmp_path / "dry_run").mkdir()
    RunFolder(tmp_path).check_free()


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="output_dir"):
        RunFolder(tmp_path).check_free()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="--resume latest"):
        RunFolder(tmp_path).check_free()
    with pytest.raises(UserError, match=r"output_dir: .*thesis.tex"):
        RunFolder(tmp_path / "thesis.tex").check_free()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_another_process_is_kept_out_until_this_one_lets_go(tmp_path):
    code = f"""
from ddpm_hf.checkpoints.run_folder import RunFolder
with RunFolder({str(tmp_path)!r}).locked():
    pass
"""
    with RunFolder(tmp_path).locked():
        refused = run_python(code)
        assert str(os.getpid()) in refused.stderr
        with pytest.raises(UserError, match=f"output_dir: .*{os.getpid()}"):
            RunFolder(tmp_path).check_unlocked()
    RunFolder(tmp_path).check_unlocked()
    run_python(code, check=True)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output_dir"), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_a_plan_is_refused_after_another_run_wrote_to_the_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    before = run.found()
    run.check_unchanged(before)
    for made in ("config.yaml", "checkpoints/step-4"):
        file = run.path / made
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        with pytest.raises(UserError, match="output_dir"):
            run.check_unchanged(before)
        before = run.found()
        run.check_unchanged(before)


def test_interrupted_publishing_leaves_no_index_of_missing_files(tmp_path, monkeypatch):
    def save(folder):
        (folder / "unet").mkdir(parents=True)
        (folder / "model_index.json").touch()

    run = RunFolder(tmp_path)
    run.publish(save)

    def killed(path, **_):
        if "unet" in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run.publish(save)
    assert not (tmp_path / "model_index.json").exists()
    run.publish(save)
    assert (tmp_path / "model_index.json").exists()


def test_publishing_replaces_a_pipeline_and_nothing_else(tmp_path):
    def save(version):
        def write(folder):
            (folder / "unet").mkdir(parents=True)
            (folder / "unet" / version).touch()
            (folder / "model_index.json").write_text(version)

        return write

    run = RunFolder(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    run.publish(save("one"))
    assert (tmp_path / "model_index.json").read_text() == "one"
    run.publish(save("two"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "manifest.json",
        "metrics.jsonl",
        "model_index.json",
        "unet",
        "unet/two",
    ]
