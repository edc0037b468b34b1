"""Both fixed variances by the number of steps: benchmarks/variances.py on a tiny model."""

import importlib
from pathlib import Path

import pytest

from ddpm_hf.models import build_network
from ddpm_hf.pipelines import DDPMPipeline
from ddpm_hf.schedulers import build_scheduler


@pytest.mark.slow
def test_every_variance_with_every_number_of_steps(tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    variances = importlib.import_module("variances")
    monkeypatch.setattr(variances, "NUM_SAMPLES", 80)
    config = tiny().model
    folder = tmp_path / "model"
    DDPMPipeline(build_network(config), build_scheduler(config)).save_pretrained(folder)
    rows = variances.measure([str(folder)] * 2, [2, 5])
    assert [(row["num_inference_steps"], row["variance"]) for row in rows] == [
        (steps, variance) for steps in (2, 5) for variance in ("fixed_small", "fixed_large")
    ]
    assert all(row["ratios"][0] == row["ratios"][1] > 1 for row in rows)  # the same model and seeds
    assert rows[0]["ratios"] != rows[1]["ratios"]
    told = variances.table({"rows": rows, "torch": "2", "cores": 2, "date": "2026-11-25"})
    assert told.count(" ± 0.00") == 4
