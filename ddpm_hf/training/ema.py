"""The exponential moving average of the weights (DDPM, appendix B), kept as a network of its own."""

import copy
from collections.abc import Iterable
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from ddpm_hf.training.sharding import cut_like, own_part, whole

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
        self.follow(network.parameters())

    def follow(self, weights: Iterable[Tensor]) -> None:
        """Average these from now on.

        Args:
            weights: of a network like the first; of those in shards, each process averages its own.
        """
        weights = list(weights)
        self._kept = [cut_like(mine, theirs) for mine, theirs in zip(self.network.parameters(), weights, strict=True)]
        self._averages, self._weights = [*map(own_part, self._kept)], [*map(own_part, weights)]

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

    @torch.no_grad()
    def complete(self) -> None:
        """Bring `network` up to date where its weights are averaged in shards; to be called on every process."""
        for parameter, average in zip(self.network.parameters(), self._kept, strict=True):
            if average is not parameter:
                parameter.copy_(whole(average))
