"""Samplers by name: each samples the process that the model was trained for."""

import re
import warnings

import diffusers
import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.pipelines.samplers import SAMPLERS, DDIMScheduler, make_sampler, set_num_steps
from ddpm_hf.schedulers import DDPMScheduler

# diffusers' own, with recent numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TAKES_X_0 = ("ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++", "unipc")
CLIPS = (*TAKES_X_0, "heun")


def sampler(name, **config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make_sampler(name, DDPMScheduler(**config))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_betas_and_prediction_are_kept(name, schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule, beta_end=0.03, prediction_type="v_prediction")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = make_sampler(name, scheduler)
    assert_close(made.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)
    assert made.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 8, 20, 50, 125])
def test_grid_begins_at_the_noise_and_has_every_step(name, num_steps):
    made = sampler(name)
    set_num_steps(made, num_steps)
    extra = {"heun": num_steps - 1, "pndm": int(num_steps > 1)}.get(name, 0)
    assert len(made.timesteps) == num_steps + extra
    assert made.timesteps[0] == 999 or (name == "ddpm" and num_steps == 1)  # ours alone starts one step at 999
    if hasattr(made, "sigmas"):
        assert made.sigmas[-1] == 0
    else:
        assert name == "ddpm" or made.config.set_alpha_to_one


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        *((name, prediction_type) for name in SAMPLERS for prediction_type in ("epsilon", "v_prediction")),
        *((name, "sample") for name in TAKES_X_0),  # the others refuse it, as tested below
    ],
)
@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
def test_samples_have_the_distribution_of_the_data(gaussian_pipeline, name, prediction_type):
    """With the exact network, every sampler converges to N(0.25, 0.2^2)."""
    pipeline = gaussian_pipeline(prediction_type)
    images = pipeline(500, torch.Generator().manual_seed(0), 250, "pt", sampler=name).images * 2 - 1
    standard_error = 0.2 / (500 * 16) ** 0.5
    assert abs(images.mean() - 0.25) < 4 * standard_error
    bias = {"ddpm": 0.008, "ddim": 0.004, "euler": 0.004, "sde-dpmsolver++": 0.004}.get(
        name, 0.002
    )  # of 250 steps, first order and second
    assert abs(images.std() - 0.2) < bias + 4 * standard_error


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.filterwarnings("ignore:sampler:UserWarning")
def test_as_many_steps_as_the_model_has_give_images(gaussian_pipeline, name):
    """Where a timestep is visited twice, a solver of second order divides by the distance between them."""
    images = gaussian_pipeline("epsilon")(2, num_inference_steps=1000, output_type="pt", sampler=name).images
    assert images.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_x_0_is_clipped_or_a_warning_says_that_it_is_not(gaussian_pipeline, name):
    pipeline = gaussian_pipeline("v_prediction")
    with torch.no_grad():
        pipeline.unet.weight *= 3  # a network gone wild
    scheduler = DDPMScheduler(beta_schedule="cosine", prediction_type="v_prediction")
    if name in CLIPS:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            make_sampler(name, scheduler)
        seen = []
        pipeline(
            4,
            num_inference_steps=10,
            sampler=name,
            callback_on_step_end=lambda pipe, index, t, state: seen.append(state["sample"]),
        )
        assert seen[-1].abs().max() <= 1 + 1e-4
    else:
        with pytest.warns(UserWarning, match=rf"{re.escape(name)}.* does not clip the predicted x_0 to \[-1.0, 1.0\]"):
            make_sampler(name, scheduler)


def test_what_cannot_be_kept_is_said():
    with pytest.warns(UserWarning, match=r"'unipc' does not clip the predicted x_0 to \[-2.0, 2.0\]"):
        make_sampler("unipc", DDPMScheduler(clip_sample_range=2.0))
    with pytest.warns(UserWarning, match="'euler' does not threshold"):
        make_sampler("euler", DDPMScheduler(thresholding=True))
    for name in ("heun", "euler", "pndm"):
        with pytest.raises(ValueError, match=r"sampler .*x_0"):
            make_sampler(name, DDPMScheduler(prediction_type="sample"))
    for name in ("heun", "pndm"):
        with pytest.raises(ValueError, match=r"sampler .*signal"):
            make_sampler(name, DDPMScheduler(rescale_betas_zero_snr=True))


def test_dynamic_thresholding_and_variance_survive_a_change_and_back():
    scheduler = DDPMScheduler(thresholding=True, sample_max_value=2.0, variance_type="fixed_large")
    there = make_sampler("dpmsolver++", scheduler)
    assert there.config.thresholding
    assert there.config.sample_max_value == 2.0
    back = make_sampler("ddpm", make_sampler("ddim", scheduler))
    assert back.config.variance_type == "fixed_large"
    assert back.config.thresholding


def test_impossible_numbers_of_steps_name_possible_ones():
    with pytest.raises(ValueError, match=r"30 even steps.*25 and 20"):
        set_num_steps(sampler("pndm"), 30)
    with pytest.raises(ValueError, match=r"61 even steps.*'ddim'"):
        set_num_steps(sampler("euler"), 61)
    made = sampler("ddim")
    for num_steps in range(1, 1001):
        set_num_steps(made, num_steps)
        assert len(set(made.timesteps.tolist())) == num_steps
        assert made.timesteps[0] == 999


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clips", [False, True])
def test_ddim_agrees_with_diffusers_on_even_grids(prediction_type, clips):
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction_type, "clip_sample": clips}
    ours, stock = DDIMScheduler(**config), diffusers.DDIMScheduler(**config, timestep_spacing="trailing")
    ours.set_timesteps(20)
    stock.set_timesteps(20)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x_t, output = torch.randn(2, 2, 3, 4, 4, generator=generator)
    for t in ours.timesteps[1:]:
        expected = stock.step(output, t, x_t, use_clipped_model_output=True).prev_sample
        assert_close(ours.step(output, t, x_t).prev_sample, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddims_inverse_step_undoes_its_step(prediction_type):
    ddim = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type, clip_sample=False)
    ddim.set_timesteps(30)
    x_t, output = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in ddim.timesteps:
        x_s = ddim.step(output, t, x_t).prev_sample
        assert_close(ddim.inverse_step(output, t, x_s, guess=x_t), x_t)


def test_the_sde_sampler_draws_the_noise_of_diffusers_own():
    ours = sampler("sde-dpmsolver++", beta_schedule="cosine")
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(ours.config)
    results = []
    for scheduler in (ours, theirs):
        set_num_steps(scheduler, 5)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        x_t = torch.full((2, 1, 4, 4), 0.5)
        for t in scheduler.timesteps:
            x_t = scheduler.step(0.3 * x_t, t, x_t, generator=generators).prev_sample
        results.append(x_t)
    assert torch.equal(*results)
