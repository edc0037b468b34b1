"""The processes of a launch: how they meet, take turns and see to it that they work on the same."""

import atexit
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ddpm_hf.runtime.errors import UserError

Thing = TypeVar("Thing")

_kept: list[Any] = []
"""The groups that processes have met in. Where DistributedDataParallel is the last to hold one, which accelerate has
taken leave of by then, it ends it with Python's lock in hand; the group's own thread may be waiting for that lock, and
then neither goes on: one in some hundred runs never left. Python's own handle lets go of the lock first."""
atexit.register(_kept.clear)


def meet(timeout: timedelta) -> PartialState:
    """Join the other processes of a launch, if there are any; each has its device, or its cores, from here on.

    accelerate by itself would have them alone on processors: it asks for no backend there.

    Args:
        timeout: how long they wait for each other.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if on_cpu:
        use_all_cores()
    _meet_again("gloo" if on_cpu else "nccl", timeout)
    state = PartialState(cpu=on_cpu, timeout=timeout)
    if state.num_processes > 1:
        _kept.append(torch.distributed.group.WORLD)
    return state


def use_all_cores() -> None:
    """Share the cores between the processes of this machine, where a launcher gave each process a single thread.

    `accelerate launch` and torchrun set OMP_NUM_THREADS to 1 unless it is set, which leaves all other cores idle. A
    number of threads above 1 is left alone.
    """
    is_launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if is_launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def main_process_first(load: Callable[[], Thing]) -> Thing:
    """Load something, one process of each machine before the others, so that they find what it has fetched or made.

    All processes call this together. An error is raised when all have had their turn.
    """
    with PartialState().local_main_process_first():
        try:
            loaded, failure = load(), None
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return loaded


def from_main_process(load: Callable[[], Thing]) -> Thing:
    """Have the main process find something out, for all of them.

    All processes call this together. What it raises is raised in all.
    """
    state = PartialState()
    found: list[Any] = [None, None]
    if state.is_main_process:
        try:
            found = [load(), None]
        except Exception as error:
            found = [None, error]
    broadcast_object_list(found)
    loaded, failure = found
    if failure is not None:
        raise failure
    return loaded


def check_alike(what: Mapping[str, Any]) -> None:
    """Refuse to work together on different things; all processes call this together, before any of them writes.

    Args:
        what: this process goes by, as JSON can hold it.

    Raises:
        UserError: in all processes, naming what differs.
    """
    if PartialState().num_processes == 1:
        return
    everyone = [dict(_leaves(each)) for each in gather_object([dict(what)])]
    names = dict.fromkeys(name for each in everyone for name in each)
    found = {name: {json.dumps(each.get(name)): None for each in everyone} for name in names}
    if different := [f"{name} is {' or '.join(values)}" for name, values in found.items() if len(values) > 1]:
        raise UserError(
            f"the processes of this launch do not work on the same: {'; '.join(different)}; allowed: one "
            "configuration, and files that all machines see"
        )


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _meet_again(backend: str, timeout: timedelta) -> None:
    """Join the other processes of this attempt, where it is not the first.

    torchrun's store outlives a restart with all keys of the attempt before, and PyTorch looks under the same keys
    again: processes would call at the addresses of dead ones. Keys of this attempt's own are beyond mistake.

    Args:
        backend: what processes speak by.
        timeout: how long they wait for each other.
    """
    attempt, num_processes = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    if attempt == "0" or num_processes == 1 or torch.distributed.is_initialized():
        return
    rank, has_store = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        num_processes,
        is_master=rank == 0 and not has_store,
        timeout=timeout,
        multi_tenant=True,
    )
    torch.distributed.init_process_group(
        backend,
        store=torch.distributed.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=num_processes,
        timeout=timeout,
    )
