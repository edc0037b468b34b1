"""CUDA graphs: work that is recorded once and started again as a whole.

Starting an operator takes the host some 10 µs, which is more than most operators of a small network take a GPU. A
recorded graph of a thousand operators is started like a single one, with the same kernels and therefore the same
results.

What is recorded are addresses: replayed work reads the tensors it was recorded with, so new input is copied into those,
and it writes its results into the same tensors every time. It must not wait for the device, and decides nothing on
the host.

`captured` does this to the forward passes of a network while it samples.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from weakref import WeakSet

import torch
from accelerate.utils.memory import clear_device_cache
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from ddpm_hf.runtime.memory import is_out_of_memory

logger = logging.getLogger(__name__)

Results = dict[str, Tensor]
Work = Callable[[], Results]

NUM_WARM_UPS = 3
"""Runs before the recording, in which libraries choose kernels and allocate what they keep."""

NUM_EAGER_PASSES = 4
"""Forward passes of a kind before it is recorded, which takes as long as four of them: a few steps go without."""

MAX_RECORDINGS = 3
"""Recordings of a network at a time, each of which keeps the memory of a forward pass."""


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
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    generator = torch.cuda.default_generators[stream.device_index]
    random_state = generator.clone_state()
    try:
        # Other threads, such as NCCL's, may go on using the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = work()
    except Exception:
        # A capture that breaks off leaves its own stream as the current one, and a generator that still waits for the
        # end of the capture and refuses to draw.
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(random_state)
        raise

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


@contextmanager
def captured(network: nn.Module) -> Iterator[None]:
    """Record the forward passes without gradients that recur within, and replay them, on a device with graphs.

    Passes are of one kind if their inputs agree in shape, memory layout and dtype. The first few of a kind run eagerly.
    A replay does not check the values of timesteps. Where a recording fails, the network runs eagerly from then on.

    Networks whose forward pass is not only theirs (compiled, offloaded, with hooks on their layers, already captured)
    or whose weights are of another class (sharded, quantised) stay as they are.

    Args:
        network: takes and returns what `UNet2DModel` does. It must stay on its device within.
    """
    if network in _failed or not _is_plain(network):
        yield
        return
    forward = _CapturedForward(network)
    network.forward = forward
    try:
        yield
    finally:
        network.__dict__.pop("forward", None)
        forward.clear()


_failed: WeakSet[nn.Module] = WeakSet()
"""Networks of which a recording failed once."""

_lock = Lock()
"""Held while static tensors are in use: threads may share a network, and a process records one graph at a time."""


def _is_plain(network: nn.Module) -> bool:
    """Whether a forward pass is that of the network's classes alone, from weights of its own."""
    layers = [module for module in network.modules() if module is not network]
    return (
        all("forward" not in vars(module) and module._compiled_call_impl is None for module in (network, *layers))
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        and all(type(parameter) is nn.Parameter for parameter in network.parameters())
    )


class _CapturedForward:
    """The forward pass of a network, of which recurring kinds are recorded.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._num_passes: Counter[Hashable] = Counter()
        self._recordings: OrderedDict[Hashable, tuple[Results, Work]] = OrderedDict()

    def __call__(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        prediction = None
        if sample.device.type in RECORDERS and not self.network.training and _runs_eagerly(sample):
            inputs = {"sample": sample, "timestep": torch.as_tensor(timestep)}
            if class_labels is not None:
                inputs["class_labels"] = class_labels
            with _lock:
                prediction = self._replay(inputs)
        if prediction is None:
            prediction = self._run_eagerly(sample, timestep, class_labels)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)

    def clear(self) -> None:
        """Free the recordings."""
        with _lock:
            self._forget()

    def _forget(self) -> None:
        self._recordings.clear()
        self._num_passes.clear()

    def _replay(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The prediction, by a recording; None where there is none yet."""
        kind = _kind_of(inputs)
        if kind not in self._recordings:
            self._num_passes[kind] += 1
            if self._num_passes[kind] <= NUM_EAGER_PASSES or self.network in _failed:
                return None
            if not self._record(kind, inputs):
                clear_device_cache(garbage_collection=True)  # only here, where the error and its frames are gone
                return None
        self._recordings.move_to_end(kind)
        static, replay = self._recordings[kind]
        for name, value in inputs.items():
            static[name].copy_(value, non_blocking=True)  # a number from the host would wait for the device otherwise
        # Samplers of several steps keep earlier predictions, which the next replay overwrites.
        return replay()["prediction"].clone()

    def _record(self, kind: Hashable, inputs: Mapping[str, Tensor]) -> bool:
        """Record a kind of pass in the place of the one that was used longest ago; False if that fails."""
        while len(self._recordings) >= MAX_RECORDINGS:
            oldest, _ = self._recordings.popitem(last=False)
            del self._num_passes[oldest]
        device = inputs["sample"].device
        static = {name: torch.empty_like(value, device=device).copy_(value) for name, value in inputs.items()}
        dtype, enabled = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)

        def work() -> Results:
            # Weights that autocast has rounded and keeps would be freed before the recording is.
            with torch.autocast(device.type, dtype, enabled, cache_enabled=False):
                return {"prediction": self._forward(**static)}

        try:
            self._recordings[kind] = static, RECORDERS[device.type](work)
        except Exception as error:
            _failed.add(self.network)
            self._forget()
            logger.warning(
                "A forward pass of shape %s cannot be recorded as a graph (%s: %s). The network goes on without, which "
                "is slower; the results are the same.",
                tuple(inputs["sample"].shape),
                type(error).__name__,
                str(error).partition("\n")[0],
            )
            return False
        return True

    def _run_eagerly(self, *inputs: Tensor | float | None) -> Tensor:
        try:
            return self._forward(*inputs)
        except Exception as error:
            if not (self._recordings and is_out_of_memory(error)):
                raise
        self.clear()  # and with them the memory that they keep
        clear_device_cache(garbage_collection=True)
        return self._forward(*inputs)

    def _forward(self, *inputs: Tensor | float | None, **named: Tensor) -> Tensor:
        return type(self.network).forward(self.network, *inputs, **named, return_dict=False)[0]


def _runs_eagerly(sample: Tensor) -> bool:
    """Whether nothing is to be differentiated, transformed, compiled or captured by others."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or (sample.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _kind_of(inputs: Mapping[str, Tensor]) -> Hashable:
    """What must agree for a recording of one pass to be right for another."""
    device = inputs["sample"].device
    precision = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    forms = [(name, value.shape, value.stride(), value.dtype) for name, value in inputs.items()]
    return (*forms, device, precision, torch.is_inference_mode_enabled())
