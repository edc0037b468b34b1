"""The contestants of benchmarks/digits_goal.py, at tiny size."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.optimization import get_scheduler

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def goal(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("digits_goal")


def row(contestant, seed, ratio, memorized=0.0):
    figures = {"ratio": ratio, "memorized": memorized, "parameters": 1000, "steps": 10}
    return {"contestant": contestant, "seed": seed, "seconds": 1.0, "num_inference_steps": 50, "date": "", **figures}


@pytest.mark.slow
@pytest.mark.parametrize("contestant", ["ours", "parts, tuned", "script, narrow"])
def test_a_contestant_trains_and_draws_digits(goal, contestant):
    pipeline, steps = goal.CONTESTANTS[contestant](0, 0.05)
    images = goal.sample(pipeline, 3, 2)
    assert steps >= 1
    assert images.shape == (3, 1, 8, 8)
    assert images.dtype == torch.uint8


def test_the_scripts_learning_rate_is_diffusers_cosine(goal):
    def optimizer():
        return torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)

    network = torch.nn.Linear(1, 1)
    script = goal.Script(network, [{"input": torch.zeros(1)}], batch_size=1, warm_up=3)
    script.num_steps = 12
    theirs = get_scheduler("cosine", optimizer(), num_warmup_steps=3, num_training_steps=12)
    for _ in range(12):
        assert script.optimizer.param_groups[0]["lr"] == pytest.approx(theirs.get_last_lr()[0])
        script.optimizer.step()
        script.rates.step()
        theirs.optimizer.step()
        theirs.step()


def test_time_is_spent_and_the_number_of_updates_guessed(goal, monkeypatch):
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr("equal_time.time", SimpleNamespace(process_time=lambda: next(clock)))
    guesses = []
    steps = goal.spend(50, lambda step, num_steps: guesses.append((step, num_steps)))
    assert steps == 50
    assert [step for step, _ in guesses] == list(range(50))
    assert guesses[20][1] == 10_000  # too early to tell
    assert {num_steps for _, num_steps in guesses[21:]} == {50}


def test_marks_are_met_or_missed(goal):
    rows = [row("ours", seed, ratio) for seed, ratio in enumerate((1.0, 1.2))]
    rows += [row("script", 0, 4.4), row("parts, tuned", 0, 1.1)]
    reached = [(value, limit) for _, value, limit in goal.marks(rows, real=0.02)]
    assert reached == [
        (pytest.approx(1.1), 1.2),
        (0.0, 0.02),
        (pytest.approx(0.25), 0.5),
        (pytest.approx(1.0), 0.8),
    ]
    text = goal.table(rows, 1.0, 1.5, real=0.02, num_real=100)
    assert text.count("| met |") == 3
    assert text.count("**missed**") == 1
    assert "2 of 100 held-out digits look memorised (2.0%" in text
    assert f"1.10 ± {math.sqrt(0.02):.2f}" in text


def test_copies_of_training_images_are_seen(goal, tmp_path):
    judge = SimpleNamespace(features=lambda images: images.flatten(1).float())
    memory = goal.Memory(judge, tmp_path)
    assert memory.rate("copies", goal.digits(goal.DIGITS.train)[:5]) == 1
    assert memory.real < 0.1
