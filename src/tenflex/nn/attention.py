"""Attention whose projections are layers of their own, so that each can be replaced."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any, TypeAlias, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.nn.low_rank import linear_with, parameter
from tenflex.surgery.fused import call_layers_
from tenflex.surgery.hooks import hooks_of
from tenflex.surgery.paths import ancestors, get_module, set_module_
from tenflex.surgery.reach import reachable
from tenflex.surgery.twin import duplicate


class Attention(nn.Module):
    """What `torch.nn.MultiheadAttention` computes, by four linear layers that are called: `q_proj` to `out_proj`.

    PyTorch's own keeps three of them in one parameter and calls none, so that nothing can be put in their places. Its
    arguments and what it returns are the same, up to rounding. The layers may be exchanged for any other modules.

    Args:
        attention: What it is made of. Its first three projections are copied, with the dtype, device and
            `requires_grad` of their parameters; its last one is taken as it is.
        known: Parameters that were made of parts of others, so that shared ones stay shared; more are put in, in place.

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

    bias_k = bias_v = None
    add_zero_attn = False

    def __init__(self, attention: nn.MultiheadAttention, known: dict[Any, nn.Parameter] | None = None) -> None:
        super().__init__()
        if (appends := appended(attention)) is not None:
            raise ValueError(f"expected an attention without {appends}, which are not linear in its inputs: leave it")
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.dropout, self.batch_first = attention.dropout, attention.batch_first
        self.kdim, self.vdim = attention.kdim, attention.vdim
        known = {} if known is None else known
        self.q_proj, self.k_proj, self.v_proj = (
            linear_with(_parameter(weight, known), None if bias is None else _parameter(bias, known))
            for weight, bias in zip(_weights(attention), _biases(attention), strict=True)
        )
        self.out_proj = attention.out_proj
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

        `is_causal` is but a hint, as there: it is the mask that counts.

        Raises:
            TypeError: if a mask is neither of truth values nor of floating-point numbers.
            ValueError: if a mask has another shape than the positions, or keys come in another number than queries.
            RuntimeError: if the hint is given without its mask.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("expected the attn_mask that is_causal=True speaks of, got None: pass it, too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (one.unsqueeze(0) for one in (query, key, value))
        elif not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.mT  # in this order nothing passes half precision
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

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """What is added to the scores, `(N or 1, h or 1, L or 1, S)`; None where nothing is."""
        (count, _, length, _), (others, _, keys, _) = q.shape, k.shape
        if count != others:
            raise ValueError(f"expected keys for {count} sequences, as queries, got {others}")
        if attention is not None:
            _require_mask("attn_mask", attention, ((length, keys), (count * self.num_heads, length, keys)))
            attention = _added(attention, q)
            attention = attention[None, None] if attention.dim() == 2 else attention.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            _require_mask("key_padding_mask", padding, ((count, keys), *(((keys,),) if count == 1 else ())))
            padding = _added(padding, q).view(count, 1, 1, keys)
        if attention is None or padding is None:
            return padding if attention is None else attention
        return attention + padding

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load the weights of `torch.nn.MultiheadAttention`, too, whose first three projections are one parameter."""
        split_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def split_(state: MutableMapping[str, Any], prefix: str) -> None:
    """Exchange weights of `torch.nn.MultiheadAttention` for those of the projections, in place."""
    for kind in ("weight", "bias"):
        whole = state.pop(f"{prefix}in_proj_{kind}", None)
        parts = (None, None, None) if whole is None else whole.chunk(3)
        for name, part in zip("qkv", parts, strict=True):
            alone = state.pop(f"{prefix}{name}_proj_{kind}", part)
            if alone is not None:
                state[f"{prefix}{name}_proj.{kind}"] = alone


def opened(model: nn.Module) -> nn.Module:
    """A copy of a network with its `nn.MultiheadAttention` as `Attention`: what its projections do can be made smaller.

    Without it a budget makes smaller only what lies between the attentions of a network: `inspect` and `compress` find
    no layers in PyTorch's own. The copy is what is compressed, what a result is compared with, and what is passed to
    `Compression.load` as the original. Subclasses, and attention with appended biases or zeros, with hooks or with a
    `forward` of its own stay as they are. The fast path of `nn.TransformerEncoder` for padded inputs, which reads the
    parameters of its layers, is not taken; what it gives at padding stays.

    Args:
        model: The network; it is not changed.

    Returns:
        The copy; it computes the same, up to rounding, and loads the network's weights.

    Raises:
        ValueError: if an attention is also kept elsewhere than as a module, as in a list, where it would stay.

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
    found = {name: one for name, one in new.named_modules(remove_duplicate=False) if is_openable(one)}
    known = dict[Any, nn.Parameter]()
    made = {one: Attention(one, known) for one in dict.fromkeys(found.values())}
    for name, one in found.items():
        for outer in ancestors(name):
            if isinstance(encoder := get_module(new, outer), nn.TransformerEncoder):
                call_layers_(encoder)
        new = set_module_(new, name, made[one])
    left = next((name for name, one in found.items() if any(one is other for other in reachable(new))), None)
    if left is not None:
        raise ValueError(
            f"expected attention that is kept as a module alone, but {left!r} is also kept in a list or another "
            f"attribute, where it would stay: let its user go by the module's name"
        )
    return new


def is_openable(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is PyTorch's attention, nothing more."""
    if type(module) is not nn.MultiheadAttention or "forward" in vars(module):
        return False
    return appended(module) is None and not any(hooks_of(module))


def appended(attention: nn.MultiheadAttention) -> str | None:
    """What an attention appends to keys and values; None for nothing."""
    if attention.bias_k is not None:
        return "appended biases (add_bias_kv)"
    return "appended zeros (add_zero_attn)" if attention.add_zero_attn else None


Part: TypeAlias = tuple[nn.Parameter, int | None]
"""A parameter, and which third of it is meant; None for all of it."""


def _weights(attention: nn.MultiheadAttention) -> tuple[Part, ...]:
    whole: nn.Parameter | None = attention.in_proj_weight
    apart = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
    return tuple((apart[k], None) if whole is None else (whole, k) for k in range(3))


def _biases(attention: nn.MultiheadAttention) -> tuple[Part | None, ...]:
    whole = attention.in_proj_bias
    return tuple(None if whole is None else (whole, third) for third in range(3))


def _parameter(part: Part, known: dict[Any, nn.Parameter]) -> nn.Parameter:
    """A third of a parameter as one of its own, the same one whenever it is asked for."""
    whole, third = part
    values = whole if third is None else whole.chunk(3)[third]
    return known.setdefault((id(whole), third), parameter(values, whole))


def _require_mask(name: str, mask: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} must be of truth values or floating-point numbers, got {mask.dtype}: take .bool()")
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"{name} must have the shape {' or '.join(map(str, shapes))}, got {tuple(mask.shape)}")


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """What a mask adds to scores: nothing, or minus infinity where it is true."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
    return mask.to(like.dtype)
