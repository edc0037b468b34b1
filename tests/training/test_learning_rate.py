"""The learning rate is what its formula says at every update."""

import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from ddpm_hf.config import LearningRateConfig
from ddpm_hf.training.learning_rate import learning_rate

PEAK, FLOOR = 2e-3, 1e-6
TYPES = ["cosine", "linear", "exponential", "step", "constant"]


def rates(kind: str, num_steps: int = 101, warmup: int = 0, **options) -> list[float]:
    schedule = LearningRateConfig(type=kind, warmup_steps=warmup, min_lr=FLOOR, **options)
    return [learning_rate(step, num_steps, PEAK, schedule) for step in range(num_steps)]


@pytest.mark.parametrize("kind", TYPES)
def test_the_warm_up_is_a_straight_line_to_the_peak(kind):
    warm = rates(kind, warmup=10)
    assert warm[:10] == pytest.approx([PEAK * (step + 1) / 10 for step in range(10)])
    assert warm[10] == pytest.approx(PEAK)


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential"])
def test_it_arrives_at_the_floor_with_the_last_update(kind):
    assert rates(kind, warmup=10)[-1] == pytest.approx(FLOOR)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("warmup", [20, 21, 80])
def test_a_run_no_longer_than_its_warm_up_ends_on_the_way_up(kind, warmup):
    assert rates(kind, num_steps=20, warmup=warmup)[-1] == pytest.approx(PEAK * 20 / warmup)


@pytest.mark.parametrize("kind", ["cosine", "linear", "exponential"])
def test_a_single_update_after_the_warm_up_is_at_the_peak(kind):
    assert rates(kind, num_steps=20, warmup=19)[-2:] == pytest.approx([PEAK, PEAK])


def test_the_middle_of_each_shape():
    assert rates("cosine")[50] == pytest.approx((PEAK + FLOOR) / 2)
    assert rates("linear")[50] == pytest.approx((PEAK + FLOOR) / 2)
    assert rates("exponential")[50] == pytest.approx(math.sqrt(PEAK * FLOOR))
    assert rates("constant")[50] == PEAK


def test_steps_are_torchs_step_lr():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.5)
    expected = []
    for _ in range(50):
        expected.append(max(FLOOR, theirs.get_last_lr()[0]))
        optimizer.step()
        theirs.step()
    assert rates("step", 50, step_size=7, step_factor=0.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("cosine", lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=FLOOR)),
        ("linear", lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, FLOOR / PEAK, total_iters=100)),
        ("exponential", lambda optimizer: lr_scheduler.ExponentialLR(optimizer, (FLOOR / PEAK) ** (1 / 100))),
        ("constant", lambda optimizer: get_scheduler("constant", optimizer)),
    ],
    ids=TYPES[:3] + TYPES[4:],
)
def test_shapes_are_those_of_torch_and_diffusers(kind, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler, expected = theirs(optimizer), []
    for _ in range(101):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(kind) == pytest.approx(expected, rel=1e-6)


@settings(deadline=None)
@given(st.sampled_from(TYPES), st.integers(1, 50), st.integers(0, 60))
def test_it_is_never_above_the_peak_nor_falls_below_the_floor_after_the_warm_up(kind, num_steps, warmup):
    for step, rate in enumerate(rates(kind, num_steps, warmup)):
        assert rate <= PEAK * (1 + 1e-12)
        assert step < warmup or rate >= FLOOR * (1 - 1e-12)
