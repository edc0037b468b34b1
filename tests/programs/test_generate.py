"""pipelines/generate.py: images to disk, completed rather than drawn again, and its refusals."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import build_scheduler

GENERATE = "pipelines/generate.py"


@pytest.fixture
def model(tiny, tmp_path):
    """The folder of an untrained pipeline."""
    config = tiny().model
    folder = tmp_path / "run"
    DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(folder)
    return folder


def pixels(file) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_images_a_grid_and_a_manifest_are_written(program, model, tmp_path):
    code, said, _ = program(GENERATE, "--model", model, "--num_samples", 5, "--output", tmp_path / "out")
    assert code == 0
    names = [f"{index:06}.png" for index in range(5)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, "grid.png", "manifest.json"]
    assert pixels(tmp_path / "out" / names[0]).shape == (8, 8)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_inference_steps"] == 20
    assert f"5 images in {tmp_path}/out/" in said


def test_an_image_depends_on_seed_and_index_alone(program, model, tmp_path):
    for batch_size in (1, 3, 8):
        folder = tmp_path / f"by-{batch_size}"
        program(GENERATE, "--model", model, "--num_samples", 7, "--batch_size", batch_size, "--output", folder)
    for index in range(7):
        images = [pixels(tmp_path / f"by-{size}" / f"{index:06}.png").astype(int) for size in (1, 3, 8)]
        assert max(np.abs(images[0] - other).max() for other in images[1:]) <= 1
    program(GENERATE, "--model", model, "--num_samples", 1, "--seed", 1, "--output", tmp_path / "other")
    assert (pixels(tmp_path / "other" / "000000.png") != pixels(tmp_path / "by-1" / "000000.png")).any()


def test_a_stopped_generation_is_completed(program, model, tmp_path):
    arguments = ["--model", model, "--output", tmp_path / "out"]
    program(GENERATE, *arguments, "--num_samples", 4)
    kept = (tmp_path / "out" / "000000.png").stat().st_mtime_ns
    (tmp_path / "out" / "000002.png").unlink()
    program(GENERATE, *arguments, "--num_samples", 6)
    assert len(list((tmp_path / "out").glob("0*.png"))) == 6
    assert (tmp_path / "out" / "000000.png").stat().st_mtime_ns == kept
    assert "(they were there already)" in program(GENERATE, *arguments, "--num_samples", 6)[1]


def test_the_run_that_a_configuration_wrote(program, model, tiny_yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = program(GENERATE, "--config", tiny_yaml)
    assert (code, "has not begun, there is no folder runs/tiny" in complaint) == (2, True)
    (tmp_path / "runs").mkdir()
    model.rename(tmp_path / "runs" / "tiny")
    assert program(GENERATE, "--config", tiny_yaml, "--num_samples", 2, "--num_inference_steps", 3)[0] == 0
    assert (tmp_path / "runs" / "tiny" / "generated" / "seed-0-steps-3" / "grid.png").exists()


def test_samplers_classes_and_guidance(program, tiny, tmp_path):
    config = tiny("model_config.num_classes=3").model
    model = tmp_path / "classes"
    DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(model)
    arguments = ["--model", model, "--num_samples", 4, "--num_inference_steps", 4, "--output", tmp_path / "out"]
    code, _, complaint = program(GENERATE, *arguments)
    assert (code, "class-conditional: give class_labels" in complaint) == (2, True)
    assert not (tmp_path / "out").exists()
    options = ["--class_labels", 0, 2, "--guidance_scale", 2, "--sampler", "ddim"]
    assert program(GENERATE, *arguments, *options)[0] == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["class_labels"] == [0, 2]
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "there is no folder /nowhere"),
        (["--model", "user/nothing"], "user/nothing is not in the cache"),
        (["--num_samples", "0"], "--num_samples: given 0; allowed: at least 1"),
        (["--num_inference_steps", "21"], "--num_inference_steps: given 21; allowed: 1 to 20"),
        (["--num_inference_steps", "0"], "--num_inference_steps: given 0; allowed: 1 to 20"),
        (["--seed", "1", "--output", "OUT"], "holds images of other settings (seed was 0)"),
        (["--sampler", "magic"], "'magic'"),
        (["--output", "."], "exists and holds no images of this program"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(program, model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    program(GENERATE, "--model", model, "--num_samples", 1, "--num_inference_steps", 2, "--output", "OUT")
    own = [] if "--model" in arguments else ["--model", model]
    steps = [] if "--num_inference_steps" in arguments else ["--num_inference_steps", 2]
    code, _, complaint = program(GENERATE, *own, *steps, *arguments)
    assert (code, complaint.count("\n")) == (2, 1)
    assert message in complaint
