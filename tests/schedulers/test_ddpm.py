"""DDPMScheduler as a diffusers scheduler: what it keeps of its parent, and where it is more exact."""

import json
import math
import warnings

import diffusers
import pytest
import torch
from torch.testing import assert_close

from ddpm_hf.config.model import ModelConfig
from ddpm_hf.schedulers import DDPMScheduler, build_scheduler, terminal_signal_warning

STOCK_SCHEDULES = ("linear", "squaredcos_cap_v2", "scaled_linear", "sigmoid")


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", STOCK_SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_schedule_is_the_parents(schedule, zero_snr):
    ours = DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero_snr)
    stock = diffusers.DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero_snr)
    assert ours.alphas_cumprod.dtype == ours.betas.dtype == torch.float32
    assert_close(ours.betas, stock.betas, rtol=1e-3, atol=1e-6)
    assert_close(ours.alphas_cumprod, stock.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_linear_schedule_is_exact():
    ours = DDPMScheduler()
    alpha_bar, exact = 1.0, []
    for t in range(1000):
        alpha_bar *= 1 - (1e-4 + t * (0.02 - 1e-4) / 999)
        exact.append(alpha_bar)
    assert_close(ours.process.tables["alpha_bar"], torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=0)


def test_cosine_schedule_is_exact():
    ours = DDPMScheduler(beta_schedule="cosine", num_train_timesteps=100)

    def f(t):  # improved DDPM, eq. 17
        return math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    exact = torch.tensor([f(t + 1) / f(0) for t in range(99)], dtype=torch.float64)  # the last beta is capped
    assert_close(ours.process.tables["alpha_bar"][:-1], exact, rtol=1e-12, atol=0)
    assert ours.process.tables["beta"][-1] == 0.999


def test_cosine_is_saved_under_its_stock_name_and_loads_in_diffusers(tmp_path):
    ours = DDPMScheduler(beta_schedule="cosine", num_train_timesteps=50, prediction_type="v_prediction")
    ours.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "DDPMScheduler"
    assert saved["beta_schedule"] == "squaredcos_cap_v2"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stock = diffusers.DDPMScheduler.from_pretrained(tmp_path)
        again = DDPMScheduler.from_pretrained(tmp_path)
    assert type(stock) is diffusers.DDPMScheduler
    assert_close(stock.alphas_cumprod, ours.alphas_cumprod, rtol=1e-4, atol=1e-7)
    public = {key: value for key, value in ours.config.items() if not key.startswith("_")}
    assert {key: again.config[key] for key in public} == public


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'quadratic'"):
        DDPMScheduler(beta_schedule="quadratic")


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "fixed_small_log", "learned_range"])
@pytest.mark.parametrize("num_steps", [7, 50, 100])
def test_step_agrees_with_the_parents(prediction_type, variance_type, num_steps):
    config = {
        "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction_type,
        "variance_type": variance_type,
    }
    ours, stock = DDPMScheduler(**config), diffusers.DDPMScheduler(**config)
    ours.set_timesteps(num_steps)
    stock.set_timesteps(num_steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    sample = images(2, 3, 4, 4)
    output = images(2, 6 if variance_type == "learned_range" else 3, 4, 4, seed=1).clamp(-1, 1)
    for t in ours.timesteps[:: max(1, num_steps // 7)]:
        results = [each.step(output, t, sample, generator=torch.Generator().manual_seed(3)) for each in (ours, stock)]
        assert_close(results[0].prev_sample, results[1].prev_sample, rtol=1e-3, atol=1e-3)
        assert_close(results[0].pred_original_sample, results[1].pred_original_sample, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variance_type", ["fixed_small_log", "fixed_large_log"])
def test_log_variances_equal_the_plain_ones(variance_type):
    log, plain = DDPMScheduler(variance_type=variance_type), DDPMScheduler(variance_type=variance_type[:-4])
    for t in (999, 500, 1, 0):
        results = [
            each.step(images(1, 1, 4, 4), t, images(1, 1, 4, 4, seed=1), generator=torch.Generator().manual_seed(2))
            for each in (log, plain)
        ]
        assert results[0].prev_sample.isfinite().all()
        assert torch.equal(results[0].prev_sample, results[1].prev_sample)


@pytest.mark.parametrize("time_steps", [1, 2, 7, 50, 100, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_number_of_steps_is_exact(time_steps, spacing):
    scheduler = DDPMScheduler(num_train_timesteps=time_steps, timestep_spacing=spacing)
    for num_steps in range(1, time_steps + 1):
        scheduler.set_timesteps(num_steps)
        visited = scheduler.timesteps.tolist()
        assert len(visited) == num_steps
        assert visited == sorted(set(visited), reverse=True)
        assert visited[-1] >= 0
        if spacing != "leading":
            assert visited[0] == time_steps - 1
        if spacing == "linspace" and num_steps > 1:
            assert visited[-1] == 0


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_impossible_numbers_of_steps(num_steps):
    with pytest.raises(ValueError, match=f"num_inference_steps is {num_steps}"):
        DDPMScheduler().set_timesteps(num_steps)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_the_last_step_adds_no_noise(spacing):
    scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    output = scheduler.step(images(1, 1, 4, 4), scheduler.timesteps[-1], images(1, 1, 4, 4, seed=1))
    assert_close(output.prev_sample, output.pred_original_sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_stepped_in_float32(dtype):
    scheduler = DDPMScheduler()
    output, sample = images(2, 3, 8, 8).to(dtype), images(2, 3, 8, 8, seed=1).to(dtype)
    half = scheduler.step(output, 500, sample, generator=torch.Generator().manual_seed(0))
    full = scheduler.step(output.float(), 500, sample.float(), generator=torch.Generator().manual_seed(0))
    assert half.prev_sample.dtype == dtype
    assert torch.equal(half.prev_sample, full.prev_sample.to(dtype))


def test_forward_process_in_half_precision_still_adds_noise_at_the_first_timesteps():
    scheduler, timesteps = DDPMScheduler(), torch.arange(10)
    x_0, eps = torch.zeros(10, 1, 4, 4, dtype=torch.bfloat16), images(10, 1, 4, 4).bfloat16()
    noisy = scheduler.add_noise(x_0, eps, timesteps)
    assert noisy.dtype == torch.bfloat16
    exact = scheduler.process.tables["one_minus_alpha_bar"][:10].sqrt().reshape(-1, 1, 1, 1) * eps.double()
    assert_close(noisy.double(), exact, rtol=2**-7, atol=0)


def test_add_noise_and_velocity_agree_with_the_parents():
    ours, stock = DDPMScheduler(beta_schedule="cosine"), diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    x_0, eps, timesteps = images(4, 3, 4, 4), images(4, 3, 4, 4, seed=1), torch.tensor([0, 1, 500, 999])
    assert_close(ours.add_noise(x_0, eps, timesteps), stock.add_noise(x_0, eps, timesteps), rtol=1e-4, atol=1e-4)
    assert_close(ours.get_velocity(x_0, eps, timesteps), stock.get_velocity(x_0, eps, timesteps), rtol=1e-4, atol=1e-4)


def test_learned_variance_needs_twice_the_channels():
    scheduler = DDPMScheduler(variance_type="learned_range")
    with pytest.raises(ValueError, match=r"learned_range.*6.*3"):
        scheduler.step(images(1, 3, 4, 4), 5, images(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("config", "left"),
    [
        ({"time_steps": 1000}, None),
        ({"time_steps": 250}, "0.28"),
        ({"time_steps": 100}, "0.60"),
        ({"time_steps": 100, "beta_schedule": "cosine"}, None),
    ],
)
def test_terminal_signal(config, left):
    text = terminal_signal_warning(build_scheduler(ModelConfig(**config)))
    if left is None:
        assert text is None
    else:
        assert left in text
        assert "'cosine'" in text
        assert "rescale_betas" in text


def test_rescaled_betas_end_in_noise_at_any_number_of_steps(tmp_path):
    for time_steps in (50, 100, 250, 4000):
        scheduler = build_scheduler(ModelConfig(time_steps=time_steps, rescale_betas=True))
        assert scheduler.terminal_signal < 0.01
        assert terminal_signal_warning(scheduler) is None
        scheduler.save_pretrained(tmp_path)
        stock = diffusers.DDPMScheduler.from_pretrained(tmp_path)
        assert_close(stock.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)
    with pytest.raises(ValueError, match="rescale_betas"):
        ModelConfig(time_steps=10, rescale_betas=True)
    cosine = ModelConfig(time_steps=10, rescale_betas=True, beta_schedule="cosine")
    assert build_scheduler(cosine).config.beta_end == 0.02


def test_build_scheduler():
    config = ModelConfig(time_steps=20, beta_schedule="cosine", prediction_type="v_prediction")
    scheduler = build_scheduler(config)
    assert scheduler.config.num_train_timesteps == 20
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.variance_type == "fixed_large"
    assert scheduler.config.clip_sample
