"""docs/scaling.md: its tables follow from the code, its commands name files that are there, checkpoints weigh that."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from ddpm_hf.training.trainer import Trainer

REPOSITORY = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("scaling_table", REPOSITORY / "docs" / "scaling_table.py")
scaling_table = importlib.util.module_from_spec(SPEC)
sys.modules["scaling_table"] = scaling_table
SPEC.loader.exec_module(scaling_table)

TEXT = scaling_table.PAGE.read_text(encoding="utf-8")


def test_tables_are_current():
    assert scaling_table.renew(TEXT) == TEXT, "write them anew with: make docs"


def test_an_image_of_cifar10_costs_what_the_paper_s_network_does():
    recipe = scaling_table.RECIPES[0]
    assert recipe.num_parameters == 35_746_307
    assert recipe.operations == pytest.approx(36e9, rel=0.05)
    assert recipe.num_operators == pytest.approx(1350, rel=0.01)
    assert "has about 1,350 of them" in TEXT


def test_an_update_computes_for_as_long_as_its_operators_take_and_then_exchanges():
    cost = scaling_table.Cost
    assert cost(compute=3.0, shortest=1.0, exchange=2.0).step == 5.0
    assert cost(compute=1.0, shortest=3.0, exchange=0.0).step == 3.0
    assert scaling_table.traffic(1_000, 1) == 0
    assert scaling_table.traffic(1_000, 2) == 4_000


def test_checkpoints_weigh_16_bytes_per_parameter(tiny):
    config = tiny("training.num_steps=1", "training.preview_every=null", "training.preview_inference_steps=1")
    trainer = Trainer(config)
    trainer.train()
    (checkpoint,) = trainer.run_folder.checkpoints.glob("step-1")
    values = 0
    for file in checkpoint.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            values += sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
    num_parameters = sum(parameter.numel() for parameter in trainer.state.parameters)
    assert 4 * values == pytest.approx(16 * num_parameters, rel=0.02)


def test_files_of_the_commands_are_there():
    files = set(re.findall(r"(?:configs|training|benchmarks|docs)/[\w/]+\.(?:yaml|py|md)", TEXT))
    assert {"configs/accelerate/nodes.yaml", "training/train.py"} <= files
    assert not [file for file in files if not (REPOSITORY / file).is_file()]
