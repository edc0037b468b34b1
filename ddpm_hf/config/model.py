"""`model_config`: the network and the diffusion process that it is trained for."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import Field, model_validator
from typing_extensions import Self

from ddpm_hf.config.section import NUMBER, EmbeddingChannels, Fraction, NonNegativeInt, PositiveInt, Section

PredictionType = Literal["epsilon", "sample", "v_prediction"]
"""What the network predicts, in diffusers' names: the noise, x_0, or v."""

MAX_TIME_STEPS = 1_000_000
"""Largest T; the tables of a schedule have a value for each step."""


FURTHER_ARGUMENTS = (
    "block_out_channels",
    "down_block_types",
    "up_block_types",
    "downsample_padding",
    "norm_eps",
    "freq_shift",
    "flip_sin_to_cos",
    "time_embedding_dim",
    "attn_norm_num_groups",
    "add_attention",
    "center_input_sample",
)
"""What `unet_arguments` may hold."""


class ModelConfig(Section):
    """The U-Net of DDPM (appendix B) and its noise schedule."""

    pretrained: str | None = None
    """Begin with the weights of this pipeline, ours or of diffusers: a folder, a run, or USER/REPO[@REVISION] on the
    Hub. Its architecture, schedule and prediction are used; options below need not be given, and must not contradict
    it. image_size, image_channels, num_classes, dropout and a fixed variance_type may differ."""
    pretrained_hash: str | None = None
    """Hash of those weights; the run fills it in."""
    time_steps: Annotated[int, Ge(2), Le(MAX_TIME_STEPS), NUMBER] = 1000
    """T, the number of steps from image to noise."""
    beta_schedule: Literal["linear", "cosine"] = "linear"
    """How the noise grows: linear from beta_start to beta_end (DDPM), or cosine (improved DDPM, eq. 17)."""
    beta_start: Fraction = 1e-4
    """beta_1 of the linear schedule."""
    beta_end: Fraction = 0.02
    """beta_T of the linear schedule."""
    rescale_betas: bool = False
    """Multiply linear betas by 1000 / time_steps, so that fewer steps end in noise as the paper's 1000 do."""
    prediction_type: PredictionType = "epsilon"
    """What the network predicts: the noise, the image, or v (progressive distillation, appendix D)."""
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_large"
    """Variance of a sampling step: beta_tilde_t, better for photographs at few steps; beta_t as in the paper; or
    between the two as the network predicts, with twice the output channels (improved DDPM, eq. 15)."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32
    """Side of square images, or their height and width, in pixels; multiples of 2 ** (levels - 1)."""
    image_channels: Literal[1, 3] = 3
    """1 for grayscale, 3 for colour; images are converted."""
    hidden_channels: EmbeddingChannels = 128
    """Channels at full resolution, at least 4; a multiple of norm_groups."""
    channel_multipliers: Annotated[tuple[PositiveInt, ...], Len(min_length=1)] = (1, 1, 2, 2, 4)
    """One per level, finest first: level i has hidden_channels * channel_multipliers[i] channels; each level after the
    first halves the resolution."""
    attention_levels: tuple[NonNegativeInt, ...] = (3,)
    """Levels with self-attention after every residual block; 0 is the finest."""
    attention_head_dim: PositiveInt | None = None
    """Channels of one attention head, of which there are channels // attention_head_dim; null: a single head, as in the
    paper."""
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    """The blocks between the way down and the way up, two residual ones around attention; null: none."""
    num_res_blocks: PositiveInt = 3
    """Residual blocks per level on the way down; one more on the way up."""
    dropout: Fraction = 0.1
    """Probability of dropping an activation inside a residual block."""
    norm_groups: PositiveInt = 32
    """Groups of each group normalisation."""
    num_classes: PositiveInt | None = None
    """Classes of a class-conditional model; null: an unconditional one, which ignores labels."""
    initialization: Literal["ddpm", "pytorch"] = "ddpm"
    """The paper's initialisation (last layers start at zero), or PyTorch's default."""
    unet_arguments: dict[str, Any] = Field(default={})
    """Further arguments of the network, by the names of diffusers' UNet2DModel, such as norm_eps: 1e-5; those of a
    pretrained network are filled in."""

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.hidden_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def output_channels(self) -> int:
        """Channels of the network's output: the image's, and as many again for a learned variance."""
        return self.image_channels * (2 if self.variance_type == "learned_range" else 1)

    @property
    def is_complete(self) -> bool:
        """Whether the options are those of the run: with `pretrained`, that they have been read from its pipeline."""
        return self.pretrained is None or self.pretrained_hash is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.is_complete:
            return self
        unknown = sorted(set(self.unet_arguments) - set(FURTHER_ARGUMENTS))
        levels, channels, head_dim = len(self.channel_multipliers), self.hidden_channels, self.attention_head_dim
        factor, is_linear = 2 ** (levels - 1), self.beta_schedule == "linear"
        rescaled_end = self.beta_end * 1000 / self.time_steps
        with_attention = {level for level in self.attention_levels if level < levels}
        if self.mid_block_type is not None:
            with_attention.add(levels - 1)
        narrowest = min((self.block_out_channels[level] for level in with_attention), default=head_dim)
        return self.refuse(
            (unknown, "unet_arguments", f"only {', '.join(FURTHER_ARGUMENTS)}; not {', '.join(unknown)}"),
            (
                any(side % factor for side in self.sides),
                "image_size",
                f"a multiple of {factor}, since {levels} channel_multipliers halve it {levels - 1} times; or fewer "
                "channel_multipliers",
            ),
            (channels % self.norm_groups, "hidden_channels", f"a multiple of norm_groups ({self.norm_groups})"),
            (
                max(self.attention_levels, default=0) >= levels,
                "attention_levels",
                f"0 to {levels - 1}, the levels of channel_multipliers",
            ),
            (
                head_dim and narrowest and head_dim > narrowest,
                "attention_head_dim",
                f"1 to {narrowest}, the fewest channels that a block of attention has",
            ),
            (is_linear and self.beta_end <= self.beta_start, "beta_end", f"above beta_start ({self.beta_start})"),
            (
                self.rescale_betas and is_linear and rescaled_end >= 1,
                "rescale_betas",
                f"false, since beta_end * 1000 / time_steps is {rescaled_end:g} and must stay below 1",
            ),
        )
