"""Any number of flexible layers as a set of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.shown import Shown

LinearMap = tuple[Tensor, ...]
"""A linear map that acts from the right, `x @ M`, whole or as a product: `(M,)` or `(M1, M2)`."""


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Shown):
    r"""The activations of one layer, :math:`g_k(t) = \sum_j c_{kj} \phi_j(t)`, and what is added before them.

    Args:
        coefficients: C, `(r, d)`.
        shift: a, `(r,)`; brings what arrives at each node to the interval of the basis.
        basis: The functions that C combines.
    """

    coefficients: Float[Tensor, "r d"]
    shift: Float[Tensor, " r"]
    basis: Basis

    def values(self, t: Float[Tensor, "S r"]) -> Float[Tensor, "S r"]:
        """The activations at `t`, the shift being part of it."""
        return self.basis.combine(t, self.coefficients)

    def curves(self, t: Float[Tensor, "S r"]) -> tuple[Tensor, Tensor, Tensor]:
        """The activations with their first and second derivatives."""
        return self.basis.curves(t, self.coefficients)


@dataclass(frozen=True, eq=False, repr=False)
class Factors(Shown):
    r"""L flexible layers, :math:`f(x) \approx W g_L(\cdots U_1^\top g_1(V^\top x + a_1) + a_2 \cdots) + b`.

    Every node has an activation of its own. The Jacobians :math:`W D_L U_{L-1}^\top \cdots D_1 V^\top`, with
    :math:`D_l` the diagonal matrices of the slopes, have the structure of a CPD for one layer, of a ParaTuck-2
    decomposition for two and of a ParaTuck-L decomposition for L. The linear maps at both ends may be stored as
    products of two thin matrices, `V = B A` and `W = D E`.

    References:
        De Jonghe, Usevich, Dreesen, Ishteva, "Tensor-based multi-layer decoupling", 2026,
        https://arxiv.org/abs/2604.10858

    Args:
        maps: L + 1 linear maps that act from the right: V `(m, r1)`, then `(r1, r2)`, ..., and the transpose of W,
            `(rL, n)`; each a tuple of one matrix, or of the two whose product it is.
        activations: Of each layer.
        bias: b, `(n,)`.

    Example:
        >>> squares = Activations(torch.tensor([[0.0, 1.0]]), torch.zeros(1), Monomial(2))
        >>> layer = Factors.single(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]]), squares, torch.zeros(1))
        >>> layer.outputs(torch.tensor([[1.0, 1.0]])), layer.ranks
        (tensor([[27.]]), (1,))
    """

    maps: tuple[LinearMap, ...]
    activations: tuple[Activations, ...]
    bias: Float[Tensor, " n"]

    @classmethod
    def single(
        cls,
        V: Float[Tensor, "m r"] | LinearMap,
        W: Float[Tensor, "n r"] | LinearMap,
        activations: Activations,
        bias: Float[Tensor, " n"],
    ) -> Factors:
        """One layer from V and W as they are written, each a matrix or the two of a product, `(B, A)` and `(D, E)`."""
        inner, outer = ((one,) if isinstance(one, Tensor) else tuple(one) for one in (V, W))
        return cls((inner, transposed(outer)), (activations,), bias)

    @property
    def V(self) -> Float[Tensor, "m r1"]:
        """The input map; its column k is the direction of node k of the first layer."""
        return self.map(0)

    @property
    def W(self) -> Float[Tensor, "n rL"]:
        """The output map; its column k is where node k of the last layer acts."""
        return self.map(-1).mT

    @property
    def only(self) -> Activations:
        """The activations of the only layer; ValueError if there are several."""
        return one_layer(self, "expected").activations[0]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The number of nodes of each layer."""
        return tuple(len(one.shift) for one in self.activations)

    def map(self, k: int) -> Float[Tensor, "p q"]:
        """Linear map number k, multiplied out."""
        return reduce(torch.matmul, self.maps[k])

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that is solved for, in a fixed order: all but the bias, whose best value follows from the rest.

        The maps, then all shifts, then all coefficients.
        """
        maps = (one for whole in self.maps for one in whole)
        return (*maps, *(one.shift for one in self.activations), *(one.coefficients for one in self.activations))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Factors:
        """The layers with these in the place of `tensors()`."""
        rest = iter(tensors)
        maps = tuple(tuple(next(rest) for _ in one) for one in self.maps)
        shifts = [next(rest) for _ in self.activations]
        settled = zip(self.activations, shifts, rest, strict=True)
        return replace(self, maps=maps, activations=tuple(Activations(C, a, one.basis) for one, a, C in settled))

    def flat(self) -> Float[Tensor, " p"]:
        """All of `tensors()` in one vector."""
        return torch.cat([one.flatten() for one in self.tensors()])

    def with_flat(self, vector: Float[Tensor, " p"]) -> Factors:
        """The layers with these numbers."""
        shapes = self.tensors()
        pieces = vector.split([one.numel() for one in shapes])
        return self.with_tensors([piece.view(one.shape) for piece, one in zip(pieces, shapes, strict=True)])

    def full(self) -> Factors:
        """The same layers with products of two matrices multiplied out."""
        return replace(self, maps=tuple((self.map(k),) for k in range(len(self.maps))))

    def with_map(self, k: int, *matrices: Tensor) -> Factors:
        """The layers with another linear map number k."""
        place = range(len(self.maps))[k]
        return replace(self, maps=(*self.maps[:place], matrices, *self.maps[place + 1 :]))

    def with_activations(self, k: int, **changes: object) -> Factors:
        """The layers with other `coefficients`, `shift` or `basis` in layer k."""
        place = range(len(self.activations))[k]
        parts = list(self.activations)
        parts[place] = replace(parts[place], **changes)  # type: ignore[arg-type]
        return replace(self, activations=tuple(parts))

    def shifted(self, by: Float[Tensor, " r1"]) -> Factors:
        """The layers with something added to what arrives at the activations of the first."""
        return self.with_activations(0, shift=self.activations[0].shift + by)

    def balanced(self) -> Factors:
        """The same layers with the last coefficients and the columns of W of equal norm, which is a free choice."""
        W, coefficients = equal_sizes(self.W, self.activations[-1].coefficients)
        return self.with_map(-1, W.mT).with_activations(-1, coefficients=coefficients)

    def arguments(self, inputs: Float[Tensor, "S m"]) -> tuple[Float[Tensor, "S r"], ...]:
        """What arrives at the activations of each layer: `V^T x + a_1`, and so on."""
        found: list[Tensor] = []
        x = inputs
        for maps, one in zip(self.maps, self.activations, strict=False):
            if found:
                x = self.activations[len(found) - 1].values(found[-1])
            found.append(reduce(torch.matmul, maps, x) + one.shift)
        return tuple(found)

    def outputs(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
        """The layers themselves."""
        return self.activations[-1].values(self.arguments(inputs)[-1]) @ self.map(-1) + self.bias

    def slopes(self, inputs: Float[Tensor, "S m"]) -> tuple[Float[Tensor, "S r"], ...]:
        """The slopes of all activations at the samples, layer by layer: the diagonals of the D."""
        found = zip(self.activations, self.arguments(inputs), strict=True)
        return tuple(one.curves(t)[1] for one, t in found)

    def upstream(self, slopes: Sequence[Float[Tensor, "S r"]], k: int = 0) -> Float[Tensor, "S n r"]:
        """`W D_L ... D_k`: how the outputs move with what arrives at the activations of layer k."""
        A = self.W * slopes[-1][:, None]
        for layer in range(len(slopes) - 2, k - 1, -1):
            A = (A @ self.map(layer + 1).mT) * slopes[layer][:, None]
        return A

    def jacobians(self, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n m"]:
        """The Jacobians, in full: `S n m` numbers."""
        return self.upstream(self.slopes(inputs)) @ self.V.mT

    def views(self, inputs: Float[Tensor, "S m"], directions: Float[Tensor, "S k n"]) -> Float[Tensor, "S k m"]:
        """Products `J_s^T u` of the Jacobians with combinations u of the outputs."""
        return self.along(self.slopes(inputs), directions) @ self.V.mT

    def along(self, slopes: Sequence[Float[Tensor, "S r"]], directions: Float[Tensor, "S k n"]) -> Tensor:
        """`D_1 ... D_L W^T u`: how combinations u of the outputs move with what arrives at the first activations."""
        A = (directions @ self.W) * slopes[-1][:, None]
        for layer in range(len(slopes) - 2, -1, -1):
            A = (A @ self.map(layer + 1).mT) * slopes[layer][:, None]
        return A

    def stored_numbers(self) -> int:
        """The numbers that a file keeps: matrices, coefficients, shifts, bias, and knots that are not even."""
        own = sum(len(one.shift) * one.basis.stored_per_node for one in self.activations)
        return sum(one.numel() for one in (*self.tensors(), self.bias)) + own


def transposed(maps: LinearMap) -> LinearMap:
    """The factors of the transpose of a product."""
    return tuple(one.mT for one in reversed(maps))


def equal_sizes(
    W: Float[Tensor, "n r"], coefficients: Float[Tensor, "r d"]
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r d"]]:
    """Coefficients and columns of W of equal norm with the same products; those of dead nodes stay."""
    size_w, size_c = W.norm(dim=0), coefficients.norm(dim=1)
    alive = (size_w > 0) & (size_c > 0)
    ratio = torch.where(alive, size_w / size_c, torch.ones_like(size_w)).nan_to_num(1.0).sqrt()
    return W / ratio, coefficients * ratio[:, None]


def one_layer(factors: Factors, verb: str) -> Factors:
    """The factors, if they are those of one layer.

    Raises:
        ValueError: if they are those of several; `verb` says what cannot be done with them.
    """
    if len(factors.activations) > 1:
        sizes = " and ".join(map(str, factors.ranks))
        raise ValueError(f"{verb} one layer, got {len(factors.ranks)} of {sizes} nodes")
    return factors


def layer_size(
    inputs: int,
    outputs: int,
    ranks: Sequence[int],
    bases: Sequence[Basis],
    factor: int | None = None,
    output_factor: int | None = None,
) -> int:
    """The numbers that flexible layers of a size store: `Factors.stored_numbers` before there are any factors.

    Args:
        inputs: m.
        outputs: n.
        ranks: The number of nodes of each layer.
        bases: The functions of each layer.
        factor: The width of `V = B A`, or None.
        output_factor: The width of `W = D E`, or None.
    """
    ends = ((inputs, ranks[0], factor), (ranks[-1], outputs, output_factor))
    linear = sum(before * after if width is None else width * (before + after) for before, after, width in ends)
    between = sum(before * after for before, after in pairwise(ranks))
    nodes = sum(r * (1 + basis.size + basis.stored_per_node) for r, basis in zip(ranks, bases, strict=True))
    return linear + between + nodes + outputs
