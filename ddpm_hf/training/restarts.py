"""The processes of a run that torchrun has started again meet each other anew."""

import os
from datetime import timedelta

import torch.distributed


def meet_again(on_cpu: bool, timeout: timedelta) -> None:
    """Join the other processes of this attempt, where it is not the first.

    torchrun's store outlives a restart with all keys of the attempt before, and PyTorch looks under the same keys
    again: processes would call at the addresses of dead ones. Keys of this attempt's own are beyond mistake.

    Args:
        on_cpu: processes speak by gloo; otherwise by NCCL.
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
        "gloo" if on_cpu else "nccl",
        store=torch.distributed.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=num_processes,
        timeout=timeout,
    )
