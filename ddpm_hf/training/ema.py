"""The exponential moving average of the weights (DDPM, appendix B), kept as a network of its own."""

import copy
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class ExponentialMovingAverage(Generic[Network]):
    """An averaged copy of a network that is ready to be sampled from and saved.

    Since the average lives in its own network, no preview or checkpoint ever swaps weights into the trained one, and
    none can be left there by an exception.

    Args:
        network: the network whose weights are averaged; its copy is in eval mode and needs no gradients.
        decay: share of the average that stays at each update, in [0, 1).
        schedule: how the decay gets there; see `decay_at`.
        power: exponent of the power schedule, in (0, 1].

    Attributes:
        network: the averaged network.
    """

    def __init__(
        self,
        network: Network,
        decay: float,
        schedule: Literal["constant", "warmup", "power"] = "warmup",
        power: float = 0.75,
    ) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.schedule, self.power = decay, schedule, power
        self._averages: list[Tensor] = list(self.network.parameters())
        self._weights: list[Tensor] = list(network.parameters())

    def decay_at(self, step: int) -> float:
        """The decay of update n, counted from 0: at most (1 + n) / (10 + n), or at most 1 - (1 + n)^-power."""
        if self.schedule == "warmup":
            return min(self.decay, (1 + step) / (10 + step))
        if self.schedule == "power":
            return min(self.decay, 1 - (1 + step) ** -self.power)
        return self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """average ← decay · average + (1 - decay) · weights, after update `step` of the weights; one fused pass."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay_at(step))
