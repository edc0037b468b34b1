"""The exponential moving average of the weights (DDPM, appendix B), kept in a network of its own."""

import copy
from collections.abc import Iterable
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ddpm_hf.training.accelerator import full_tensor, local_shard, shard_like

Network = TypeVar("Network", bound=nn.Module)


class ExponentialMovingAverage(Generic[Network]):
    """An averaged copy of a network that is ready to be sampled from and saved.

    The average lives in its own network. So no preview or checkpoint swaps weights into the trained network, and no
    exception can leave them there.

    Args:
        network: the network whose weights are averaged; its copy is in eval mode and needs no gradients.
        decay: share of the average that stays at each update, in [0, 1).
        schedule: how the decay rises to that value; see `decay_at`. The power schedule is that of diffusers'
            `EMAModel` with inv_gamma = 1.
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
        self.track(network.parameters())

    def track(self, weights: Iterable[Tensor]) -> None:
        """Average these weights from now on.

        Args:
            weights: of a network like the first one; if they are sharded, each process averages its own shards.
        """
        weights = list(weights)
        self._tensors = [shard_like(own, other) for own, other in zip(self.network.parameters(), weights, strict=True)]
        self._averages, self._weights = [*map(local_shard, self._tensors)], [*map(local_shard, weights)]
        self._share = torch.zeros((), device=self._weights[0].device)

    def decay_at(self, step: int) -> float:
        """The decay of update n, counted from 0: at most (1 + n) / (10 + n), or at most 1 - (1 + n)^-power."""
        if self.schedule == "warmup":
            return min(self.decay, (1 + step) / (10 + step))
        if self.schedule == "power":
            return min(self.decay, 1 - (1 + step) ** -self.power)
        return self.decay

    def set_step(self, step: int) -> None:
        """Use the decay of update `step`; it is a tensor, so that a recorded update uses it, too."""
        self._share.fill_(1 - self.decay_at(step))

    @torch.no_grad()
    def update(self, applies: Float[Tensor, ""] | float = 1.0) -> None:
        """average ← decay · average + (1 - decay) · weights, after an update of the weights.

        Args:
            applies: 1, or 0 to leave the average as it is.
        """
        share = self._share * applies
        if share.device.type == "cpu":  # a third of the time; on a GPU it would be a kernel for each tensor
            torch._foreach_lerp_(self._averages, self._weights, [share] * len(self._weights))
            return
        change = torch._foreach_sub(self._weights, self._averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(self._averages, change)

    @torch.no_grad()
    def gather(self) -> None:
        """Copy the average into `network` if it is sharded; every process calls this together."""
        for parameter, average in zip(self.network.parameters(), self._tensors, strict=True):
            if average is not parameter:
                parameter.copy_(full_tensor(average))
