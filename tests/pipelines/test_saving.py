"""Folders that name only diffusers' classes."""

import json
import stat
import subprocess
import textwrap

import diffusers
import pytest
import torch
from processes import run_python
from torch.testing import assert_close

from ddpm_hf.models import DDPMUNet
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.pipelines.samplers import make_sampler
from ddpm_hf.schedulers import DDPMScheduler

BEGINNING = """
import sys, diffusers, torch
diffusers.utils.logging.disable_progress_bar()
folder = sys.argv[1]
"""


def run_hidden(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program in a process of its own where ddpm_hf cannot be imported, and warnings are errors."""
    return run_python(BEGINNING + textwrap.dedent(program), *arguments, installed=False)


@pytest.fixture
def saved(tiny_pipeline, tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    return pipeline, tmp_path / "model"


def test_only_stock_names_are_written(saved):
    _, folder = saved
    index = json.loads((folder / "model_index.json").read_text())
    version = index.pop("_diffusers_version")
    assert version == diffusers.__version__
    assert index == {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert json.loads((folder / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == "DDPMScheduler"


def test_weights_are_readable_by_all(saved):
    weights = saved[1] / "unet" / "diffusion_pytorch_model.safetensors"
    assert stat.S_IMODE(weights.stat().st_mode) == 0o644


def test_no_path_of_the_savers_disk_is_written(saved, tmp_path):
    for load in (DDPMPipeline, diffusers.DiffusionPipeline):
        again = DDPMPipeline(**load.from_pretrained(saved[1]).components)
        again.save_pretrained(tmp_path / "again")
        text = "".join(file.read_text() for file in (tmp_path / "again").rglob("*.json"))
        assert "_name_or_path" not in text
        assert str(tmp_path) not in text


def test_a_stock_network_that_stays_stock_is_saved_without_its_path(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D"),
    )
    unet.save_pretrained(tmp_path / "unet")
    pipeline = DDPMPipeline(diffusers.UNet2DModel.from_pretrained(tmp_path / "unet"), DDPMScheduler())
    assert type(pipeline.unet) is diffusers.UNet2DModel
    pipeline.save_pretrained(tmp_path / "model")
    assert "_name_or_path" not in (tmp_path / "model" / "unet" / "config.json").read_text()
    assert type(DDPMPipeline.from_pretrained(tmp_path / "model").unet) is diffusers.UNet2DModel


def test_loading_gives_our_classes_and_the_same_images(saved):
    pipeline, folder = saved
    again = DDPMPipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    assert type(again) is DDPMPipeline
    assert type(again.unet) is DDPMUNet
    assert type(again.scheduler) is DDPMScheduler
    weights = pipeline.unet.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.unet.state_dict().items())
    images = [each(seeds=[1, 2], output_type="pt").images for each in (pipeline, again)]
    assert_close(images[0], images[1], rtol=0, atol=1e-5)


def test_dtype_and_passed_components(saved):
    pipeline, folder = saved
    half = DDPMPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert type(half.unet) is DDPMUNet
    ours = DDPMPipeline.from_pretrained(folder, unet=pipeline.unet)
    assert ours.unet is pipeline.unet


def test_another_sampler_is_saved_under_its_own_name(saved, tmp_path):
    pipeline, _ = saved
    pipeline.scheduler = make_sampler("ddim", pipeline.scheduler)
    pipeline.save_pretrained(tmp_path / "ddim")
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "ddim")
    assert type(stock.scheduler) is diffusers.DDIMScheduler


def test_stock_diffusers_loads_it_without_us(saved):
    result = run_hidden(
        """
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline) is diffusers.DDPMPipeline, type(pipeline)
        assert type(pipeline.unet) is diffusers.UNet2DModel
        assert type(pipeline.scheduler) is diffusers.DDPMScheduler
        pipeline.set_progress_bar_config(disable=True)
        image = pipeline(num_inference_steps=10, generator=torch.Generator().manual_seed(3)).images[0]
        print(image.mode, image.tobytes().hex())
        assert "ddpm_hf" not in sys.modules
        """,
        str(saved[1]),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # diffusers' logger warns here
    mode, pixels = result.stdout.split()
    assert mode == "L"
    here = saved[0](generator=torch.Generator().manual_seed(3)).images[0].tobytes()
    assert max(abs(a - b) for a, b in zip(here, bytes.fromhex(pixels), strict=True)) <= 1


@pytest.mark.parametrize("stock", [diffusers.DDPMPipeline, diffusers.DDIMPipeline])
def test_from_pipe_to_stock_pipelines_and_back(tiny_pipeline, stock, tmp_path):
    def image(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        return pipeline(generator=generator, num_inference_steps=10, output_type="np").images

    ours = tiny_pipeline()
    ours.unet.eval()  # which stock pipelines leave to their users
    theirs = stock.from_pipe(ours)
    assert type(theirs.unet) is diffusers.UNet2DModel
    assert theirs.unet.conv_out.weight is ours.unet.conv_out.weight
    back = DDPMPipeline.from_pipe(theirs)
    again = DDPMPipeline.from_pipe(back)
    assert type(back.unet) is type(again.unet) is DDPMUNet
    assert again.unet.conv_out.weight is ours.unet.conv_out.weight
    assert type(back.scheduler) is (DDPMScheduler if stock is diffusers.DDPMPipeline else diffusers.DDIMScheduler)
    images = [image(each) for each in (theirs, back, again)]
    assert_close(images[0], images[1], rtol=0, atol=1e-5)
    assert_close(images[1], images[2], rtol=0, atol=0)
    if stock is diffusers.DDPMPipeline:
        assert_close(images[0], image(ours), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {library for library, _ in (index["unet"], index["scheduler"])} == {"diffusers"}
    assert ours.components["unet"] is ours.unet  # which offloading, say, hooks
