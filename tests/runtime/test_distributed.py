"""The processes of a launch: their cores, their turns, and that they work on the same."""

import os
import sys

import pytest
import torch
from accelerate import PartialState
from processes import TORCHRUN, free_port, run

from ddpm_hf.runtime import distributed as processes
from ddpm_hf.runtime.distributed import assert_same_across_ranks, main_process_first, use_all_cores
from ddpm_hf.runtime.errors import UserError


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


def gather_with(monkeypatch, other):
    """Have this process be one of two, the other of which goes by something."""
    monkeypatch.setattr(PartialState(), "num_processes", 2)
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, other])


def test_processes_that_go_by_the_same_are_left_alone(monkeypatch):
    what = {"seed": 3, "dataset": {"name": "cats", "revision": None}, "levels": [1, 2]}
    assert_same_across_ranks(what)
    gather_with(monkeypatch, {**what, "dataset": dict(what["dataset"])})
    assert_same_across_ranks(what)


def test_what_processes_differ_in_is_named(monkeypatch):
    gather_with(monkeypatch, {"seed": 3, "dataset": {"name": "cats", "revision": "b"}, "bits": 8})
    with pytest.raises(UserError) as caught:
        assert_same_across_ranks({"seed": 3, "dataset": {"name": "cats", "revision": "a"}})
    for part in ('dataset.revision is "a" or "b"', "bits is null or 8", "allowed: one configuration"):
        assert part in str(caught.value)
    assert "seed" not in str(caught.value)


def test_an_error_is_raised_when_all_have_had_their_turn(monkeypatch):
    order = []

    class Turns:
        def __enter__(self):
            order.append("turn")

        def __exit__(self, *_):
            order.append("next")

    def fail():
        order.append("load")
        raise UserError("no such network")

    monkeypatch.setattr(PartialState, "local_main_process_first", lambda self: Turns())
    with pytest.raises(UserError, match="no such network"):
        main_process_first(fail)
    assert order == ["turn", "load", "next"]
    assert main_process_first(lambda: 7) == 7


LEAVING = """
from datetime import timedelta
import torch
from accelerate import PartialState
from torch import distributed
from ddpm_hf.runtime.distributed import init_distributed

distributed.init_process_group("gloo")
store = distributed.distributed_c10d._get_default_store()
rank = distributed.get_rank()
distributed.destroy_process_group()
for round in range(200):
    distributed.init_process_group("gloo", store=distributed.PrefixStore(str(round), store), rank=rank, world_size=2)
    init_distributed(timedelta(minutes=1))
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    network(torch.ones(2, 4)).sum().backward()
    distributed.all_gather([torch.ones(1) for _ in range(2)], torch.ones(1))
    PartialState().destroy_process_group()
    PartialState._reset_state()
    del network
"""


@pytest.mark.slow
def test_processes_that_have_trained_together_leave(tmp_path):
    """PyTorch alone has them wait for themselves for ever, once in some hundred times."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    run(*TORCHRUN, free_port(), script, check=True)


PARTING = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch
from torch import distributed
from ddpm_hf.runtime import cli
from ddpm_hf.runtime.errors import UserError
from ddpm_hf.runtime.distributed import from_main_process, init_distributed

def main(arguments):
    state = init_distributed(timedelta(minutes=5))
    assert from_main_process(lambda: state.process_index) == 0
    try:
        from_main_process(lambda: 1 // state.process_index)
    except ZeroDivisionError:
        print("told of it")
    if arguments.mistake and state.is_main_process:
        distributed.all_reduce(torch.ones(4), async_op=True)  # as an update that fails half-way leaves it
        raise UserError("no such thing")
    if arguments.mistake:
        time.sleep(90)
        Path(arguments.mistake).touch()
    for _ in range(300):
        distributed.all_reduce(torch.ones(400_000), async_op=True)
    print("done")

parser = cli.Parser("Part.", prog="part.py")
parser.add_argument("--mistake")
cli.run(parser, main)
"""


@pytest.mark.slow
def test_processes_leave_whatever_they_still_have_under_way(tmp_path):
    """PyTorch aborts a process whose interpreter ends meanwhile, or has it wait for the others."""
    script, outlived = tmp_path / "part.py", tmp_path / "outlived"
    script.write_text(PARTING)
    done = run(*TORCHRUN, free_port(), script, check=True)
    assert (done.stdout.count("told of it"), done.stdout.count("done")) == (2, 2)
    done = run(*TORCHRUN, free_port(), script, "--mistake", outlived)
    assert done.returncode == 1
    assert "part.py: no such thing" in done.stderr
    assert "exitcode  : 2 " in done.stderr
    assert not outlived.exists()


ALONE = """
import sys
from datetime import timedelta
from ddpm_hf.runtime import distributed
from ddpm_hf.runtime.errors import RunError

distributed.MEETING = timedelta(seconds=1)
try:
    distributed.init_distributed(timedelta(days=1))
except RunError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("by_torchrun", ["True", "False"])
def test_a_process_whose_launch_was_killed_before_they_met_does_not_wait_as_long_as_later(rank, by_torchrun):
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    elastic = {"MASTER_PORT": free_port(), "TORCHELASTIC_USE_AGENT_STORE": by_torchrun}
    done = run(sys.executable, "-c", ALONE, env={**os.environ, **launch, **elastic})
    assert done.returncode == 7, done.stderr
    assert f"process {rank} of this launch has not met all of the 2" in done.stdout
