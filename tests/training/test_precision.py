"""What the arithmetic is settled to, and the threads that a launcher takes away."""

import pytest
import torch

from ddpm_hf.errors import UserError
from ddpm_hf.training.precision import choose_precision, use_all_cores

CPU = torch.device("cpu")


def test_auto_is_what_the_processor_multiplies_natively():
    assert choose_precision("auto", CPU) == ("bf16" if torch.cpu._is_avx512_bf16_supported() else "no")
    assert choose_precision("auto", torch.device("mps")) == "no"
    assert choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="needs a GPU"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}, 8),
        ({"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4),
        ({"LOCAL_WORLD_SIZE": "20", "OMP_NUM_THREADS": "1"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "3"}, None),
        ({"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_cores_that_a_launcher_leaves_idle_are_used(monkeypatch, environment, expected):
    chosen = []
    for name in ("ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    use_all_cores()
    assert chosen == ([] if expected is None else [expected])
