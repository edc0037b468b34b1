"""The launch configurations of configs/accelerate, each started as a person would, on the processor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import LAUNCH, REPOSITORY, TRAIN, free_port, losses, run, state

pytestmark = pytest.mark.slow

OPTIONS = ["model_config.dropout=0", "logging.log_every=1", "training.ema_extra_decays=[0.9]"]

# accelerate cuts networks on GPUs only; gloo can do all that is needed for it
TAKE_PROCESSES_FOR_GPUS = """
import runpy, sys
from accelerate import DistributedType, PartialState

original = PartialState.__init__

def pretend(self, *args, **kwargs):
    original(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

PartialState.__init__ = pretend
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program in front of training/train.py with which its processes are taken for GPUs."""
    file = tmp_path / "as_gpus.py"
    file.write_text(TAKE_PROCESSES_FOR_GPUS)
    return file


def launcher(configuration: str, *options: object) -> list[object]:
    file = REPOSITORY / "configs" / "accelerate" / f"{configuration}.yaml"
    return [*LAUNCH, "--config_file", file, "--main_process_port", free_port(), *options]


def train(start: list[object], yaml: Path, folder: Path, *options: object) -> Path:
    done = run(*start, TRAIN, "--config", yaml, f"output_dir={folder}", *OPTIONS, *options)
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(one: Path, other: Path) -> None:
    told = losses(other)  # of a resumed run, only its own
    assert told == pytest.approx(losses(one)[-len(told) :], rel=1e-5)
    torch.testing.assert_close(state(other), state(one), rtol=1e-3, atol=1e-5)


def test_processes_of_one_machine_and_of_two_train_as_one(tiny_yaml, tmp_path):
    one = train([sys.executable], tiny_yaml, tmp_path / "one")
    assert_same(one, train(launcher("gpus", "--num_processes", 2), tiny_yaml, tmp_path / "gpus"))
    nodes = [*launcher("nodes", "--num_processes", 2), "--main_process_ip", "127.0.0.1", "--machine_rank"]
    words = ["--config", tiny_yaml, f"output_dir={tmp_path / 'nodes'}", *OPTIONS]
    second = subprocess.Popen([str(word) for word in [*nodes, 1, TRAIN, *words]])
    assert_same(one, train([*nodes, 0], tiny_yaml, tmp_path / "nodes"))
    assert second.wait() == 0


@pytest.mark.parametrize("configuration", ["fsdp2", "zero2"])
def test_a_network_in_shards_trains_as_a_whole_one(tiny_yaml, tmp_path, program, configuration):
    sharded = launcher(configuration, "--num_processes", 2, program)
    more = ["training.gradient_accumulation_steps=2", "training.max_grad_norm=0.5"]
    whole = train([sys.executable], tiny_yaml, tmp_path / "whole", *more)
    cut = train(sharded, tiny_yaml, tmp_path / "cut", *more)
    assert_same(whole, cut)
    # and either goes on from the other's checkpoint
    step_4 = ["--resume", cut / "checkpoints" / "step-4"]
    assert_same(cut, train([sys.executable], tiny_yaml, tmp_path / "whole again", *more, *step_4))
    assert_same(cut, train(sharded, tiny_yaml, tmp_path / "cut again", *more, *step_4))


def test_shards_take_part_in_what_saves_memory_and_looks_at_the_run(tiny_yaml, tmp_path, program):
    options = [
        "training.mixed_precision=bf16",
        "training.gradient_checkpointing=true",
        "training.validate_every=2",
        "training.evaluate_every=4",
        "training.num_evaluation_samples=80",
        "training.keep_best_by=validation_loss",
        "dataset.validation_fraction=0.1",
        "benchmark.features=digits",
    ]
    sharded = launcher("fsdp2", "--num_processes", 2, program)
    cut = train(sharded, tiny_yaml, tmp_path / "cut", *options)
    whole = train([sys.executable], tiny_yaml, tmp_path / "whole", *options)
    assert losses(cut) == pytest.approx(losses(whole), rel=0.02)  # bfloat16


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("loss_config.adversarial.weight=0.1", "loss_config.adversarial.weight: given 0.1, with accelerate's FSDP"),
        ("training.fit_memory=true", "training.fit_memory: given True, with accelerate's FSDP; allowed: false"),
        ("training.num_steps=6", "accelerate's FSDP: given, with 2 processes on cpu"),
    ],
)
def test_what_shards_do_not_allow_is_refused(tiny_yaml, tmp_path, option, message):
    words = [TRAIN, "--config", tiny_yaml, f"output_dir={tmp_path / 'run'}", option]
    done = run(*launcher("fsdp2", "--num_processes", 2), *words)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
