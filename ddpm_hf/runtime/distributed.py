"""Distributed set-up and cross-rank consistency checks."""

import atexit
import json
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce

from ddpm_hf.runtime.errors import RunError, UserError
from ddpm_hf.runtime.values import flatten

Loaded = TypeVar("Loaded")

MEETING = timedelta(minutes=2)
"""Longest time until all processes of a launch have come; the others may have been killed before."""

_process_groups: list[Any] = []
"""Process groups that are held until exit. Otherwise DistributedDataParallel is the last to hold one once accelerate
has destroyed it, and destroys it while holding the GIL; the group's own thread may be waiting for the GIL, which
deadlocks about one run in a hundred. Clearing this list releases the GIL first."""
atexit.register(_process_groups.clear)


def init_distributed(timeout: timedelta) -> PartialState:
    """Join the other processes of a launch, if there are any, and choose this process's device or cores.

    accelerate alone leaves CPU processes without each other: it asks for no backend there.

    Args:
        timeout: longest time that processes wait for each other, once all of them have met.

    Raises:
        RunError: if not all processes of the launch come.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if on_cpu:
        use_all_cores()
    store = _meet()  # is held until the processes have met again, in PyTorch's own way
    if store is not None and (attempt := os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) != "0":
        _init_after_restart(store, attempt, "gloo" if on_cpu else "nccl", timeout)
    state = PartialState(cpu=on_cpu, timeout=timeout)
    if state.num_processes > 1:
        _process_groups.append(torch.distributed.group.WORLD)
    return state


def use_all_cores() -> None:
    """Share the cores between the processes of this machine, if a launcher gave each process a single thread.

    `accelerate launch` and torchrun set OMP_NUM_THREADS to 1 unless it is set, which leaves all other cores idle. A
    number of threads above 1 is left alone.
    """
    is_launched = "LOCAL_WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if is_launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def max_over_processes(number: int) -> int:
    """The largest of all processes' numbers; every process calls this together."""
    state = PartialState()
    if state.num_processes == 1:
        return number
    own = torch.zeros(state.num_processes, dtype=torch.int64, device=state.device)
    own[state.process_index] = number
    return int(reduce(own, "sum").max())


def main_process_first(load: Callable[[], Loaded]) -> Loaded:
    """Load something in one process of each machine before the others, so that they find what it fetched or made.

    Every process calls this together. An error is raised after every process has had its turn.
    """
    with PartialState().local_main_process_first():
        try:
            loaded, failure = load(), None
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return loaded


def from_main_process(load: Callable[[], Loaded]) -> Loaded:
    """Load something in the main process and send it to the others.

    Every process calls this together. An error of the main process is raised in all of them.
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


def assert_same_across_ranks(settings: Mapping[str, Any]) -> None:
    """Check that all processes use the same settings; every process calls this together, before any of them writes.

    Args:
        settings: of this process, as values that JSON can hold.

    Raises:
        UserError: in every process, naming the settings that differ.
    """
    if PartialState().num_processes == 1:
        return
    all_settings = [flatten(each) for each in gather_object([dict(settings)])]
    names = dict.fromkeys(name for each in all_settings for name in each)
    found = {name: {json.dumps(each.get(name)): None for each in all_settings} for name in names}
    if different := [f"{name} is {' or '.join(values)}" for name, values in found.items() if len(values) > 1]:
        raise UserError(
            f"the processes of this launch have different settings: {'; '.join(different)}; allowed: one "
            "configuration, and files that all machines see"
        )


def _meet() -> "torch.distributed.Store | None":
    """Wait until all processes of this launch are there; PyTorch's own meeting has the limit of all later waits.

    Returns:
        The store where they met; None without other processes.

    Raises:
        RunError: if some do not come.
    """
    given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    if None in given or given[1] == "1" or torch.distributed.is_initialized():
        return None
    rank, num_processes, host, port = int(str(given[0])), int(str(given[1])), str(given[2]), int(str(given[3]))
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = torch.distributed.TCPStore(
            host,
            port,
            is_master=rank == 0 and not has_store,
            timeout=MEETING,
            wait_for_workers=False,
            multi_tenant=True,
        )
        present = torch.distributed.PrefixStore(f"meeting-{attempt}", store)
        present.set(str(rank), "")
        present.wait([str(each) for each in range(num_processes)], MEETING)
    except torch.distributed.DistError as error:
        raise RunError(
            f"process {rank} of this launch has not met all of the {num_processes} within {MEETING.seconds} seconds at "
            f"{host}, port {port}; was it stopped, or can the machines not reach each other? start it again"
        ) from error
    return store


def _init_after_restart(store: "torch.distributed.Store", attempt: str, backend: str, timeout: timedelta) -> None:
    """Join the other processes of this attempt, if it is not the first.

    torchrun's store outlives a restart with all keys of the attempt before, and PyTorch uses the same keys again:
    processes would connect to the addresses of dead ones. So each attempt gets a prefix of its own.

    Args:
        store: where they have met.
        attempt: its number.
        backend: of torch.distributed.
        timeout: longest time that processes wait for each other.
    """
    store.set_timeout(timeout)
    torch.distributed.init_process_group(
        backend,
        store=torch.distributed.PrefixStore(f"attempt-{attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )
