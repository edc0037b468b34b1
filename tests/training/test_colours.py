"""Colours that drift are reported; those that differ by chance are not."""

import re

import torch

from ddpm_hf.training.previews import Colours


def images(count: int, shift: tuple[float, float, float] = (0, 0, 0), seed: int = 0) -> torch.Tensor:
    """Images whose means differ among each other."""
    generator = torch.Generator().manual_seed(seed)
    base = 100 + 40 * torch.randn(count, 1, 1, 1, generator=generator)
    pixels = base + 20 * torch.randn(count, 3, 8, 8, generator=generator) + torch.tensor(shift).view(3, 1, 1)
    return pixels.clamp(0, 255).to(torch.uint8)


def test_figures_are_those_of_torch():
    given = images(50)
    values = given.double() / 127.5 - 1
    colours = Colours.of(given)
    torch.testing.assert_close(torch.tensor(colours.mean).double(), values.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(colours.std).double(), values.std((0, 2, 3), correction=0), rtol=1e-6, atol=1e-6
    )


def test_the_same_kind_of_images_does_not_drift():
    real = Colours.of(images(2000))
    for count in (4, 16, 64):
        for seed in range(1, 30):
            assert Colours.of(images(count, seed=seed)).drift_from(real) is None


def test_casts_that_cancel_in_the_mean_are_told():
    """Half of the images are much too red, the other half too little."""
    halves = [images(32, shift=(shift, 0, 0), seed=1) for shift in (60, -60)]
    drift = Colours.of(torch.cat(halves)).drift_from(Colours.of(images(2000)))
    assert drift is not None
    assert re.fullmatch(r"red ±0\.\d\d from image to image instead of ±0\.32", drift)


def test_a_cast_is_told_by_channel():
    cast = Colours.of(images(64, shift=(60, 0, 0), seed=1)).drift_from(Colours.of(images(2000)))
    assert cast is not None
    assert cast.startswith("red ")
    assert "green" not in cast


def test_gray_images_have_one_channel():
    gray = images(64)[:, :1]
    drift = Colours.of(255 - gray).drift_from(Colours.of(gray))
    assert drift is not None
    assert drift.startswith("gray ")
