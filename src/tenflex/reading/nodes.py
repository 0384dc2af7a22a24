"""The nodes of a layer in the form in which people read them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.checks import require_finite, require_floating
from tenflex.factors import Activations, Factors

ALIKE = 1e-6
"""Entries of a column that differ relatively by less are equally large, and the first of them is taken."""


@dataclass(frozen=True, eq=False)
class Nodes:
    r"""The nodes of a layer, each in its one canonical form.

    .. math:: f(x) = b + \sum_k w_k \, g_k(t_k), \quad t_k = v_k \cdot x, \quad g_k(0) = 0, \quad
        g_k(t) = \sum_j c_{kj} \phi_j(\alpha_k t + a_k) - \text{const}

    Scale and sign can move between a column and its activation, and constants between activations and the bias.
    Here the largest entry of every column of V and of W is 1, and the others are at most 1 in size: an argument reads
    `x1 - 0.5 x2`, and an activation has the unit of the output that it moves most. (Columns of unit norm would read
    `0.894 x1 - 0.447 x2`.) Node k is column k of the layer's V and W, as everywhere else; `order` ranks the nodes.

    Args:
        V: The directions, `(m, r)`.
        W: Where the nodes act, `(n, r)`.
        bias: b, the outputs at `x = 0` if the activations go on as they are, `(n,)`.
        scales: alpha, `(r,)`; from t to what the basis is given.
        shifts: a, `(r,)`.
        coefficients: C, `(r, d)`.
        basis: The functions that C combines.
        sizes: The norm of each node's contribution :math:`w_k g_k(t_k)` over the samples, less its mean, relative to
            that of all outputs of the layer, `(r,)`. Nodes that work against each other may be larger than 1.
        deviations: The standard deviations of the inputs over the samples, `(m,)`.
    """

    V: Float[Tensor, "m r"]
    W: Float[Tensor, "n r"]
    bias: Float[Tensor, " n"]
    scales: Float[Tensor, " r"]
    shifts: Float[Tensor, " r"]
    coefficients: Float[Tensor, "r d"]
    basis: Basis
    sizes: Float[Tensor, " r"]
    deviations: Float[Tensor, " m"]

    @property
    def order(self) -> tuple[int, ...]:
        """The nodes by their sizes, the largest first."""
        return tuple(self.sizes.argsort(descending=True, stable=True).tolist())

    def arguments(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S r"]:
        """The arguments `t_k = v_k . x`."""
        return inputs.to(self.V) @ self.V

    def activations(self, t: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The activations `g_k(t_k)`."""
        return self.basis.combine(t * self.scales + self.shifts, self.coefficients) - self.constants

    @property
    def constants(self) -> Float[Tensor, " r"]:
        """What is taken from the combined functions so that `g_k(0) = 0`."""
        return self.basis.combine(self.shifts[None], self.coefficients)[0]

    def outputs(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
        """The layer itself."""
        return self.bias + self.activations(self.arguments(inputs)) @ self.W.mT


@torch.no_grad()
def canonical_layers(factors: Factors, inputs: Float[Tensor, "S m"]) -> tuple[Nodes, ...]:
    """The nodes of every layer in canonical form, in float64 on the CPU.

    All layers but the last have the outputs `h_l(t_l)` themselves (their W is the identity), which are the inputs of
    the next; the largest entry is then 1 for every node in the map to it.

    Args:
        factors: The layers.
        inputs: Inputs over which the sizes of the nodes are measured.

    Raises:
        TypeError: if the inputs are not floating-point numbers.
        ValueError: if they do not fit the layer, or a number is NaN or infinite.

    Example:
        >>> V, W = torch.tensor([[2.0], [-4.0]]), torch.tensor([[3.0]])
        >>> square = Activations(torch.tensor([[0.0, 1.0]]), torch.zeros(1), Monomial(2))
        >>> layer = Factors.single(V, W, square, torch.zeros(1))
        >>> [nodes] = canonical_layers(layer, torch.randn(9, 2))
        >>> nodes.V.mT.tolist(), nodes.W.tolist(), nodes.scales.tolist(), nodes.coefficients.tolist()
        ([[-0.5, 1.0]], [[1.0]], [-4.0], [[0.0, 3.0]])
    """
    require_floating("inputs", inputs)
    require_finite("inputs", inputs)
    if inputs.ndim != 2 or inputs.shape[1] != len(factors.V):
        raise ValueError(f"inputs must have the shape (S, {len(factors.V)}) for this layer, got {tuple(inputs.shape)}")
    x, found = _double(inputs), []
    V, shift = factors.V, factors.activations[0].shift
    for k, one in enumerate(factors.activations[:-1]):
        behind = factors.activations[k + 1].shift
        nodes = _canonical(V, replace(one, shift=shift), factors.map(k + 1).mT, behind, x)
        rank = len(nodes.sizes)
        found.append(replace(nodes, W=x.new_ones(rank).diag(), bias=x.new_zeros(rank)))
        x, V, shift = nodes.activations(nodes.arguments(x)), nodes.W.mT, nodes.bias
    last = replace(factors.activations[-1], shift=shift)
    return (*found, _canonical(V, last, factors.W, factors.bias, x))


def _canonical(V: Tensor, one: Activations, W: Tensor, bias: Tensor, x: Float[Tensor, "S m"]) -> Nodes:
    V, W, C, a, b = map(_double, (V, W, one.coefficients, one.shift, bias))
    scales, gains = leading_entries(V), leading_entries(W)
    V, W, C = V / scales, W / gains, gains[:, None] * C
    sizes = contributions(one.basis.combine((x @ V) * scales + a, C), W)
    bias = b + W @ one.basis.combine(a[None], C)[0]
    return Nodes(V, W, bias, scales, a, C, one.basis, sizes, x.std(0, correction=0))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def leading_entries(columns: Float[Tensor, "m r"]) -> Float[Tensor, " r"]:
    """The largest entry of each column in size, with its sign; 1 for columns of zeros."""
    sizes = columns.abs()
    first = (sizes >= (1 - ALIKE) * sizes.amax(0)).int().argmax(0)
    entries = columns.gather(0, first[None])[0]
    return torch.where(entries == 0, torch.ones_like(entries), entries)


def contributions(G: Float[Tensor, "S r"], W: Float[Tensor, "n r"]) -> Float[Tensor, " r"]:
    """The norms of the centred contributions of the nodes, relative to that of their sum."""
    centred = G - G.mean(0)
    return centred.norm(dim=0) * W.norm(dim=0) / positive((centred @ W.mT).norm())
