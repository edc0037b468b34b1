"""What a person names as a model, and what they are told where it is none."""

import pytest

from ddpm_hf.checkpoints.find import find_folder, run_of
from ddpm_hf.checkpoints.format import INDEX
from ddpm_hf.runtime.errors import UserError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with one finished run, from where the person works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / INDEX).touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path / "runs"


def test_folders_and_ids(runs):
    assert str(find_folder("runs/digits")) == "runs/digits"
    assert find_folder(runs / "digits") == runs / "digits"
    assert find_folder("google/ddpm-cifar10-32") is None
    assert find_folder("ada/digits@main") is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("runs", "runs holds neither a pipeline .* run folders in it: runs/digits$"),
        ("runs/digit", "no folder runs/digit; run folders there: runs/digits$"),
        ("notes.txt", "notes.txt is a file; allowed: a run folder, a saved pipeline, or an id on the Hub"),
        ("digits", "no folder digits; allowed: a run folder"),
        ("/nowhere/digits", "no folder /nowhere/digits; allowed"),
    ],
)
def test_mistakes(runs, given, told):
    with pytest.raises(UserError, match=f"^--model: .*{told}"):
        find_folder(given)


def test_the_run_of_a_file(runs):
    assert run_of("runs/digits", "digits.yaml") == "runs/digits"
    with pytest.raises(UserError, match=r"the run of mnist\.yaml has not begun, there is no folder runs/mnist"):
        run_of("runs/mnist", "mnist.yaml")
