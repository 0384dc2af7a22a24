"""Attention whose projections are layers of their own, so that each can be replaced."""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.nn.low_rank import make_linear
from tenflex.surgery.hooks import hooks_of
from tenflex.surgery.paths import set_module_
from tenflex.surgery.twin import duplicate


class Attention(nn.Module):
    """What `torch.nn.MultiheadAttention` computes, by four linear layers that are called: `q_proj` to `out_proj`.

    PyTorch's own keeps three of them in one parameter and calls none, so that nothing can be put in their places. Its
    arguments and what it returns are the same, up to rounding. The layers may be exchanged for any other modules.

    Args:
        attention: What it is made of; its parameters are copied, with their dtype, device and `requires_grad`.

    Raises:
        ValueError: if the attention has biases or zeros that are appended to keys and values.

    Example:
        >>> from tenflex.nn import Attention
        >>> x = torch.ones(2, 5, 8)
        >>> found, weights = Attention(torch.nn.MultiheadAttention(8, 2, batch_first=True))(x, x, x)
        >>> found.shape, weights.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5, 5]))
    """

    in_proj_weight: None = None
    in_proj_bias: None = None
    """`nn.TransformerEncoderLayer` looks for them, and calls the module where there are none."""

    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if (appends := appended(attention)) is not None:
            raise ValueError(f"expected an attention without {appends}, which are not linear in its inputs: leave it")
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        like = attention.out_proj.weight
        self.q_proj, self.k_proj, self.v_proj = (
            make_linear(weight, bias, like)
            for weight, bias in zip(_weights(attention), _biases(attention), strict=True)
        )
        self.out_proj = duplicate(attention.out_proj)
        self.train(attention.training)

    def forward(
        self,
        query: Float[Tensor, "*batch L m"],
        key: Float[Tensor, "*batch S k"],
        value: Float[Tensor, "*batch S v"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "*batch L m"], Tensor | None]:
        """As that of `torch.nn.MultiheadAttention`; positions come first where `batch_first` is not set.

        Raises:
            RuntimeError: if `is_causal`, which is but a hint, is given without its mask.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("expected the attn_mask that is_causal=True speaks of, got None: pass it, too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
        elif not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            found = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(found.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), weights
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(self, x: Float[Tensor, "N L m"]) -> Float[Tensor, "N h L d"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the scores, `(N or 1, h or 1, L or 1, S)`; None where nothing is."""
        if attention is not None:
            attention = _added(attention, like)
            attention = attention[None, None] if attention.dim() == 2 else attention.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = _added(padding, like)
            padding = (padding if padding.dim() == 2 else padding[None])[:, None, None]
        if attention is None or padding is None:
            return padding if attention is None else attention
        return attention + padding


def opened(model: nn.Module) -> nn.Module:
    """A copy of a network with its `nn.MultiheadAttention` as `Attention`: what its projections do can be made smaller.

    Without it a budget makes smaller only what lies between the attentions of a network: `inspect` and `compress` find
    no layers in PyTorch's own. The copy is what is compressed, what a result is compared with, and what is passed to
    `Compression.load` as the original. Attention with appended biases or zeros, and subclasses, stay as they are; the
    fast path of `nn.TransformerEncoder` for padded inputs, which reads the parameters of its layers, is not taken.

    Args:
        model: The network; it is not changed.

    Returns:
        The copy; it computes the same, up to rounding.

    Example:
        >>> from tenflex.nn import opened
        >>> encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> open_encoder = opened(encoder)
        >>> open_encoder.self_attn.q_proj
        Linear(in_features=8, out_features=8, bias=True)
        >>> x = torch.randn(3, 5, 8)
        >>> torch.allclose(open_encoder(x), encoder(x), atol=1e-5)
        True
    """
    new = duplicate(model)
    done: dict[nn.Module, Attention] = {}
    for name, module in list(new.named_modules(remove_duplicate=False)):
        if is_openable(module):
            new = set_module_(new, name, done.setdefault(module, Attention(module)))
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return new


def is_openable(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is PyTorch's attention, nothing more."""
    return type(module) is nn.MultiheadAttention and appended(module) is None and not any(hooks_of(module))


def appended(attention: nn.MultiheadAttention) -> str | None:
    """What an attention appends to keys and values; None for nothing."""
    if attention.bias_k is not None:
        return "appended biases (add_bias_kv)"
    return "appended zeros (add_zero_attn)" if attention.add_zero_attn else None


def _weights(attention: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    apart = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    return apart if attention.in_proj_weight is None else attention.in_proj_weight.chunk(3)


def _biases(attention: nn.MultiheadAttention) -> tuple[Tensor | None, ...]:
    return (None, None, None) if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """What a mask adds to scores: nothing, or minus infinity where it is true."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
    return mask.to(like.dtype)
