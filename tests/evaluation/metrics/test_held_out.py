import math

import pytest
import torch

from ddpm_hf.config.benchmark import BenchmarkMetrics
from ddpm_hf.data import ImageSet
from ddpm_hf.evaluation.feature_store import cached_tensors
from ddpm_hf.evaluation.metrics import held_out
from ddpm_hf.evaluation.metrics.held_out import (
    HeldOut,
    ddim_range,
    histogram_bits,
    measure_baselines,
    noised,
    psnr,
    reconstruct,
    reconstruction_methods,
    ssim,
    unrelated_pairs,
)
from ddpm_hf.pipelines.editing import MIN_SIGNAL

IMAGES = torch.randint(20, 236, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
HELD_OUT = HeldOut(IMAGES, None, torch.arange(0))


def test_equal_images_have_ssim_one_and_infinite_psnr():
    assert ssim(IMAGES, IMAGES).allclose(torch.ones(5).double())
    assert psnr(IMAGES, IMAGES).isinf().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_psnr_of_a_constant_error_has_a_closed_form(channels):
    images = IMAGES.expand(-1, channels, -1, -1)
    assert psnr(images + 10, images).allclose(torch.tensor(20 * math.log10(255 / 10)).double())


def test_ssim_is_symmetric_and_below_one():
    other = 255 - IMAGES
    assert ssim(other, IMAGES).allclose(ssim(IMAGES, other))
    assert (ssim(other, IMAGES) < 0.5).all()


def test_ssim_of_flat_images_has_a_closed_form():
    # no variance: only the luminance term is left, with (0.01 * range)^2
    a, b, c = 100 / 255, 150 / 255, 0.01**2
    one, other = torch.full_like(IMAGES, 100), torch.full_like(IMAGES, 150)
    assert ssim(one, other).allclose(torch.tensor((2 * a * b + c) / (a * a + b * b + c)).double(), atol=1e-6)


def test_reconstructions_do_not_depend_on_the_batch(make_pipeline):
    pipeline = make_pipeline()
    methods = reconstruction_methods(pipeline, 5, (0.2, 0.5), 10)
    at_once = reconstruct(pipeline, HELD_OUT, methods, 0, batch_size=5)
    in_parts = reconstruct(pipeline, HELD_OUT, methods, 0, batch_size=2)
    assert [each.timestep for each in methods] == [1, 4, ddim_range(pipeline, 10)[0]]
    assert [each.num_inference_steps for each in methods[:2]] == [2, 5]
    assert at_once.keys() == in_parts.keys() == {"0", "1", "2"}
    for name, images in at_once.items():
        assert images.dtype == torch.uint8
        assert (images.int() - in_parts[name].int()).abs().max() <= 1


def test_ddim_stops_where_a_little_of_the_image_is_left(make_pipeline):
    pipeline = make_pipeline(time_steps=1000)
    top, steps = ddim_range(pipeline, 1000)
    signal = pipeline.scheduler.alphas_cumprod.sqrt()
    assert signal[top] >= MIN_SIGNAL > signal[top + 1]
    assert steps == 100


def test_the_noised_image_is_worse_the_later(make_pipeline):
    pipeline = make_pipeline()
    scores = [float(psnr(noised(pipeline, IMAGES, t, 0), IMAGES).mean()) for t in (0, 4, 8)]
    assert scores == sorted(scores, reverse=True)


def test_reconstructions_are_computed_once_and_again_where_they_are_damaged(make_pipeline, tmp_path):
    pipeline, file, calls = make_pipeline(), tmp_path / "reconstructions.safetensors", []

    def compute():
        calls.append(1)
        return reconstruct(pipeline, HELD_OUT, reconstruction_methods(pipeline, 5, (0.2,), 10), 0, batch_size=5)

    first, again = (cached_tensors(file, compute) for _ in range(2))
    assert len(calls) == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(images, again[name]) for name, images in first.items())
    file.write_bytes(file.read_bytes()[:100])
    cached_tensors(file, compute)
    assert len(calls) == 2


def test_held_out_images_are_the_same_ones_for_every_model():
    images = ImageSet(noise(20), torch.arange(20), None)
    one, other = HeldOut.choose(images, 6, conditional=True), HeldOut.choose(images, 6, conditional=False)
    assert torch.equal(one.images, other.images)
    assert (other.labels, len(one.others)) == (None, 14)
    assert torch.equal(images.images[one.labels], one.images)
    assert not set(one.labels) & set(one.others.tolist())


def test_only_the_wanted_baselines_are_measured():
    given = HeldOut(noise(6), None, torch.arange(0))
    wanted = BenchmarkMetrics(ssim=False)
    assert [each.name for each in measure_baselines(given, noise(50), wanted)] == ["PSNR", "bits/dim", "bits/dim"]
    assert [each.value for each in measure_baselines(given, noise(0), BenchmarkMetrics(ssim=False, psnr=False))] == [8]


def noise(count: int, levels: int = 256, side: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, levels, (count, 1, side, side), dtype=torch.uint8, generator=generator)


def test_equal_images_cost_what_the_one_image_of_all_levels_leaves():
    image = noise(1)
    for count in (1, 10, 1000):
        bits = histogram_bits(image.expand(count, -1, -1, -1), image)
        assert float(bits) == pytest.approx(-math.log2((count + 1 / 256) / (count + 1)))


def test_a_level_that_was_never_seen_costs_eight_bits_and_the_doubt():
    bits = histogram_bits(torch.zeros(1023, 1, 8, 8, dtype=torch.uint8), torch.ones(3, 1, 8, 8, dtype=torch.uint8))
    assert bits.tolist() == pytest.approx([8 + math.log2(1024)] * 3)


@pytest.mark.parametrize("bits", [1, 3])
def test_independent_levels_cost_their_entropy(bits):
    assert float(histogram_bits(noise(4000, 2**bits), noise(500, 2**bits)).mean()) == pytest.approx(bits, abs=0.01)


def test_each_pixel_has_a_histogram_of_its_own_however_they_are_counted(monkeypatch):
    training, images = noise(700, 16), noise(20, 16)
    training[:, :, 0] = images[:, :, 0] = 200
    at_once = histogram_bits(training, images)
    monkeypatch.setattr(held_out, "MAX_BINS", 256 * 5)
    assert torch.allclose(histogram_bits(training, images), at_once, atol=1e-12)
    assert at_once.mean() == pytest.approx(4 * 7 / 8, abs=0.1)


def test_unrelated_images_have_little_in_common():
    found = unrelated_pairs(noise(200))
    assert abs(found["ssim"]) < 0.1
    # the mean squared difference of two uniform numbers is a sixth of their range squared
    assert found["psnr"] == pytest.approx(10 * math.log10(6), abs=0.2)


def test_what_cannot_be_had_is_left_out():
    assert unrelated_pairs(noise(1)) == {}
    assert unrelated_pairs(noise(4, side=4)).keys() == {"psnr"}
    assert "psnr" not in unrelated_pairs(noise(1).expand(3, -1, -1, -1)), "the same image twice"
