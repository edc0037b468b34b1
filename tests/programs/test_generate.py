"""pipelines/generate.py: images to disk, completed rather than drawn again, and its refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from processes import TORCHRUN, free_port, run

from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.pictures import GAP
from ddpm_hf.runtime.files import visible_files
from ddpm_hf.schedulers import build_scheduler

GENERATE = "pipelines/generate.py"
REPOSITORY = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


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
    words = ["--model", model, "--num_inference_steps", 5]
    for batch_size in (1, 3, 8):
        folder = tmp_path / f"by-{batch_size}"
        program(GENERATE, *words, "--num_samples", 7, "--batch_size", batch_size, "--output", folder)
    for index in range(7):
        images = [pixels(tmp_path / f"by-{size}" / f"{index:06}.png").astype(int) for size in (1, 3, 8)]
        assert max(np.abs(images[0] - other).max() for other in images[1:]) <= 1
    program(GENERATE, *words, "--num_samples", 1, "--seed", 1, "--output", tmp_path / "other")
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
    (folder,) = (tmp_path / "runs" / "tiny" / "generated").glob("seed-0-steps-3-weights-*")
    (folder / "grid.png").unlink()
    earlier = folder.rename(folder.with_name("seed-0-steps-3"))  # as 0.1.0 named it
    assert program(GENERATE, "--config", tiny_yaml, "--num_samples", 2, "--num_inference_steps", 3)[0] == 0
    assert (earlier / "grid.png").exists()


def test_images_of_other_settings_or_weights_get_a_default_folder_of_their_own(program, tiny, tmp_path):
    config, model = tiny("model_config.num_classes=3").model, tmp_path / "classes"
    for seed in (0, 1):  # of other weights
        torch.manual_seed(seed)
        DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(model)
        for options in (["--class_labels", 0], ["--class_labels", 1], ["--class_labels", 1, "--guidance_scale", 2]):
            words = ["--model", model, "--num_samples", 1, "--num_inference_steps", 2, *options]
            assert program(GENERATE, *words)[0] == 0
    assert len(list((model / "generated").iterdir())) == 6


def test_samplers_classes_and_guidance(program, tiny, tmp_path):
    config = tiny("model_config.num_classes=3").model
    model = tmp_path / "classes"
    DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(model)
    arguments = ["--model", model, "--num_samples", 4, "--num_inference_steps", 4, "--output", tmp_path / "out"]
    code, _, complaint = program(GENERATE, *arguments, "--class_labels", 1, 3)
    assert (code, "--class_labels: given 3; allowed: 0 to 2, or leave it out" in complaint) == (2, True)
    assert not (tmp_path / "out").exists()
    options = ["--class_labels", 0, 2, "--guidance_scale", 2, "--sampler", "ddim"]
    assert program(GENERATE, *arguments, *options)[0] == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["class_labels"] == [0, 2]
    assert len(list((tmp_path / "out").glob("0*.png"))) == 4


def test_a_grid_of_a_shape_and_strips_from_noise_to_image(program, model, tmp_path):
    arguments = ["--model", model, "--num_samples", 8, "--output", tmp_path / "out", "--num_inference_steps", 4]
    code, said, _ = program(GENERATE, *arguments, "--grid", "2x3", "--intermediates", 3)
    assert code == 0
    assert "from noise to image: denoising.png and predicted.png" in said
    side = 64 + GAP
    assert pixels(tmp_path / "out" / "grid.png").shape == (2 * side - GAP, 3 * side - GAP)
    x_t, x_0 = (pixels(tmp_path / "out" / f"{name}.png") for name in ("denoising", "predicted"))
    assert x_t.shape == x_0.shape == (6 * side - GAP, 4 * side - GAP)  # six images, three stages and the image
    assert (x_t[:, -64:] == x_0[:, -64:]).all()
    assert (x_t[:, :64] != x_0[:, :64]).any()
    first = pixels(tmp_path / "out" / "grid.png")[:64, :64].astype(int)
    assert np.abs(x_t[:64, -64:] - first).max() <= 2


@pytest.mark.parametrize("archive", ["npz", "parquet"])
def test_one_file_of_all_images_with_their_classes(program, tiny, tmp_path, archive):
    config = tiny("model_config.num_classes=3").model
    model = tmp_path / "classes"
    DDPMPipeline(unet=build_network(config), scheduler=build_scheduler(config)).save_pretrained(model)
    arguments = ["--model", model, "--num_samples", 5, "--num_inference_steps", 2, "--class_labels", 2, 0]
    code, said, _ = program(GENERATE, *arguments, "--format", archive, "--output", tmp_path / "out")
    file = tmp_path / "out" / f"samples.{archive}"
    assert (code, f"all of them in {file.name}" in said) == (0, True)
    drawn = np.stack([pixels(tmp_path / "out" / f"{index:06}.png") for index in range(5)])
    if archive == "npz":
        with np.load(file) as arrays:
            images, labels = arrays["arr_0"][..., 0], arrays["arr_1"].tolist()
    else:
        dataset = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
        images, labels = np.stack([np.asarray(image) for image in dataset["image"]]), list(dataset["label"])
    assert (images == drawn).all()
    assert labels == [2, 0, 2, 0, 2]


def test_what_a_crash_leaves_of_a_manifest_keeps_nobody_out(program, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.4711").write_text("{")
    options = ["--num_samples", "1", "--num_inference_steps", "2", "--output", tmp_path / "out"]
    assert program(GENERATE, "--model", model, *options)[0] == 0


def test_a_folder_whose_manifest_is_not_ours_is_refused(program, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{")
    code, _, complaint = program(GENERATE, "--model", model, "--output", tmp_path / "out")
    assert (code, "manifest.json is not of this program" in complaint) == (2, True)


COUNTING = """
import os, runpy, sys
from pathlib import Path
from ddpm_hf.pipelines import generation

generate = generation.generate

def counted(*arguments):
    drawn = generate(*arguments)
    Path(os.environ["COUNTS"], os.environ.get("RANK", "0")).write_text(str(drawn))
    return drawn

generation.generate = counted
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_two_processes_draw_what_one_draws_and_share_the_work(model, tmp_path):
    """101 images, every one of them another, and byte by byte the same whoever drew them."""
    counting = tmp_path / "counting.py"
    counting.write_text(COUNTING)
    options = ["--model", str(model), "--num_samples", "101", "--batch_size", "8", "--num_inference_steps", "4"]
    launchers = {"one": [sys.executable], "two": [*TORCHRUN, free_port()]}
    shares = {}
    for name, launcher in launchers.items():
        command = [*launcher, str(counting), str(REPOSITORY / GENERATE), *options, "--output", str(tmp_path / name)]
        counts = tmp_path / f"counts of {name}"
        counts.mkdir()
        run(*command, check=True, env={**ALONE, "COUNTS": str(counts)})
        shares[name] = [int(file.read_text()) for file in sorted(counts.iterdir())]
    assert shares == {"one": [101], "two": [53, 48]}
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in launchers)
    assert two == one
    images = [content for name, content in one.items() if name.startswith("0")]
    assert len(images) == len(set(images)) == 101


@pytest.mark.slow
def test_a_killed_generation_leaves_whole_images_and_goes_on_from_them(model, tmp_path):
    folder = tmp_path / "out"
    options = ["--model", str(model), "--num_samples", "120", "--batch_size", "2", "--num_inference_steps", "20"]
    command = [sys.executable, str(REPOSITORY / GENERATE), *options, "--output", str(folder)]
    process = subprocess.Popen(command, env=ALONE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list(folder.glob("0*.png"))) < 8:
        assert time.monotonic() < end, process.poll()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("0*.png")}
    assert 8 <= len(kept) < 120
    assert all(pixels(file).shape == (8, 8) for file in kept)
    run(*command, check=True, env=ALONE)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert sorted(file.name for file in visible_files(folder)) == [
        *(f"{index:06}.png" for index in range(120)),
        "grid.png",
        "manifest.json",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "there is no folder /nowhere"),
        (["--model", "user/nothing"], "user/nothing is not in the cache"),
        (["--num_samples", "0"], "--num_samples: given 0; allowed: at least 1"),
        (["--num_inference_steps", "21"], "--num_inference_steps: given 21; allowed: 1 to 20"),
        (["--num_inference_steps", "0"], "--num_inference_steps: given 0; allowed: 1 to 20"),
        (["--seed", "1", "--output", "OUT"], "holds images of other settings (seed was 0)"),
        (["--sampler", "magic"], "--sampler: given 'magic'; allowed: ddpm, ddim, "),
        (["--grid", "4"], "--grid: given '4'; allowed: rows x columns, such as 2x8"),
        (["--grid", "5x4"], "--grid: 5x4 has 20 places; allowed: at most --num_samples, 16"),
        (["--intermediates", "3"], "--intermediates: given 3; allowed: 0 to 2"),
        (["--intermediates", "-1"], "--intermediates: given -1; allowed: 0 to 2"),
        (["--format", "gif"], "--format: given 'gif'; allowed: png, npz, parquet"),
        (["--output", "."], "exists and holds no images of this program"),
        (["--output", "/proc/out"], "--output: /proc/out cannot be written to"),
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
