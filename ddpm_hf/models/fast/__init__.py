"""Faster forms of the plain layers, around the same parameters.

`accelerate` puts them in and `restore` takes them out again. A form is a subclass of the plain layer, and only the
class of the module changes: parameters, state dict and hooks stay what they were, and copies and pickles work. A form
computes what the plain layer does, and runs the plain layer where it has nothing better: on another device, in another
precision, under the transforms of torch.func, in an exported network.

`prepared` adds what pays only over many passes, without gradients, by weights that do not change.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ddpm_hf.models.fast.cpu import FastDropout, FastNormSiLU
from ddpm_hf.models.fast.doubling import DoublingConv, FusedUpsample
from ddpm_hf.models.fast.graphs import captured
from ddpm_hf.models.fast.packed import prepacked
from ddpm_hf.models.fast.winograd import WinogradConv
from ddpm_hf.models.layers.residual import NormSiLU, ResidualBlock, Upsample

__all__ = ["accelerate", "prepared", "restore"]

FORMS = (DoublingConv, FastDropout, FastNormSiLU, FusedUpsample, WinogradConv)


def accelerate(network: nn.Module) -> None:
    """Give the layers of a network their faster forms.

    Args:
        network: changed in place. It may be on any device, and move to another one afterwards. Layers of other classes,
            such as quantised ones, stay as they are.
    """
    for module in network.modules():
        if type(module) is NormSiLU:
            module.__class__ = FastNormSiLU
        elif isinstance(module, ResidualBlock):
            for conv in (module.conv1, module.conv2):
                if type(conv) is nn.Conv2d:
                    conv.__class__ = WinogradConv
            if type(module.dropout) is nn.Dropout:
                module.dropout.__class__ = FastDropout
        elif type(module) is Upsample and type(module.conv) is nn.Conv2d:
            module.__class__, module.conv.__class__ = FusedUpsample, DoublingConv


def restore(network: nn.Module) -> None:
    """Give the layers of a network their plain forms again.

    Args:
        network: changed in place.
    """
    for module in network.modules():
        if type(module) in FORMS:
            module.__class__ = type(module).__bases__[0]


@contextmanager
def prepared(network: nn.Module) -> Iterator[None]:
    """Speed up many forward passes without gradients: on a CPU by packed weights, on a GPU by CUDA graphs.

    Args:
        network: takes and returns what `UNet2DModel` does. Its weights must not change within.
    """
    with captured(network), prepacked(network):  # in this order: packed layers have forward passes of their own
        yield
