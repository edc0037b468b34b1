"""The network: how its blocks are wired, and how it is initialised."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm_hf.models.checks import check_config, check_input
from ddpm_hf.models.fast import accelerate, prepared
from ddpm_hf.models.layers.attention import AttentionFunction, SelfAttentionBlock
from ddpm_hf.models.layers.embeddings import TimeEmbedding, TransformerPositionalEmbedding
from ddpm_hf.models.layers.residual import (
    AttentionDownBlock,
    AttentionUpBlock,
    BlockOptions,
    ConvDownBlock,
    ConvUpBlock,
    MiddleBlock,
    NormSiLU,
    ResidualBlock,
)
from ddpm_hf.runtime.stock import StockOnDisk

# variance_scaling(1e-10) of the original code, whose limit is sqrt(3 * scale / fan_avg): Glorot's with this gain
ALMOST_ZERO_GAIN = 1e-5


class DDPMUNet(ModelMixin, StockOnDisk, ConfigMixin):  # type: ignore[misc]  # diffusers' two disagree on config_name
    """The U-Net of DDPM (appendix B), with the weights of `diffusers.UNet2DModel`.

    Names and defaults of the arguments are UNet2DModel's, so that a config.json means the same to both. `build_network`
    makes the paper's network from a `ModelConfig`.

    Args:
        sample_size: height and width of the images, in pixels; informative, not enforced.
        in_channels: channels of the noisy image.
        out_channels: channels of the prediction.
        center_input_sample: map input from [0, 1] to [-1, 1] first.
        time_embedding_type: only "positional".
        time_embedding_dim: length of the time embedding; None is 4 * block_out_channels[0].
        freq_shift: see `TransformerPositionalEmbedding`.
        flip_sin_to_cos: see `TransformerPositionalEmbedding`.
        down_block_types: one per level, finest first: "DownBlock2D", or "AttnDownBlock2D" with attention.
        mid_block_type: "UNetMidBlock2D", or None for no blocks between the two ways.
        up_block_types: one per level, coarsest first: "UpBlock2D", or "AttnUpBlock2D" with attention.
        block_out_channels: channels of each level, finest first.
        layers_per_block: residual blocks per level on the way down; one more on the way up.
        mid_block_scale_factor: only 1.
        downsample_padding: see `Downsample`.
        downsample_type: only "conv".
        upsample_type: only "conv".
        dropout: see `ResidualBlock`.
        act_fn: only "silu", or its other name "swish".
        attention_head_dim: see `SelfAttentionBlock`.
        norm_num_groups: groups of each normalisation.
        attn_norm_num_groups: groups of the normalisation of the middle's attention; None is norm_num_groups.
        norm_eps: added to the variance by each normalisation.
        resnet_time_scale_shift: only "default".
        add_attention: have attention in the middle.
        class_embed_type: only None.
        num_class_embeds: number of classes; None: unconditional.
        num_train_timesteps: T, above every timestep; None: not checked.
        initialization: "ddpm" or "pytorch"; see `initialize_ddpm`.

    Raises:
        ValueError: naming the argument that the network does not support.
    """

    stock_class = "UNet2DModel"
    extra_fields = ("initialization",)
    _supports_gradient_checkpointing = True
    _repeated_blocks = ("ResidualBlock", "SelfAttentionBlock")  # type: ignore[assignment]
    _no_split_modules = ("ResidualBlock", "SelfAttentionBlock")  # type: ignore[assignment]
    _skip_layerwise_casting_patterns = ("norm",)  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int = 2,
        mid_block_scale_factor: float = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = True,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        initialization: Literal["ddpm", "pytorch"] = "ddpm",
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.sample_size = sample_size
        self.center_input_sample = center_input_sample
        self.layers_per_block = layers_per_block
        self.side_factor = 2 ** (len(block_out_channels) - 1)
        self.num_train_timesteps = num_train_timesteps
        channels = block_out_channels[0]
        time_channels = time_embedding_dim or 4 * channels
        options = BlockOptions(time_channels, dropout, norm_num_groups, norm_eps, attention_head_dim)
        last = len(block_out_channels) - 1

        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time_proj = TransformerPositionalEmbedding(channels, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimeEmbedding(channels, time_channels)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, time_channels)

        self.down_blocks = nn.ModuleList()
        skips = [channels]
        for level, (block_type, out) in enumerate(zip(down_block_types, block_out_channels, strict=True)):
            down_block = AttentionDownBlock if "Attn" in block_type else ConvDownBlock
            downsample = level != last
            self.down_blocks.append(
                down_block(
                    channels,
                    out,
                    options,
                    num_layers=layers_per_block,
                    downsample=downsample,
                    downsample_padding=downsample_padding,
                )
            )
            skips += [out] * (layers_per_block + downsample)
            channels = out

        self.mid_block = (
            None
            if mid_block_type is None
            else MiddleBlock(channels, options, attention=add_attention, attention_norm_groups=attn_norm_num_groups)
        )

        self.up_blocks = nn.ModuleList()
        for level, (block_type, out) in enumerate(zip(up_block_types, reversed(block_out_channels), strict=True)):
            up_block = AttentionUpBlock if "Attn" in block_type else ConvUpBlock
            skip_channels = [skips.pop() for _ in range(layers_per_block + 1)]
            self.up_blocks.append(up_block(channels, out, options, skip_channels=skip_channels, upsample=level != last))
            channels = out

        self.conv_norm_out = NormSiLU(norm_num_groups, channels, norm_eps)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)
        if initialization == "ddpm":
            initialize_ddpm(self)
        accelerate(self)  # faster forms of the same layers; `restore` takes them out again

    @classmethod
    def from_stock(cls, unet: UNet2DModel) -> "DDPMUNet":
        """Wrap the parameters of a stock network, without a copy.

        Args:
            unet: the stock network; training one trains the other.

        Returns:
            The network, in the stock network's mode (training or evaluation).

        Raises:
            ValueError: if DDPMUNet does not support the stock network's configuration.
        """
        with torch.device("meta"):
            network: DDPMUNet = cls.from_config(unet.config)  # type: ignore[assignment]
        for name, parameter in unet.named_parameters():
            network.get_parameter(name).requires_grad_(parameter.requires_grad)
        network.load_state_dict(unet.state_dict(keep_vars=True), assign=True)
        return network.train(unet.training)

    def to_stock(self) -> UNet2DModel:
        """Wrap the parameters in a stock network, without a copy: the inverse of `from_stock`."""
        with torch.device("meta"):
            stock: UNet2DModel = super().to_stock()
        for name, parameter in self.named_parameters():
            stock.get_parameter(name).requires_grad_(parameter.requires_grad)
        stock.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return stock.train(self.training)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Tensor] | None = None) -> None:
        """Keep only the inputs of every residual and attention block, and compute these again in the backward pass.

        Source: Chen et al. 2016, https://huggingface.co/papers/1604.06174.

        Args:
            gradient_checkpointing_func: called with a layer and its inputs; None is
                `torch.utils.checkpoint.checkpoint`.
        """
        # diffusers' own default is a local function, with which no model can be pickled
        # Only dropout draws random numbers. Restoring their state for others would wait for a GPU.
        draws = self.config["dropout"] > 0
        function = gradient_checkpointing_func or partial(checkpoint, use_reentrant=False, preserve_rng_state=draws)
        super().enable_gradient_checkpointing(function)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Compile each residual and attention block alone, which takes far less time than the whole network.

        Args:
            args: as of `torch.compile`.
            kwargs: as of `torch.compile`.
        """
        # the blocks share one function, compiled anew for each of their shapes; beyond the limit they would run eagerly
        blocks = sum(type(module).__name__ in self._repeated_blocks for module in self.modules())
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * blocks)
        super().compile_repeated_blocks(*args, **kwargs)

    def set_attn_processor(self, processor: AttentionFunction) -> None:
        """Set the attention function of every attention block, in place of diffusers' method of this name.

        Args:
            processor: takes query, key and value, each (batch, heads, positions, head_dim), and returns the same shape.
                The default is `ddpm_hf.models.layers.attention.attend`.

        Raises:
            ValueError: for one of diffusers' processors, which work on diffusers' own attention layers.
        """
        if type(processor).__module__.startswith("diffusers."):
            raise ValueError(
                f"{type(processor).__name__} is made for diffusers' attention layers: give a function of query, key "
                "and value, or choose a kernel with torch.nn.attention.sdpa_kernel"
            )
        for module in self.modules():
            if isinstance(module, SelfAttentionBlock):
                module.processor = processor

    def prepared(self) -> AbstractContextManager[None]:
        """Speed up many forward passes without gradients.

        On a CPU weights are laid out once for all of them. On a GPU passes are recorded as CUDA graphs and replayed:
        the same kernels, whose start takes the host no time. A few kinds of passes (batch size, dtype, with or without
        labels) are kept at a time.

        Returns:
            A context, within which the weights must not change. Their copies and recordings are freed at its end.
        """
        return prepared(self)

    prepacked = prepared  # its name in version 0.1.0

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in noisy images: epsilon_theta(x_t, t) of DDPM, eq. 11 (or another training target).

        Shapes are not in the signature, since `check_input` checks them with a message that says how to mend them.

        Args:
            sample: x_t, (batch, in_channels, height, width); sides are multiples of 2 ** (levels - 1).
            timestep: t, in [0, T): one for all images, or (batch,).
            class_labels: (batch,), for a network with classes.
            return_dict: return a `UNet2DOutput`, else a tuple.

        Returns:
            The prediction, (batch, out_channels, height, width).

        Raises:
            ValueError: for input of the wrong shape, or out of range on a CPU; values on a GPU are not read.
        """
        timesteps = timestep if isinstance(timestep, Tensor) else torch.full((1,), timestep)
        check_input(
            sample,
            timesteps,
            class_labels,
            in_channels=self.conv_in.in_channels,
            side_factor=self.side_factor,
            num_timesteps=self.num_train_timesteps,
            num_classes=None if self.class_embedding is None else self.class_embedding.num_embeddings,
        )
        if self.center_input_sample:
            sample = 2 * sample - 1

        # to a GPU without waiting for it, as a blocking copy would
        timesteps = timesteps.to(sample.device, non_blocking=sample.is_cuda).expand(sample.shape[0])
        time = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.class_embedding is not None:
            time = time + self.class_embedding(class_labels).to(time.dtype)
        time = F.silu(time)  # the first layer of every block's time projection, computed once

        hidden = self.conv_in(sample)
        skips = [hidden]
        for down_block in self.down_blocks:
            hidden, new_skips = down_block(hidden, time)
            skips += new_skips
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, time)
        for up_block in self.up_blocks:
            hidden = up_block(hidden, [skips.pop() for _ in range(self.layers_per_block + 1)], time)
        prediction = self.conv_out(self.conv_norm_out(hidden))

        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


def initialize_ddpm(network: DDPMUNet) -> None:
    """Draw the weights as the authors' code of DDPM (nn.py, `default_init`) does.

    Convolutions and linear layers: uniform, variance 1 / mean(fan in, fan out), zero bias. The last layer of each
    residual branch and of the network: the same with variance scaled by 1e-10, so that each block begins as (almost)
    its shortcut, and the first loss of noise prediction is 1. Embedding tables keep PyTorch's N(0, 1).

    Args:
        network: changed in place; on the meta device nothing happens.
    """
    almost_zero: list[nn.Module] = [network.conv_out]
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
