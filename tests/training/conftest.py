"""Memory that runs out, for the tests of what happens then."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ddpm_hf.models import DDPMUNet
from ddpm_hf.training.batches import Batches

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def limited_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Limit the images for which a forward pass finds memory, in training and in sampling."""

    def limit(training: int, sampling: int) -> None:
        forward = DDPMUNet.forward

        def limited(self, sample, *args, **kwargs):
            if len(sample) > (training if self.training else sampling):
                raise torch.OutOfMemoryError(FULL)
            return forward(self, sample, *args, **kwargs)

        monkeypatch.setattr(DDPMUNet, "forward", limited)

    return limit


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the images of some steps not finite, and with them loss and gradient."""

    def at_steps(*steps: int) -> None:
        at = Batches.at

        def poisoned(self, step):
            batch = at(self, step)
            return replace(batch, x_0=batch.x_0 * float("nan")) if step in steps else batch

        monkeypatch.setattr(Batches, "at", poisoned)

    return at_steps
