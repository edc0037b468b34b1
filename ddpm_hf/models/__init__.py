"""The network."""

from typing import Any

from ddpm_hf.config.model import ModelConfig
from ddpm_hf.models.unet import DDPMUNet

__all__ = ["DDPMUNet", "build_network", "network_arguments"]


def build_network(config: ModelConfig) -> DDPMUNet:
    """Make the paper's network (DDPM, appendix B) in the sizes of a configuration.

    Args:
        config: the `model_config` section.
    """
    return DDPMUNet(**network_arguments(config))


def network_arguments(config: ModelConfig) -> dict[str, Any]:
    """The arguments of `DDPMUNet` for the network of a configuration.

    Args:
        config: the `model_config` section.
    """
    levels = range(len(config.channel_multipliers))
    attention = [level in config.attention_levels for level in levels]
    arguments: dict[str, Any] = {
        "sample_size": config.image_size,
        "in_channels": config.image_channels,
        "out_channels": config.output_channels,
        "block_out_channels": config.block_out_channels,
        "down_block_types": tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        "up_block_types": tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
        "mid_block_type": config.mid_block_type,
        "layers_per_block": config.num_res_blocks,
        "attention_head_dim": config.attention_head_dim,
        "dropout": config.dropout,
        "norm_num_groups": config.norm_groups,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        # one more than there are classes: the last stands for no class, which classifier-free guidance needs
        "num_class_embeds": None if config.num_classes is None else config.num_classes + 1,
        "num_train_timesteps": config.time_steps,
        "initialization": config.initialization,
    }
    return arguments | config.unet_arguments
