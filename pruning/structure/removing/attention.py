"""Multi-head attention with fewer heads than its width has room for."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import StructureError


class PrunedAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` after heads were removed: the projections lead to `num_heads · head_dim` inner features.

    Its parameters keep their names. `take_over_` turns an attention module into one, in place; torch's own forward
    pass refuses inner and outer widths that differ.
    """

    @staticmethod
    def take_over_(module: nn.MultiheadAttention) -> None:
        """Change the class of `module`, whose projections have been sliced, if it lost heads or width."""
        outer, inner = module.out_proj.weight.shape
        if inner == module.num_heads * module.head_dim and outer == module.embed_dim:
            return
        module.num_heads = inner // module.head_dim
        module.embed_dim = outer
        module._qkv_same_embed_dim = False  # what torch's fused encoder layers ask before they take over
        module.__class__ = PrunedAttention

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse to be scripted; `torch.jit.script` calls this."""
        raise StructureError(
            "attention with fewer heads cannot be scripted: use torch.jit.trace, torch.export or torch.compile"
        )

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
        """Compute what `nn.MultiheadAttention.forward` computes, with arguments and outputs of the same shapes."""
        batched = query.dim() == 3
        if self.batch_first and batched:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        if not batched:
            query, key, value = (part.unsqueeze(1) for part in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if is_causal and attn_mask is None:
            attn_mask = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device).triu(1)
        output, weights = self._attend(query, key, value, key_padding_mask, attn_mask, need_weights)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return output.squeeze(1), weights
        return output.transpose(0, 1) if self.batch_first else output, weights

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs [length, batch, features], and on request attention weights [batch, heads, length, source]."""
        q, k, v = self._projected(query, key, value)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(1, k.shape[1], -1)])
            v = torch.cat([v, self.bias_v.expand(1, v.shape[1], -1)])
        q, k, v = (part.reshape(*part.shape[:2], -1, self.head_dim).permute(1, 2, 0, 3) for part in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(part, (0, 0, 0, 1)) for part in (k, v))
        bias = self._bias(padding, mask, k.shape[2] - key.shape[0], q.dtype)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout((scores if bias is None else scores + bias).softmax(-1), dropout)
            found = weights @ v
        else:  # as torch does, which gives zeros, not NaN, where all sources are masked
            found = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        return self.out_proj(found.permute(2, 0, 1, 3).flatten(2)), weights

    def _bias(self, padding: Tensor | None, mask: Tensor | None, added: int, dtype: torch.dtype) -> Tensor | None:
        """What both masks add to the scores, broadcast to [batch, heads, length, source with `added` ones]."""
        found: Tensor | None = None
        for given, by_example in ((mask, False), (padding, True)):
            if given is not None:
                part = F.pad(given, (0, added))
                part = part[:, None, None, :] if by_example else self._by_head(part)
                if part.dtype == torch.bool:
                    part = torch.zeros_like(part, dtype=dtype).masked_fill(part, -torch.inf)
                found = part if found is None else found + part
        return found

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        together: Any = self.in_proj_weight  # None where keys or values have widths of their own
        apart: Any = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        projections = apart if together is None else together.chunk(3)
        return [F.linear(x, w, b) for x, w, b in zip((query, key, value), projections, biases, strict=True)]

    def _by_head(self, mask: Tensor) -> Tensor:
        """[length, source], or one a head and example, first of the example's heads."""
        if mask.dim() > 2 and len(mask) % self.num_heads:
            raise ValueError(f"attn_mask: {len(mask)} masks, {self.num_heads} heads are left: give one for each")
        return mask if mask.dim() == 2 else mask.reshape(-1, self.num_heads, *mask.shape[1:])
