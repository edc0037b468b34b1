"""The initialisation of DDPM: each residual branch, and the network as a whole, begins as (almost) zero."""

from torch import nn

from ddpm_hf.models.layers.attention import SelfAttentionBlock
from ddpm_hf.models.layers.residual import ResidualBlock

# variance_scaling(1e-10) of the original code, whose limit is sqrt(3 * scale / fan_avg): Glorot's with this gain
ALMOST_ZERO_GAIN = 1e-5


def initialize_ddpm(network: nn.Module) -> None:
    """Draw the weights as the authors' code of DDPM (nn.py, `default_init`) does.

    Convolutions and linear layers: uniform, variance 1 / mean(fan in, fan out), zero bias. The second convolution of a
    residual block, the output projection of attention and the last convolution (`conv_out`): the same with variance
    scaled by 1e-10, so that the first loss of noise prediction is 1. Embedding tables keep PyTorch's N(0, 1).

    Args:
        network: a `DDPMUNet`; changed in place. On the meta device nothing happens.
    """
    almost_zero: list[nn.Module] = [network.get_submodule("conv_out")]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _glorot(module, gain=1.0)
        elif isinstance(module, ResidualBlock):
            almost_zero.append(module.conv2)
        elif isinstance(module, SelfAttentionBlock):
            almost_zero.append(module.to_out[0])
    for module in almost_zero:
        _glorot(module, gain=ALMOST_ZERO_GAIN)


def _glorot(module: nn.Module, gain: float) -> None:
    # through the module `nn.init`: diffusers switches initialisation off there while it loads weights
    nn.init.xavier_uniform_(module.get_parameter("weight"), gain)
    nn.init.zeros_(module.get_parameter("bias"))
