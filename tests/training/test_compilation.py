"""A run is compiled where that wins back its warm-up, and goes on as it began."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from ddpm_hf.config import load_config
from ddpm_hf.training.compilation import WARM_UP_SECONDS, is_compiled, seconds_saved

CIFAR10 = load_config(Path(__file__).parents[2] / "configs" / "cifar10.yaml")


def test_the_saving_is_the_measured_one_and_grows_with_the_images_of_a_process():
    saved = seconds_saved(CIFAR10, 6000, 1)
    assert saved == pytest.approx(6000 * (41.0e-3 - 24.9e-3), rel=0.1)  # benchmarks/results/gpu_graphs.md
    assert seconds_saved(CIFAR10, 3000, 1) == pytest.approx(saved / 2)
    assert seconds_saved(CIFAR10, 6000, 2) == pytest.approx(saved / 2)


@pytest.mark.parametrize(
    ("device", "more", "num_steps", "expected"),
    [
        ("cuda", {}, 800_000, True),
        ("cuda", {}, 1_000, False),
        ("cpu", {}, 800_000, False),
        ("cuda", {"is_fsdp2": True}, 800_000, False),
        ("cuda", {"scaler": object()}, 800_000, False),
    ],
    ids=["long", "short", "no GPU", "shards", "fp16"],
)
def test_a_run_is_compiled_where_that_wins_back_its_warm_up(device, more, num_steps, expected, monkeypatch):
    accelerator = Accelerator(cpu=True)
    for name, value in {"device": torch.device(device), "scaler": None, **more}.items():
        monkeypatch.setattr(Accelerator, name, value, raising=False)
        accelerator.__dict__.pop(name, None)
    assert WARM_UP_SECONDS > 0
    assert CIFAR10.training.compile == "auto"
    assert is_compiled(CIFAR10, accelerator, num_steps) == expected


@pytest.mark.parametrize("choice", [True, False])
def test_a_choice_is_kept(choice):
    training = CIFAR10.training.model_copy(update={"compile": choice})
    assert is_compiled(CIFAR10.model_copy(update={"training": training}), Accelerator(cpu=True), 800_000) == choice
