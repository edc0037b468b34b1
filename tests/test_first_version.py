"""Runs, reports, generated images and repositories of the first version still work.

The files in tests/first_version were written once, by commit 7144797; make.sh beside them shows how.
"""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image, ImageChops
from processes import losses
from safetensors.torch import load_file

from ddpm_hf import DDPMPipeline, Trainer, load_config, load_pipeline
from ddpm_hf.checkpoints.fetch import fetch_checkpoint, fetch_pipeline
from ddpm_hf.checkpoints.format import find_damage
from ddpm_hf.config import DatasetConfig, HubConfig, ModelConfig
from ddpm_hf.data import load_image_set, load_image_sets
from ddpm_hf.data.pixels import DECODER
from ddpm_hf.evaluation.report import Report
from ddpm_hf.hub import push_run

FIRST = Path(__file__).parent / "first_version"
RUNS = ("plain", "full")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(FIRST / request.param, tmp_path / request.param))


@pytest.fixture
def pushed(hub, run: Path) -> str:
    """The repository that the first version made of the run `full`."""
    for branch, folder in (("main", run), ("checkpoints", run / "checkpoints" / "step-3")):
        names = [WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]
        if branch == "checkpoints":
            names += [f"training_state/{file.name}" for file in (folder / "training_state").glob("*.safetensors")]
            names += [file.relative_to(folder).as_posix() for file in folder.glob("unet/*.ema-*")]
        files = {name: (folder / name).read_bytes() for name in names}
        changed = FIRST / "pushed" / branch
        files |= {
            file.relative_to(changed).as_posix(): file.read_bytes() for file in changed.rglob("*") if file.is_file()
        }
        hub.put("ada/full", files, branch=branch)
    return "ada/full"


def continue_run(checkpoint: Path, original: Path, output: Path) -> None:
    """Resume a run, and compare what it ends in with what the first version ended in.

    The comparison is to 1e-5 rather than to the bit: the kernels that PyTorch picks depend on the processor.
    """
    Trainer(load_config(original / "config.yaml", [f"output_dir={output}"]), str(checkpoint)).train()
    assert losses(output) == pytest.approx(losses(original)[1:], rel=1e-5)
    files = [*original.glob("unet/*.safetensors"), *original.glob("checkpoints/step-6/*/*.safetensors")]
    for file in files:
        found = output / file.relative_to(original)
        torch.testing.assert_close(load_file(found), load_file(file), rtol=1e-5, atol=1e-5)


def test_the_pipeline_loads_in_diffusers_and_in_ours_with_the_same_weights(run):
    saved = load_file(run / WEIGHTS)
    for loaded in (diffusers.DDPMPipeline.from_pretrained(run), DDPMPipeline.from_pretrained(run), load_pipeline(run)):
        torch.testing.assert_close(loaded.unet.state_dict(), saved, rtol=0, atol=0)


def test_the_second_average_loads():
    average = DDPMPipeline.from_pretrained(FIRST / "full", variant="ema-0_9")
    saved = load_file(FIRST / "full" / "unet" / "diffusion_pytorch_model.ema-0_9.safetensors")
    torch.testing.assert_close(average.unet.state_dict(), saved, rtol=0, atol=0)


def test_checkpoints_are_complete(run):
    assert [find_damage(checkpoint) for checkpoint in sorted(run.glob("checkpoints/step-*"))] == [None, None]


@pytest.mark.parametrize("name", ["plain.yaml", "plain/config.yaml", "full.yaml", "full/config.yaml"])
def test_the_configuration_loads(name):
    assert load_config(FIRST / name).training.num_steps == 6


def test_decoded_images_are_found_without_opening_the_dataset(tmp_path, monkeypatch):
    shutil.copytree(FIRST / "images", tmp_path / "images")
    for manifest in tmp_path.glob("images/*/manifest.json"):
        decoder = json.loads(manifest.read_text())["body"]["key"]["decoder"]
    assert DECODER.partition(" ")[0] == decoder.partition(" ")[0]  # the rest is the version of Pillow
    monkeypatch.setattr("ddpm_hf.data.image_loading.DECODER", decoder)
    monkeypatch.setattr("ddpm_hf.data.image_loading.open_source", lambda _: pytest.fail("opened"))
    dataset = DatasetConfig(name="ada/images", revision="0" * 40, cache_dir=f"{tmp_path}/images")
    model = ModelConfig(image_size=4, channel_multipliers=(1,), attention_levels=(), num_classes=2)
    images = load_image_set(dataset, model)
    levels = torch.arange(5)
    torch.testing.assert_close(images.images[:, :, 1, 2].long(), levels[:, None] * torch.tensor([1, 2, 3]))
    assert images.labels.tolist() == [1, 0, 1, 0, 1]
    assert images.class_names == ["a", "b"]
    assert len(images.skipped) == 1
    in_parts = dataset.model_copy(update={"validation_fraction": 0.4})
    training, held_out = load_image_sets(in_parts, model, seed=3)
    assert sorted([*training.images[:, 0, 0, 0].tolist(), *held_out.images[:, 0, 0, 0].tolist()]) == levels.tolist()


def test_a_run_resumed_in_the_middle_ends_in_the_same_weights(run, tmp_path):
    continue_run(run / "checkpoints" / "step-3", run, tmp_path / "continued")


def test_a_run_resumed_in_its_own_folder_loses_nothing(run):
    before = (run / "metrics.jsonl").read_text()
    config = load_config(run / "config.yaml", [f"output_dir={run}", "training.num_steps=8"])
    Trainer(config, "latest").train()
    assert (run / "metrics.jsonl").read_text().startswith(before)
    assert losses(run)[:3] == losses(FIRST / run.name)
    assert find_damage(run / "checkpoints" / "step-8") is None


def test_generated_images_are_completed(program, monkeypatch, tmp_path):
    shutil.copytree(FIRST / "plain", tmp_path / "plain")
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "plain" / "generated" / "seed-0-steps-20"
    for index in (2, 7):
        (images / f"{index:06}.png").unlink()
    code, _, said = program("pipelines/generate.py", "--model", "plain", "--num_samples", 8)
    assert (code, "were there already" in said) == (0, False), said
    for index in range(8):
        with (
            Image.open(images / f"{index:06}.png") as drawn,
            Image.open(FIRST / images.relative_to(tmp_path) / f"{index:06}.png") as expected,
        ):
            assert ImageChops.difference(drawn, expected).getextrema()[1] <= 1


def test_the_report_is_read_as_today_s_type():
    report, raw = Report.read(FIRST / "plain" / "metrics.json"), json.loads((FIRST / "plain/metrics.json").read_text())
    assert report.sampling.n_samples == 70
    for name, old in raw["metrics"].items():
        assert (report.metrics[name].value, report.metrics[name].std) == (old["value"], old["deviation"])
        assert report.metrics[name].real_vs_real.value == old["real_vs_real"]["value"]
    assert [each.ssim.value for each in report.reconstructions] == [
        each["ssim"]["value"] for each in raw["reconstructions"]
    ]


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_a_run_is_measured_again_with_the_same_result(program, run):
    """To 2%, since the digits classifier is trained on this machine."""
    before = Report.read(run / "metrics.json")
    code, _, said = program(
        "training/train.py", "--config", run / "config.yaml", f"output_dir={run}", "--eval_only", "--benchmark"
    )
    assert code == 0, said
    after = Report.read(run / "metrics.json")
    assert after.metrics.keys() == before.metrics.keys()
    for name, metric in before.metrics.items():
        assert after.metrics[name].value == pytest.approx(metric.value, rel=0.02, abs=0.02), name


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_a_run_is_pushed_with_its_report(hub, client, run):
    settings = HubConfig(repo_id="ada/plain", checkpoint_branch="checkpoints")
    push_run(run, settings, client)
    push_run(run, settings, client, kind="checkpoint")
    files = hub.repo("ada/plain").find("main").files
    assert files[WEIGHTS].data == (run / WEIGHTS).read_bytes()
    card = files["README.md"].data.decode()
    value = json.loads((run / "metrics.json").read_text())["metrics"]["frechet_distance"]["value"]
    assert f"{value:.4g}" in card


@pytest.mark.parametrize("run", ["full"], indirect=True)
def test_a_pushed_repository_loads_and_its_checkpoint_resumes(client, pushed, run, tmp_path):
    fetched = DDPMPipeline.from_pretrained(fetch_pipeline(pushed, client))
    torch.testing.assert_close(fetched.unet.state_dict(), load_file(run / WEIGHTS), rtol=0, atol=0)
    continue_run(fetch_checkpoint(f"hub:{pushed}", client), run, tmp_path / "continued")
