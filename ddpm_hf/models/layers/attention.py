"""Self-attention over the positions of a feature map."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SelfAttentionBlock(nn.Module):
    """x + attention(norm(x)) over all height * width positions (DDPM, appendix B).

    Args:
        channels: channels in and out.
        head_dim: channels of one head, a divisor of channels; None is a single head, as in the paper.
        norm_groups: groups of the normalisation.
        norm_eps: added to its variance.
    """

    _from_deprecated_attn_block = True  # lets ModelMixin read the key names of 2022: query, key, value, proj_attn

    def __init__(
        self, channels: int, head_dim: int | None = None, norm_groups: int = 32, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.head_dim = channels if head_dim is None else head_dim
        self.group_norm = nn.GroupNorm(norm_groups, channels, norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(
        self, hidden: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        height, width = hidden.shape[-2:]
        tokens = self.group_norm(hidden).flatten(2).transpose(1, 2)  # batch, positions, channels
        query, key, value = (
            projection(tokens).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # batch, heads, positions, head_dim
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        out = self.to_out[0](attended.transpose(1, 2).flatten(2))
        return hidden + out.transpose(1, 2).unflatten(2, (height, width))
