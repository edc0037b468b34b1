"""What a person names as a model, and what they are told where it is none."""

import pytest
import torch

from ddpm_hf.checkpoints.find import find_folder, load_pipeline, newest_pipeline, run_of, weights_hash
from ddpm_hf.checkpoints.format import INDEX, MANIFEST
from ddpm_hf.pipelines.ddpm import DDPMPipeline
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
    ("given", "words"),
    [
        ("runs", "runs holds neither a pipeline .* run folders in it: runs/digits$"),
        ("runs/digit", "no folder runs/digit; run folders there: runs/digits$"),
        ("notes.txt", "notes.txt is a file; allowed: a run folder, a saved pipeline, or an id on the Hub"),
        ("digits", "no folder digits; allowed: a run folder"),
        ("/nowhere/digits", "no folder /nowhere/digits; allowed"),
    ],
)
def test_mistakes(runs, given, words):
    with pytest.raises(UserError, match=f"^--model: .*{words}"):
        find_folder(given)


def test_the_run_of_a_file(runs):
    assert run_of("runs/digits", "digits.yaml") == "runs/digits"
    with pytest.raises(UserError, match=r"--config: .*mnist\.yaml.*runs/mnist"):
        run_of("runs/mnist", "mnist.yaml")


def test_a_run_is_its_finished_pipeline_or_its_newest_complete_checkpoint(run, tmp_path):
    assert newest_pipeline(run) == run
    (run / INDEX).unlink()
    assert newest_pipeline(run) == run / "checkpoints" / "step-6"
    (run / "checkpoints" / "step-6" / "unet" / "config.json").write_text("{}")
    assert newest_pipeline(run) == run / "checkpoints" / "step-4"
    with pytest.raises(UserError, match=r"^--model: "):
        newest_pipeline(tmp_path)


def test_a_pipeline_without_weights_is_told_as_that(run):
    for file in (*(run / "unet").glob("*.safetensors"), *run.glob(MANIFEST)):  # as of somebody else's pipeline
        file.unlink()
    with pytest.raises(UserError, match=r"^--model: .*unet holds no weights: there is no diffusion_pytorch_model"):
        load_pipeline(run)


@pytest.mark.parametrize("given", ["runs/digits", "photos/digits"])
def test_the_name_of_a_missing_folder_is_no_id_on_the_hub(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=f"there is no folder {given}; .*hub:{given}"):
        find_folder(given)
    for id_of_the_hub in (f"hub:{given}", f"https://huggingface.co/{given}"):
        assert find_folder(id_of_the_hub) is None


def test_a_run_is_loaded_by_its_folder(run):
    pipeline = load_pipeline(run)
    assert type(pipeline) is DDPMPipeline
    assert weights_hash(pipeline.unet) == weights_hash(DDPMPipeline.from_pretrained(run).unet)
    (run / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match="--model: "):
        load_pipeline(run)


def test_the_hash_of_weights_depends_on_names_and_values():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_hash(first) != weights_hash(second)
    second.load_state_dict(first.state_dict())
    assert weights_hash(first) == weights_hash(second) == weights_hash(first.to(memory_format=torch.preserve_format))
    assert weights_hash(first) != weights_hash(torch.nn.Sequential(first))
