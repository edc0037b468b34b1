"""Which updates are skipped because their gradient is not finite, decided on the device."""

import logging

import torch
from jaxtyping import Float, Float32
from torch import Tensor

logger = logging.getLogger(__name__)


class FiniteCheck:
    """Skips updates that are not finite without waiting for the device.

    The decision is a tensor that the update's own kernels obey. Once more updates than allowed would be skipped,
    nothing changes any more, however many updates are started before `read` tells the host.

    Args:
        limit: updates that may be skipped.
        num_skipped: updates skipped so far.
        device: of the weights.

    Attributes:
        step: updates done before the present one.
        frozen: true while every update is skipped without being counted, as when an update is tried out.
    """

    def __init__(self, limit: int, num_skipped: int, device: torch.device) -> None:
        self.limit, self._num_reported = limit, num_skipped
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.frozen = torch.zeros((), dtype=torch.bool, device=device)
        self._num_skipped = torch.tensor(num_skipped, device=device)
        self._halted = torch.zeros((), dtype=torch.bool, device=device)
        # of the last update that was not finite
        self._last_step = torch.zeros((), dtype=torch.int64, device=device)
        self._last_values = torch.zeros(2, device=device)

    @property
    def num_skipped(self) -> int:
        """Updates skipped so far; reading it waits for the device."""
        return int(self._num_skipped)

    def skip(
        self, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""], checked: Float[Tensor, " values"]
    ) -> Float32[Tensor, ""]:
        """Decide about an update.

        Args:
            loss: for the message.
            grad_norm: for the message.
            checked: the values that must be finite, the same in all processes.

        Returns:
            1 if the update must change nothing, else 0.
        """
        failed = ~(checked.isfinite().all() | self.frozen | self._halted)
        self._last_step.copy_(torch.where(failed, self.step, self._last_step))
        self._last_values.copy_(torch.where(failed, torch.stack([loss, grad_norm]).float(), self._last_values))
        self._halted |= failed & (self._num_skipped >= self.limit)
        self._num_skipped += failed & ~self._halted
        return (failed | self.frozen | self._halted).float()

    def read(self) -> None:
        """Report what was skipped since the last call; this waits for the device.

        Raises:
            FloatingPointError: if an update was not finite and no more may be skipped.
        """
        num_skipped, halted = self.num_skipped, bool(self._halted)
        if num_skipped == self._num_reported and not halted:
            return
        step, (loss, norm) = int(self._last_step), self._last_values.tolist()
        if halted:
            raise FloatingPointError(
                f"the loss at step {step:,} is {loss:g} and its gradient norm {norm:g}; the weights are unchanged "
                "since then. Try a lower training.learning_rate, a lower training.max_grad_norm or "
                "training.mixed_precision=no"
            )
        self._num_reported = num_skipped
        logger.warning(
            "Skipping the update at step %s: the loss is %g and its gradient norm %g (%d skipped so far).",
            f"{step:,}",
            loss,
            norm,
            num_skipped,
        )
