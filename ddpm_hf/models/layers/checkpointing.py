"""Gradient checkpointing as diffusers models do it: https://huggingface.co/papers/1604.06174, one layer at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layer(layer: Callable[..., Tensor], *args: Any) -> Tensor:
    """Run a layer and keep only its inputs; the backward pass runs it again, with the same dropout.

    Args:
        layer: the layer.
        args: its inputs.
    """
    return checkpoint(layer, *args, use_reentrant=False)


class CheckpointedBlock(nn.Module):
    """A block of layers that `ModelMixin.enable_gradient_checkpointing` switches."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor] = staticmethod(checkpoint_layer)

    def run(self, layer: nn.Module, *args: Any) -> Tensor:
        """Call one layer, checkpointed where that is on and gradients are wanted.

        Args:
            layer: the layer.
            args: its inputs.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)
