"""Timestep samplers: what they draw, that they are unbiased, and that they go on exactly where they stopped."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_hf.losses import make_timestep_sampler
from ddpm_hf.losses.timesteps import NUM_REMEMBERED, SAMPLERS
from ddpm_hf.runtime.randomness import generator_at

T = 40
KINDS = list(SAMPLERS)


def warmed_up(num_timesteps: int = T):
    """An importance sampler that has seen losses of very different sizes, noisy as real ones are."""
    sampler = make_timestep_sampler("importance", num_timesteps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(NUM_REMEMBERED):
        losses = true_loss(torch.arange(num_timesteps)) * torch.rand(num_timesteps, generator=generator)
        sampler.update(torch.arange(num_timesteps), losses)
    return sampler


def true_loss(timesteps: torch.Tensor) -> torch.Tensor:
    return 3.0 / (1 + timesteps) + 0.05


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(num_timesteps=st.integers(1, 1200), batch_size=st.integers(1, 300), seed=st.integers(0, 2**63 - 1))
def test_draws_are_timesteps_and_a_function_of_seed_and_step(
    kind: str, num_timesteps: int, batch_size: int, seed: int
) -> None:
    sampler = make_timestep_sampler(kind, num_timesteps)
    timesteps, weights = sampler.sample(batch_size, generator_at(seed, "timesteps", 7))
    again, weights_again = make_timestep_sampler(kind, num_timesteps).sample(
        batch_size, generator_at(seed, "timesteps", 7)
    )
    assert torch.equal(timesteps, again)
    assert torch.equal(weights, weights_again)
    assert timesteps.shape == weights.shape == (batch_size,)
    assert timesteps.min() >= 0
    assert timesteps.max() < num_timesteps
    assert torch.allclose(weights, torch.ones(batch_size))  # nothing learnt yet


@settings(max_examples=50, deadline=None)
@given(num_strata=st.integers(1, 200), width=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_stratified_takes_one_timestep_from_each_stratum(num_strata: int, width: int, seed: int) -> None:
    sampler = make_timestep_sampler("stratified", num_strata * width)
    timesteps, _ = sampler.sample(num_strata, torch.Generator().manual_seed(seed))
    assert torch.equal((timesteps // width).sort().values, torch.arange(num_strata))


@pytest.mark.parametrize("batch_size", [7, 40, 100])
@pytest.mark.parametrize("kind", ["uniform", "stratified"])
def test_every_place_of_the_batch_sees_every_timestep_equally_often(kind: str, batch_size: int) -> None:
    sampler, generator = make_timestep_sampler(kind, T), torch.Generator().manual_seed(0)
    num_draws = 4000
    draws = torch.stack([sampler.sample(batch_size, generator)[0] for _ in range(num_draws)])
    for place in (0, batch_size // 2, batch_size - 1):
        frequency = torch.bincount(draws[:, place], minlength=T) / num_draws
        standard_error = (1 / T * (1 - 1 / T) / num_draws) ** 0.5
        assert (frequency - 1 / T).abs().max() < 4.5 * standard_error  # the largest of 40


def test_stratified_estimates_the_mean_with_less_noise() -> None:
    generator = torch.Generator().manual_seed(0)

    def spread(kind: str) -> float:
        sampler = make_timestep_sampler(kind, T)
        return torch.stack([true_loss(sampler.sample(16, generator)[0]).mean() for _ in range(500)]).std().item()

    assert spread("stratified") < 0.5 * spread("uniform")


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_mean_is_unbiased(kind: str) -> None:
    sampler = warmed_up() if kind == "importance" else make_timestep_sampler(kind, T)
    timesteps, weights = sampler.sample(200_000, torch.Generator().manual_seed(0))
    values = weights * true_loss(timesteps)
    standard_error = values.std() / len(values) ** 0.5
    assert (values.mean() - true_loss(torch.arange(T)).mean()).abs() < 4 * standard_error
    assert (weights.mean() - 1).abs() < 4 * weights.std() / len(values) ** 0.5 + 1e-6


def test_importance_follows_the_root_mean_square_of_recent_losses() -> None:
    sampler = make_timestep_sampler("importance", 3)
    for old in (50.0, 50.0):  # forgotten by the end
        sampler.update(torch.tensor([0, 1, 2]), torch.full((3,), old))
    for nth in range(NUM_REMEMBERED):
        sampler.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0 + (-1) ** nth, 0.0]))
    size = torch.tensor([1.0, 5**0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(sampler.probabilities(), 0.999 * size / size.sum() + 0.001 / 3)


def test_importance_has_less_noise_than_uniform() -> None:
    timesteps, weights = warmed_up().sample(50_000, torch.Generator().manual_seed(0))
    uniform, _ = make_timestep_sampler("uniform", T).sample(50_000, torch.Generator().manual_seed(0))
    assert (weights * true_loss(timesteps)).std() < 0.5 * true_loss(uniform).std()


def test_importance_is_uniform_until_every_timestep_has_its_history() -> None:
    sampler = make_timestep_sampler("importance", T)
    for _ in range(NUM_REMEMBERED):
        assert torch.equal(sampler.probabilities(), torch.full((T,), 1 / T, dtype=torch.float64))
        sampler.update(torch.arange(T - 1), true_loss(torch.arange(T - 1)))
    sampler.update(torch.full((NUM_REMEMBERED,), T - 1), torch.full((NUM_REMEMBERED,), 0.05))
    assert sampler.probabilities()[0] > 10 * sampler.probabilities()[-1]


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=6), seed=st.integers(0, 2**31))
def test_importance_remembers_the_last_losses_of_each_timestep(batches: list[list[int]], seed: int) -> None:
    sampler, generator = make_timestep_sampler("importance", 4), torch.Generator().manual_seed(seed)
    history: dict[int, list[float]] = {t: [] for t in range(4)}
    for batch in batches:
        losses = torch.rand(len(batch), generator=generator) + 0.01  # 0 is what was not seen
        sampler.update(torch.tensor(batch, dtype=torch.int64), losses)
        for t, loss in zip(batch, losses.tolist(), strict=True):
            history[t].append(loss)
    state = sampler.state_dict()
    for t, seen in history.items():
        remembered = sorted(value for value in state["losses"][t].tolist() if value)
        assert remembered == sorted(seen[-NUM_REMEMBERED:])
        assert state["num_seen"][t] == len(seen)


def test_losses_that_are_not_finite_teach_nothing() -> None:
    sampler = warmed_up()
    before = sampler.probabilities()
    sampler.update(torch.tensor([3, 4]), torch.tensor([float("nan"), float("inf")]))
    assert torch.equal(sampler.probabilities(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_on_where_it_stopped(kind: str) -> None:
    sampler = warmed_up() if kind == "importance" else make_timestep_sampler(kind, T)
    resumed = make_timestep_sampler(kind, T)
    resumed.load_state_dict(sampler.state_dict())
    for step in range(3):
        draws = [each.sample(64, generator_at(0, "timesteps", step)) for each in (sampler, resumed)]
        for mine, other in zip(*draws, strict=True):
            assert torch.equal(mine, other)
        for each in (sampler, resumed):
            each.update(draws[0][0], true_loss(draws[0][0]) + step)


def test_state_is_plain_tensors_and_its_own_copy() -> None:
    sampler = warmed_up()
    state = sampler.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    sampler.update(torch.arange(T), torch.ones(T))
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize(("kind", "other"), [("importance", "uniform"), ("uniform", "importance")])
def test_state_of_another_sampler_is_refused(kind: str, other: str) -> None:
    with pytest.raises(ValueError, match="timestep sampler"):
        make_timestep_sampler(kind, T).load_state_dict(make_timestep_sampler(other, T).state_dict())
    with pytest.raises(ValueError, match="timestep sampler"):
        make_timestep_sampler("importance", T).load_state_dict(make_timestep_sampler("importance", 3).state_dict())


def test_only_the_importance_sampler_needs_losses() -> None:
    assert [kind for kind in KINDS if make_timestep_sampler(kind, T).needs_losses] == ["importance"]
