import math

import pytest
import torch

from ddpm_hf.evaluation.reconstruction import ddim_range, noised, psnr, reconstruct_all, ssim
from ddpm_hf.pipelines.editing import MIN_SIGNAL

IMAGES = torch.randint(20, 236, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


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
    at_once = reconstruct_all(pipeline, IMAGES, None, (0.2, 0.5), 10, 0, batch_size=5)
    in_parts = reconstruct_all(pipeline, IMAGES, None, (0.2, 0.5), 10, 0, batch_size=2)
    assert [each.timestep for each in at_once] == [1, 4, ddim_range(pipeline, 10)[0]]
    assert [each.num_inference_steps for each in at_once[:2]] == [2, 5]
    for one, other in zip(at_once, in_parts, strict=True):
        assert one.images.dtype == torch.uint8
        assert (one.images.int() - other.images.int()).abs().max() <= 1


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
