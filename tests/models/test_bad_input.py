"""A mistake gets a ValueError that names what is expected."""

import pytest
import torch

from ddpm_hf.models import DDPMUNet

TINY = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D",) * 3,
    "up_block_types": ("UpBlock2D",) * 3,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "num_train_timesteps": 1000,
}
UNCONDITIONAL = DDPMUNet(**TINY)
CLASSES = DDPMUNet(**TINY, num_class_embeds=10)
IMAGES, TIMES, LABELS = torch.zeros(4, 3, 8, 8), torch.arange(4), torch.arange(4)


@pytest.mark.parametrize(
    ("sample", "timestep", "message"),
    [
        (torch.zeros(4, 1, 8, 8), TIMES, r"\(batch, 3, height, width\), not \(4, 1, 8, 8\)"),
        (torch.zeros(3, 8, 8), TIMES, r"\(batch, 3, height, width\), not \(3, 8, 8\)"),
        (torch.zeros(4, 3, 8, 10), TIMES, "multiples of 4, not 8 and 10"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), TIMES, "floating point.*uint8"),
        (IMAGES, torch.arange(3), r"a number or have shape \(4,\), not \(3,\)"),
        (IMAGES, torch.zeros(4, 1), r"a number or have shape \(4,\), not \(4, 1\)"),
        (IMAGES, torch.tensor([0, 1, 2, 1000]), "0 to 999; it reaches from 0 to 1000"),
        (IMAGES, -1, "0 to 999; it reaches from -1"),
        (IMAGES, float("nan"), "0 to 999; it reaches from nan"),
        (IMAGES, TIMES > 2, "integer or real number, not torch.bool"),
    ],
)
def test_images_and_timesteps(sample: torch.Tensor, timestep, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNCONDITIONAL(sample, timestep)


@pytest.mark.parametrize(
    ("unet", "labels", "message"),
    [
        (UNCONDITIONAL, LABELS, "no classes: set num_class_embeds"),
        (CLASSES, None, r"missing: a tensor of shape \(4,\) with values 0 to 9"),
        (CLASSES, torch.arange(3), r"shape \(4,\), not \(3,\)"),
        (CLASSES, torch.tensor([0, 1, 2, 10]), "0 to 9; it reaches from 0 to 10"),
        (CLASSES, torch.zeros(4), "int32 or int64, not torch.float32"),
    ],
)
def test_class_labels(unet: DDPMUNet, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet(IMAGES, TIMES, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift must be 'default' .* not 'scale_shift'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional'"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None"),
        ({"downsample_type": "resnet"}, "downsample_type must be 'conv'"),
        ({"upsample_type": "resnet"}, "upsample_type must be 'conv'"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu' or 'swish'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type must be 'UNetMidBlock2D' or None"),
        ({"mid_block_scale_factor": 2}, "mid_block_scale_factor must be 1"),
        ({"downsample_padding": 2}, "downsample_padding must be 0 or 1"),
        ({"down_block_types": ("SkipDownBlock2D",) * 3}, "each of down_block_types must be 'DownBlock2D'"),
        ({"up_block_types": ("UpBlock2D",) * 2}, "up_block_types has 2 entries but block_out_channels has 3"),
        ({"norm_num_groups": 32}, r"block_out_channels \[16\] .* norm_num_groups=32"),
        ({"block_out_channels": (2, 4, 4), "norm_num_groups": 1, "freq_shift": 1}, "block_out_channels"),
        ({"attention_head_dim": 33}, r"attention_head_dim must be from 1 to the 32 channels"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDPMUNet(**TINY | change)
