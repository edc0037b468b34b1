"""Which timesteps a batch is trained at.

All ranks draw the timesteps of the global batch from one generator, seeded by (seed, step), and keep their own
share. Each drawn timestep comes with the weight that makes the weighted mean of a loss an unbiased estimate of its mean
over all timesteps.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from ddpm_hf.config.loss import TimestepSampling

TimestepsAndWeights = tuple[Int64[Tensor, " batch"], Float32[Tensor, " batch"]]

NUM_REMEMBERED = 10  # losses per timestep (improved DDPM, section 3.3)
UNIFORM_SHARE = 0.001  # of the draws, so that every timestep stays possible


class TimestepSampler(ABC):
    """Draws the timesteps of a batch, in 0 … T - 1.

    Args:
        num_timesteps: T, at least 1.
    """

    needs_losses = False
    """Whether `update` needs the losses of every step; if not, they need not be gathered."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps

    @abstractmethod
    def sample(self, batch_size: int, generator: torch.Generator) -> TimestepsAndWeights:
        """Draw timesteps and their sample weights, both on the CPU.

        Args:
            batch_size: of the global batch: all ranks and all accumulated micro-batches.
            generator: on the CPU, equal on all ranks.
        """

    def update(self, timesteps: Int[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:  # noqa: B027
        """Learn from the losses of a step.

        Args:
            timesteps: of the global batch, in the same order on all ranks.
            losses: `LossOutput.per_sample` of those timesteps.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What resuming needs, beyond the configuration."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: if the state belongs to another kind of sampler or another number of timesteps.
        """
        own = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in state.items()}
        if own != given:
            raise ValueError(f"state of another timestep sampler: given {given}; allowed: {own}")


class UniformTimesteps(TimestepSampler):
    """Every timestep equally likely, independently of the others (DDPM, algorithm 1)."""

    def sample(self, batch_size: int, generator: torch.Generator) -> TimestepsAndWeights:
        """See TimestepSampler.sample."""
        timesteps = torch.randint(self.num_timesteps, (batch_size,), generator=generator)
        return timesteps, torch.ones(batch_size)


class StratifiedTimesteps(TimestepSampler):
    """One timestep from each of batch_size equal parts of the schedule, in random order.

    Every place of the batch is uniform over all timesteps, as in DDPM's algorithm 1, but a batch covers the schedule
    evenly, which lowers the noise of its loss (compare the low-discrepancy times of Variational Diffusion Models,
    appendix I.1).
    """

    def sample(self, batch_size: int, generator: torch.Generator) -> TimestepsAndWeights:
        """See TimestepSampler.sample."""
        within = torch.rand(batch_size, dtype=torch.float64, generator=generator)
        positions = (torch.arange(batch_size) + within) / batch_size  # one in each [i, i + 1) / batch_size
        timesteps = (positions * self.num_timesteps).long().clamp_(max=self.num_timesteps - 1)
        # shuffled, since a rank or a micro-batch takes consecutive ones
        return timesteps[torch.randperm(batch_size, generator=generator)], torch.ones(batch_size)


class ImportanceTimesteps(TimestepSampler):
    """Timesteps as likely as their recent losses are large: p_t ~ sqrt(E[L_t^2]) (improved DDPM, eq. 18).

    The sample weight 1 / (T p_t) undoes the preference in the mean. Uniform until every timestep has been seen
    `NUM_REMEMBERED` times.
    """

    needs_losses = True

    def __init__(self, num_timesteps: int) -> None:
        super().__init__(num_timesteps)
        self._losses = torch.zeros(num_timesteps, NUM_REMEMBERED, dtype=torch.float64)
        self._num_seen = torch.zeros(num_timesteps, dtype=torch.int64)

    def probabilities(self) -> Float64[Tensor, " T"]:
        """The probability of each timestep now."""
        uniform = torch.full((self.num_timesteps,), 1 / self.num_timesteps, dtype=torch.float64)
        size = self._losses.square().mean(1).sqrt()
        if self._num_seen.min() < NUM_REMEMBERED or size.sum() == 0:
            return uniform
        return (1 - UNIFORM_SHARE) * size / size.sum() + UNIFORM_SHARE * uniform

    def sample(self, batch_size: int, generator: torch.Generator) -> TimestepsAndWeights:
        """See TimestepSampler.sample."""
        probabilities = self.probabilities()
        below = torch.rand(batch_size, dtype=torch.float64, generator=generator)
        timesteps = torch.searchsorted(probabilities.cumsum(0), below, right=True).clamp_(max=self.num_timesteps - 1)
        return timesteps, (1 / (self.num_timesteps * probabilities[timesteps])).float()

    def update(self, timesteps: Int[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:
        """See TimestepSampler.update; losses that are not finite are ignored."""
        timesteps, losses = timesteps.cpu().long(), losses.detach().to("cpu", torch.float64)
        finite = losses.isfinite()
        timesteps, order = timesteps[finite].sort(stable=True)
        losses = losses[finite][order]
        num_new = torch.bincount(timesteps, minlength=self.num_timesteps)
        first = num_new.cumsum(0) - num_new  # where each timestep's run begins
        nth = torch.arange(len(timesteps)) - first[timesteps]
        last = nth >= num_new[timesteps] - NUM_REMEMBERED  # earlier ones would be overwritten at once
        slot = (self._num_seen[timesteps] + nth) % NUM_REMEMBERED
        self._losses[timesteps[last], slot[last]] = losses[last]
        self._num_seen += num_new

    def state_dict(self) -> dict[str, Tensor]:
        """The remembered losses and how many each timestep has had."""
        return {"losses": self._losses.clone(), "num_seen": self._num_seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See TimestepSampler.load_state_dict."""
        super().load_state_dict(state)
        self._losses = state["losses"].to("cpu", torch.float64, copy=True)
        self._num_seen = state["num_seen"].to("cpu", torch.int64, copy=True)


SAMPLERS: dict[str, type[TimestepSampler]] = {
    "uniform": UniformTimesteps,
    "stratified": StratifiedTimesteps,
    "importance": ImportanceTimesteps,
}


def make_timestep_sampler(timestep_sampling: TimestepSampling, num_timesteps: int) -> TimestepSampler:
    """Make the sampler that `loss_config.timestep_sampling` names, for T = num_timesteps."""
    return SAMPLERS[timestep_sampling](num_timesteps)
