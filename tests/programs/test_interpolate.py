"""pipelines/interpolate.py: images, a strip, a film and a manifest; and its refusals."""

import json

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import build_scheduler

INTERPOLATE = "pipelines/interpolate.py"


@pytest.fixture
def model(tiny, tmp_path):
    """The folder of an untrained pipeline."""
    config = tiny().model
    folder = tmp_path / "run"
    DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(folder)
    return folder


@pytest.fixture
def ends(tmp_path):
    """Two image files of the model's mode and size."""
    files = tmp_path / "a.png", tmp_path / "b.png"
    for seed, file in enumerate(files):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(file)
    return files


def test_between_seeds(program, model, tmp_path):
    arguments = ["--model", model, "--seeds", 1, 2, "--num_steps", 4, "--output", tmp_path / "out"]
    code, said, _ = program(INTERPOLATE, *arguments)  # a progress bar is shown where it takes long
    assert code == 0
    assert f"4 images, strip.png and interpolation.gif in {tmp_path}/out/" in said
    names = [f"{index:03}.png" for index in range(4)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *names,
        "interpolation.gif",
        "manifest.json",
        "strip.png",
    ]
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (settings["seeds"], settings["num_steps"], settings["method"]) == ([1, 2], 4, "ddim")
    expected = DDPMPipeline.from_pretrained(model).interpolate(1, 2, 4)
    for name, image in zip(names, expected, strict=True):
        with Image.open(tmp_path / "out" / name) as written:
            assert np.abs(np.asarray(written, int) - np.asarray(image, int)).max() <= 1
    assert program(INTERPOLATE, *arguments)[0] == 0  # the same again


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_between_images_of_the_run_that_a_configuration_wrote(
    program, model, ends, tiny_yaml, tmp_path, monkeypatch, method
):
    monkeypatch.chdir(tmp_path)
    code, _, complaint = program(INTERPOLATE, "--config", tiny_yaml, "--images", *ends)
    assert (code, "has not begun, there is no folder runs/tiny" in complaint) == (2, True)
    (tmp_path / "runs").mkdir()
    model.rename(tmp_path / "runs" / "tiny")
    options = ["--method", method, "--timestep", 9, "--num_inference_steps", 5, "--num_steps", 3]
    assert program(INTERPOLATE, "--config", tiny_yaml, "--images", *ends, *options)[0] == 0
    folder = tmp_path / "runs" / "tiny" / "interpolated" / f"a-to-b-{method}"
    assert len(list(folder.glob("0*.png"))) == 3
    Image.new("L", (8, 8)).save(ends[0])
    code, _, complaint = program(INTERPOLATE, "--config", tiny_yaml, "--images", *ends, *options)
    assert (code, "holds images of other settings (images was" in complaint) == (2, True)


def test_images_are_converted_as_those_of_the_run(program, model, tmp_path):
    (model / "config.yaml").write_text(
        "dataset: {name: ct, value_range: [0, 4095], resize: pad, background: [0, 0, 0]}"
    )
    levels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    padded = np.pad(levels[2:6], ((2, 2), (0, 0)))
    Image.fromarray(padded).save(tmp_path / "as-trained.png")
    Image.fromarray((levels[2:6] * (4095 / 255)).round().astype(np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (90, 90), (100, 150, 200)).save(tmp_path / "photograph.jpg")
    manifests = []
    for first in ("as-trained", "deep"):
        arguments = ["--model", model, "--images", tmp_path / f"{first}.png", tmp_path / "photograph.jpg"]
        assert program(INTERPOLATE, *arguments, "--num_steps", 2, "--output", tmp_path / first)[0] == 0
        manifests.append(json.loads((tmp_path / first / "manifest.json").read_text()))
    assert manifests[0]["images"] == manifests[1]["images"]


def test_classes_change_half_way(program, tiny, tmp_path):
    config = tiny("model_config.num_classes=3").model
    model = tmp_path / "classes"
    pipeline = DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config))
    pipeline.save_pretrained(model)
    arguments = ["--model", model, "--seeds", 1, 2, "--num_steps", 3, "--output", tmp_path / "out"]
    code, _, complaint = program(INTERPOLATE, *arguments, "--class_labels", 3)
    assert (code, "--class_labels: given 3; allowed: 0 to 2" in complaint) == (2, True)
    assert not (tmp_path / "out").exists()
    assert program(INTERPOLATE, *arguments, "--class_labels", 0, 1)[0] == 0
    expected = pipeline.interpolate(1, 2, 3, class_labels=[0, 0, 1])
    for index, image in enumerate(expected):
        with Image.open(tmp_path / "out" / f"{index:03}.png") as written:
            assert np.abs(np.asarray(written, int) - np.asarray(image, int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", 1, 2, "--num_steps", 1], "--num_steps: given 1; allowed: at least 2"),
        (["--seeds", 1, 2, "--method", "linear"], "--method: given 'linear'; allowed: ddim, ddpm"),
        (["--seeds", 1, 2, "--method", "ddpm"], "--seeds: goes with --method ddim and without --timestep"),
        (["--seeds", 1, 2, "--timestep", 3], "--seeds: goes with --method ddim and without --timestep"),
        (
            ["--seeds", 1, 2, "--class_labels", 0],
            "--class_labels: given 0; allowed: none, since",
        ),
        (["--seeds", 1, 2, "--class_labels", 0, 1, 2], "--class_labels: given 3; allowed: one for both ends"),
        (["--seeds", 1, 2, "--num_inference_steps", 0], "--num_inference_steps is 0; possible are 1 to"),
        (["--seeds", 1, 2, "--output", "."], "exists and holds no images of this program"),
        (["--images", "a.png", "no.png"], "--images: there is no file no.png"),
        (["--images", "a.png", "text.png"], "--images: text.png cannot be read: no image that Pillow can read"),
        (["--images", "a.png", "b.png", "--timestep", 20], "--timestep is 20; possible are 0 to 19"),
    ],
)
def test_a_mistake_gets_one_clear_line_and_exit_code_2(program, model, ends, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("text")
    code, _, complaint = program(INTERPOLATE, "--model", model, *arguments)
    assert (code, complaint.count("\n")) == (2, 1)
    assert message in complaint
    assert not (model / "interpolated").exists()
