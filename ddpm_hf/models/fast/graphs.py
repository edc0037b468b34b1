"""CUDA graphs: work that is recorded once and started again as a whole.

Starting an operator takes the host some 10 µs, which is more than most operators of a small network take a GPU. A
recorded graph of a thousand operators is started like a single one, with the same kernels and therefore the same
results.

What is recorded are addresses: replayed work reads the tensors it was recorded with, so new input is copied into those,
and it writes its results into the same tensors every time. It must not wait for the device, and decides nothing on
the host.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Results = dict[str, Tensor]
Work = Callable[[], Results]

NUM_WARM_UPS = 3
"""Runs before the recording, in which libraries choose kernels and allocate what they keep."""


def record_cuda_graph(work: Work) -> Work:
    """Record work as a CUDA graph.

    Args:
        work: is run `NUM_WARM_UPS` times and recorded once, which does not run it. Random numbers from the device's
            default generator follow its seed in each replay.

    Returns:
        The replay. Its results are the same tensors every time, overwritten by the next replay.

    Raises:
        RuntimeError: if the work cannot be recorded, such as when it reads a value from the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(NUM_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as NCCL's, may go on using the device meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = work()

    def replay() -> Results:
        graph.replay()
        return results

    return replay


def rerun(work: Work) -> Work:
    """Stand in for a recording on a device without graphs: run the work again, into the same tensors.

    The tests exercise everything around a graph with it, on any machine.
    """
    for _ in range(NUM_WARM_UPS):
        work()
    results = work()

    def replay() -> Results:
        for name, result in work().items():
            results[name].copy_(result)
        return results

    return replay


RECORDERS: dict[str, Callable[[Work], Work]] = {"cuda": record_cuda_graph}
"""How work is recorded on each type of device; on others it is not."""
