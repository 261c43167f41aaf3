"""nn.MultiheadAttention whose heads no longer fill the width that it reads and writes.

Torch's own class ties heads times head size to its width in several places, so a layer that lost heads or parts of them becomes
one of this class: the same parameters under the same names, the same arguments.  Start reading at
`PrunedMultiheadAttention.forward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from graphprune.errors import UsageError

from .module_plan import HeadSizes

Tensor = Any


class PrunedMultiheadAttention(nn.MultiheadAttention):  # type: ignore[misc]
    """Attention whose heads, and their queries and values, have sizes of their own."""

    sizes: HeadSizes
    scale: float
    """Of the products of queries and keys: that of the head size before pruning."""

    @staticmethod
    def convert(layer: nn.MultiheadAttention, sizes: HeadSizes) -> None:
        """Make a layer one of this class, in place.  Raises UsageError for options that it does not have."""
        if layer.bias_k is not None or layer.add_zero_attn:
            raise UsageError("nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot lose heads in torch")
        if not isinstance(layer, PrunedMultiheadAttention):
            layer.scale = float(layer.head_dim**-0.5)
        layer.__class__ = PrunedMultiheadAttention
        layer.sizes, layer.num_heads = sizes, sizes.heads
        layer._qkv_same_embed_dim = False  # torch's encoder layers then leave their fused path, which assumes square weights

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention, batched or not: [B, L, E] (or [L, B, E] without batch_first)."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (each.unsqueeze(0) for each in (query, key, value))
        elif not self.batch_first:
            query, key, value = (each.transpose(0, 1) for each in (query, key, value))
        mask = self._mask(query, key_padding_mask, attn_mask, batched)
        projected = (F.linear(x, w, b) for x, w, b in zip((query, key, value), *self._projections(), strict=True))
        q, k, v = (x.unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2) for x in projected)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self.scale), None
        result = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return result.squeeze(0), None if weights is None else weights.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), weights

    def _projections(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The weights and biases of queries, keys and values."""
        query, value = self.sizes.heads * self.sizes.query, self.sizes.heads * self.sizes.value
        sizes = [query, query, value]
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.split(sizes))
        if self.in_proj_weight is None:
            return [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight], biases
        return list(self.in_proj_weight.split(sizes)), biases

    def _mask(self, query: Tensor, padding: Tensor | None, mask: Tensor | None, batched: bool) -> Tensor | None:
        """Both masks as one that is added to the scores: [B, heads, L, S], or fewer axes."""
        mask = _added(mask, query.dtype)
        if (
            mask is not None and mask.dim() == 3
        ):  # [B * heads before pruning, L, S]: only the same for all heads has a meaning left
            each = mask.unflatten(0, (query.shape[0], -1))
            if not bool((each == each[:, :1]).all()):
                raise UsageError("attn_mask differs from head to head, but heads of this layer were removed")
            mask = each[:, :1]
        padding = _added(padding, query.dtype)
        if padding is None:
            return mask
        padding = padding[:, None, None] if batched else padding[None, None, None]
        return padding if mask is None else mask + padding


def _added(mask: Tensor | None, dtype: Any) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
