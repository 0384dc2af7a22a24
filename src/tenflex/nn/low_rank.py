"""A linear layer stored as two thin ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole


class ThinLinear(nn.Module):
    """A linear layer stored as two thin ones, `inner: m -> q` without a bias and `outer: q -> n` with one.

    It shows the product as its `weight`: PyTorch's fused transformer layer reads that instead of calling the layer.

    Args:
        inner: `(q, m)`.
        outer: `(n, q)`.
        bias: `(n,)`.
        like: A parameter whose dtype, device and `requires_grad` the new ones get.
    """

    def __init__(
        self, inner: Float[Tensor, "q m"], outer: Float[Tensor, "n q"], bias: Float[Tensor, " n"], like: Tensor
    ) -> None:
        super().__init__()
        self.inner = make_linear(inner, None, like)
        self.outer = make_linear(outer, bias, like)
        self.eval()

    def to_dict(self) -> dict[str, Any]:
        """The sizes that `from_dict` makes an empty layer of."""
        return {"inputs": self.inner.in_features, "rank": self.rank, "outputs": self.outer.out_features}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ThinLinear:
        """An empty layer of saved sizes.

        Raises:
            ValueError: if a size is missing, unknown or no whole number of at least 1.
        """
        if not isinstance(saved, Mapping) or set(saved) != {"inputs", "rank", "outputs"}:
            raise ValueError(f"a thin linear layer has the settings inputs, rank and outputs, got {saved!r}")
        for name, size in saved.items():
            require_whole(name, size, at_least=1)
        like = nn.Parameter(torch.empty(0))
        inner, outer = like.new_zeros(saved["rank"], saved["inputs"]), like.new_zeros(saved["outputs"], saved["rank"])
        return cls(inner, outer, like.new_zeros(saved["outputs"]), like)

    @property
    def rank(self) -> int:
        """The width between the two, q."""
        return self.inner.out_features

    @property
    def weight(self) -> Float[Tensor, "n m"]:
        """The product of the two weights."""
        return self.outer.weight @ self.inner.weight

    @property
    def bias(self) -> Float[Tensor, " n"]:
        """The bias."""
        return self.outer.bias

    def forward(self, input: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs, by way of q numbers."""
        return self.outer(self.inner(input))


def make_linear(weight: Float[Tensor, "n m"], bias: Float[Tensor, " n"] | None, like: Tensor) -> nn.Linear:
    """A linear layer in eval mode, with the dtype, device and `requires_grad` of `like`; draws no random numbers."""
    return linear_with(parameter(weight, like), None if bias is None else parameter(bias, like)).eval()


def linear_with(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer of these parameters; draws no random numbers."""
    n, m = weight.shape
    layer = nn.Linear(m, n, bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """`values` as a parameter of the kind of `like`."""
    return nn.Parameter(values.detach().to(like, copy=True).contiguous(), requires_grad=like.requires_grad)
