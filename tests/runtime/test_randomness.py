"""Randomness is a function of seed and position."""

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from ddpm_hf.runtime.randomness import derive_seed, draw_normal, generator_at, image_seeds


def test_positions_have_seeds_of_their_own():
    positions = [(seed, name, step) for seed in range(5) for name in ("noise", "order") for step in range(50)]
    seeds = {derive_seed(*position) for position in positions}
    assert len(seeds) == len(positions)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_name_and_a_number_do_not_run_together():
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(0, "a", 1) != derive_seed(0, "a1")


def test_a_position_always_draws_the_same():
    one, other = (torch.randn(5, generator=generator_at(3, "noise", 7)) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    # a change of the formula would break every resumed run: it must be made knowingly
    assert derive_seed(0, "noise", 0) == 4559201308458492164


def test_an_image_keeps_its_seed_in_any_selection():
    assert image_seeds(0, [5, 2]) == [image_seeds(0, range(6))[index] for index in (5, 2)]


def one_each():
    return [generator_at(0, "image", index) for index in range(3)]


@pytest.mark.parametrize("shape", [(3, 1, 2, 2), (3, 3, 8, 8), (3, 1, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [one_each, lambda: one_each()[0], lambda: one_each()[:1], lambda: None])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
def test_noise_is_diffusers_own(device, make, dtype, shape):
    drawn, generators = [], make()
    torch.manual_seed(0)
    for _ in range(4):  # a copy may still be under way when the next are drawn
        drawn.append(draw_normal(shape, generators, torch.device(device), dtype))
    generators = make()
    torch.manual_seed(0)
    for noise in drawn:
        assert torch.equal(noise, randn_tensor(shape, generators, torch.device(device), dtype))


def test_noise_needs_a_generator_for_each_row():
    with pytest.raises(ValueError, match="argument"):
        draw_normal((4, 1, 2, 2), one_each(), torch.device("cpu"))
