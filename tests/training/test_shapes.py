"""Images that are not square: a run from its data to its pipeline, and what measures, edits and shows it."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.config import BenchmarkConfig
from ddpm_hf.data.image_loading import load_image_set
from ddpm_hf.demo.demo_model import load_model
from ddpm_hf.demo.work import draw, inpaint
from ddpm_hf.evaluation import evaluate
from ddpm_hf.hub.card import make_card
from ddpm_hf.hub.model_info import gather_model_info
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.training.trainer import Trainer

SHAPE = "model_config.image_size=[16,24]"


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Thirty pictures of several sizes, brighter to the right."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(30):
        ramp = np.tile(np.linspace(0, 200 + index, 40 + index), (50, 1)).astype(np.uint8)
        Image.fromarray(ramp).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(tiny, photographs, tmp_path) -> Path:
    config = tiny(f"dataset.name={photographs}", SHAPE, "training.evaluate_every=null")
    Trainer(config).train()
    return tmp_path / "run"


def test_images_are_cropped_or_padded_to_the_shape(tiny, photographs):
    config = tiny(f"dataset.name={photographs}", SHAPE)
    assert load_image_set(config.dataset, config.model).images.shape == (30, 1, 16, 24)
    padded = config.dataset.model_copy(update={"resize": "pad", "background": (0, 0, 255)})
    images = load_image_set(padded, config.model).images
    assert images.shape == (30, 1, 16, 24)
    assert (images[0, 0, :, 0] == images[0, 0, 0, 0]).all()  # a bar at the left


def test_a_run_ends_in_a_pipeline_that_stock_diffusers_loads(run):
    stock = diffusers.DDPMPipeline.from_pretrained(run)
    assert tuple(stock.unet.config.sample_size) == (16, 24)
    drawn = stock(batch_size=2, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    assert drawn.images.shape[:3] == (2, 16, 24)
    ours = DDPMPipeline.from_pretrained(run)(2, num_inference_steps=2, output_type="pt").images
    assert ours.shape == (2, 1, 16, 24)


def test_what_measures_edits_and_shows_a_model_knows_both_sides(run, tiny, photographs):
    pipeline = DDPMPipeline.from_pretrained(run)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline.interpolate(0, 1, 3, num_inference_steps=4)
    assert [frame.size for frame in frames] == [(24, 16)] * 3
    model = load_model(str(run))
    settings = {"steps": 2, "seed": 0}
    image = draw(model, lambda progress: None, count=1, **settings).images[0]
    assert image.size == (24, 16)
    mask = Image.new("L", (24, 16), 255)
    made = inpaint(model, lambda progress: None, image=image, mask=mask, variants=1, **settings).images
    assert made[0].size == (24, 16)
    assert "16x24" in make_card(gather_model_info(run, run, "ada/wide", []))
    assert json.loads((run / "unet/config.json").read_text())["sample_size"] == [16, 24]
    benchmark = BenchmarkConfig.model_validate(
        {"n_samples": 10, "batch_size": 5, "num_inference_steps": 2, "features": "digits", "allow_few_samples": True}
    )
    config = tiny(f"dataset.name={photographs}", SHAPE).model_copy(update={"benchmark": benchmark})
    assert evaluate(run, config).metrics


@pytest.mark.parametrize("given", ["[16,25]", "[0,24]", "[16,24,32]", "[16]"])
def test_sides_that_cannot_be_halved_are_refused(tiny, given):
    with pytest.raises(ValueError, match="image_size"):
        tiny(f"model_config.image_size={given}")
