import math

import pytest
import torch

from ddpm_hf.evaluation import baselines
from ddpm_hf.evaluation.baselines import histogram_bits, unrelated_pairs


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
    monkeypatch.setattr(baselines, "MAX_BINS", 256 * 5)
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
