"""Self-attention over the positions of a feature map."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch channels height width"]
Heads = Float[Tensor, "batch heads positions head_dim"]
AttentionFunction: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """softmax(Q K^T / sqrt(d)) V (Attention Is All You Need, eq. 1), whose kernels never store the scores of all pairs.

    Args:
        query: Q, what each position asks for.
        key: K, what each position offers.
        value: V, what each position gives.

    Returns:
        One row per position of the query.
    """
    return F.scaled_dot_product_attention(query, key, value)


class SelfAttentionBlock(nn.Module):
    """x + attention(norm(x)) over all height * width positions (DDPM, appendix B).

    Args:
        channels: channels in and out.
        head_dim: channels of one head, 1 to channels; None is a single head, as in the paper. There are
            channels // head_dim heads; where that leaves a rest, the projections have fewer channels than the block.
        norm_groups: groups of the normalisation.
        norm_eps: added to its variance.

    Raises:
        ValueError: if head_dim is not from 1 to channels.

    Attributes:
        processor: the function that attends, by default `attend`; see `DDPMUNet.set_attn_processor`.
    """

    _from_deprecated_attn_block = True  # lets ModelMixin translate OLD_NAMES in the files that it reads

    def __init__(
        self, channels: int, head_dim: int | None = None, norm_groups: int = 32, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        if head_dim is not None and not 1 <= head_dim <= channels:
            raise ValueError(
                f"attention_head_dim must be from 1 to the {channels} channels of the attention, not {head_dim}; "
                "None is a single head"
            )
        self.processor: AttentionFunction = attend
        self.head_dim = channels if head_dim is None else head_dim
        inner = channels // self.head_dim * self.head_dim
        self.group_norm = nn.GroupNorm(norm_groups, channels, norm_eps)
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, hidden: Map) -> Map:
        """Compute the block.

        Args:
            hidden: the features.

        Returns:
            The features with what each position attended to added.
        """
        height, width = hidden.shape[-2:]
        tokens = self.group_norm(hidden).flatten(2).transpose(1, 2)  # batch, positions, channels
        query, key, value = (
            projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # batch, heads, positions, head_dim
            for projected in (self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        )
        attended = self.processor(query, key, value).transpose(1, 2).flatten(2)  # batch, positions, inner channels
        return hidden + self.to_out[0](attended).transpose(1, 2).unflatten(2, (height, width))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for old, new in OLD_NAMES.items():
            for kind in ("weight", "bias"):
                if f"{prefix}{old}.{kind}" in state_dict:
                    state_dict[f"{prefix}{new}.{kind}"] = state_dict.pop(f"{prefix}{old}.{kind}")
        super()._load_from_state_dict(state_dict, prefix, *args)
