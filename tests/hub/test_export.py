"""What is pushed of a run: the list of files, and nothing of the machine or the person in them."""

import getpass
import json
import socket

import diffusers
import pytest
import yaml
from loopback.server import TOKEN
from safetensors import safe_open

from ddpm_hf.checkpoints.find import newest_pipeline
from ddpm_hf.checkpoints.format import MANIFEST, find_damage
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.export import checkpoint_package, pipeline_package
from ddpm_hf.hub.share import push_run
from ddpm_hf.runtime.errors import UserError

WEIGHTS = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}
EVERYTHING = WEIGHTS | {"training_config.yaml", "metrics.json", "samples.png", "denoising.png"}
SETTINGS = HubConfig(repo_id="ada/digits", license="apache-2.0")


def text_of(package) -> str:
    card = package.make_more(None)["README.md"].decode() if package.make_more else ""
    files = {path: each for path, each in package.files.items() if path.endswith((".json", ".yaml"))}
    contents = [each if isinstance(each, bytes) else each.read_bytes() for each in files.values()]
    return card + b"\n".join(contents).decode(errors="replace")


def test_exactly_the_list_is_pushed(run):
    assert set(pipeline_package(run, SETTINGS, "ada/digits", run).files) == EVERYTHING


def test_a_configuration_of_the_first_version_pushes_no_code(run):
    settings = HubConfig(repo_id="ada/digits", include=("code", "config", "metrics", "samples"))
    assert set(pipeline_package(run, settings, "ada/digits", run).files) == EVERYTHING


def test_parts_can_be_left_out(run):
    bare = HubConfig(repo_id="ada/digits", include=())
    package = pipeline_package(run, bare, "ada/digits", run)
    assert set(package.files) == WEIGHTS
    card = package.make_more(None)["README.md"].decode()
    assert "training_config.yaml" not in card
    assert "Not measured yet." in card
    assert "samples.png" not in card


def test_no_local_paths_are_pushed(run, tmp_path):
    for package in (pipeline_package(run, SETTINGS, "ada/digits", run), checkpoint_package(run / "checkpoints/step-6")):
        text = text_of(package)
        for private in (
            "/home/",
            str(tmp_path),
            "_name_or_path",
            socket.gethostname(),
            "hello",
            f"/{getpass.getuser()}",
        ):
            assert private not in text, private


def test_a_pipeline_saved_with_stock_diffusers_is_cleaned(run):
    """Stock diffusers writes where it loaded from into the configs."""
    diffusers.DDPMPipeline.from_pretrained(run).save_pretrained(run)
    with pytest.raises(UserError, match=MANIFEST):
        pipeline_package(run, SETTINGS, "ada/digits", run)
    (run / MANIFEST).unlink()
    assert "_name_or_path" in (run / "unet" / "config.json").read_text()
    package = pipeline_package(run, SETTINGS, "ada/digits", run)
    assert "_name_or_path" not in text_of(package)
    assert str(run) not in text_of(package)


def test_the_configuration_keeps_the_data_by_name_only(run):
    config = yaml.safe_load(pipeline_package(run, SETTINGS, "ada/digits", run).files["training_config.yaml"])
    assert config["dataset"]["name"] == "faces"
    assert config["output_dir"] is None
    assert config["training"]["batch_size"] == 8


@pytest.mark.parametrize("file", ["config.yaml", "metrics.json"])
def test_a_token_in_a_file_stops_the_push_and_is_not_repeated(run, file):
    content = yaml.safe_load((run / file).read_text())
    (run / file).write_text(json.dumps({**content, "note": TOKEN}))
    with pytest.raises(UserError, match="holds a token") as caught:
        pipeline_package(run, SETTINGS, "ada/digits", run)
    assert TOKEN not in str(caught.value)


def test_a_checkpoint_is_pushed_with_a_matching_manifest(run, tmp_path):
    package = checkpoint_package(run / "checkpoints" / "step-6")
    state = {f"training_state/{name}.safetensors" for name in ("network", "optimizer", "timestep_sampler")}
    assert set(package.files) == WEIGHTS | state | {"training_state/progress.json", "manifest.json"}
    for path, content in package.files.items():
        (tmp_path / "there" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    assert find_damage(tmp_path / "there") is None
    assert json.loads(package.files["training_state/progress.json"])["step"] == 6


def test_an_unfinished_run_gives_its_newest_checkpoint_and_preview(run):
    (run / "model_index.json").unlink()
    checkpoint = newest_pipeline(run)
    assert checkpoint == run / "checkpoints" / "step-6"
    package = pipeline_package(run, SETTINGS, "ada/digits", checkpoint)
    assert package.message == "Upload the pipeline after 6 updates"
    assert package.files["samples.png"] == run / "previews" / "step-4.png"
    assert set(package.files) == EVERYTHING - {"metrics.json", "denoising.png"}
    assert "still being trained" in package.make_more(None)["README.md"].decode()


def test_folders_without_a_run_are_refused(tmp_path, run):
    with pytest.raises(UserError, match=r"^RUN_FOLDER: .*nowhere"):
        push_run(tmp_path / "nowhere", SETTINGS)
    with pytest.raises(UserError, match=r"^RUN_FOLDER: "):
        push_run(tmp_path, SETTINGS)
    (run / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="unet/diffusion"):
        pipeline_package(run, SETTINGS, "ada/digits", run)


def test_the_weights_are_the_file_itself(run):
    weights = pipeline_package(run, SETTINGS, "ada/digits", run).files["unet/diffusion_pytorch_model.safetensors"]
    with safe_open(weights, "pt") as tensors:
        assert not [name for name in tensors.keys() if "_orig_mod" in name or name.startswith("module.")]  # noqa: SIM118
