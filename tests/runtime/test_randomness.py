"""Randomness is a function of seed and position."""

import torch

from ddpm_hf.runtime.randomness import derive_seed, generator_at, image_seeds


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
