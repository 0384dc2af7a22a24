"""Bases around bases: what is asked of activations besides being sums of some functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import Basis


@dataclass(frozen=True)
class Wrapped(Basis):
    """A basis made of another one, on the same interval and for the same nodes.

    Args:
        basis: The basis inside.
    """

    basis: Basis

    @property
    def size(self) -> int:
        return self.basis.size

    @property
    def interval(self) -> tuple[float, float]:
        return self.basis.interval

    def place(self, t: Float[Tensor, "S r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        return self.basis.place(t)

    def pieces(self) -> tuple[Float[Tensor, "r_or_1 K"], int]:
        return self.basis.pieces()

    @property
    def nodes(self) -> int | None:
        return self.basis.nodes

    @property
    def stored_per_node(self) -> int:
        return self.basis.stored_per_node

    @property
    def operations(self) -> int:
        return self.basis.operations


@dataclass(frozen=True)
class Demand(Wrapped):
    """The functions of another basis, with a demand on the activations while they are fitted.

    Demands compose, in any order. The solution and its layer have the plain basis: a demand costs nothing there.

    Args:
        basis: The basis inside, plain or with other demands.

    Raises:
        TypeError: if `basis` is not a basis, or already has this demand.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be a plain basis such as BSpline(10), got {self.basis!r}")
        if any(type(one) is type(self) for one in demands(self.basis)):
            name = type(self).__name__
            raise TypeError(
                f"basis must be a plain basis or one without {name}, got {self.basis!r}: leave one {name} out"
            )

    def value(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.value(t)

    def derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.derivative(t)

    def second_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self.basis.second_derivative(t)

    def combine(self, t: Float[Tensor, "*batch r"], coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "*batch r"]:
        return self.basis.combine(t, coefficients)

    def curves(
        self, t: Float[Tensor, "S r"], coefficients: Float[Tensor, "r d"]
    ) -> tuple[Float[Tensor, "S r"], Float[Tensor, "S r"], Float[Tensor, "S r"]]:
        return self.basis.curves(t, coefficients)

    def pull(
        self, t: Float[Tensor, "S r"], to_g: Float[Tensor, "S r"], to_h: Float[Tensor, "S r"]
    ) -> Float[Tensor, "r d"]:
        return self.basis.pull(t, to_g, to_h)

    def fit(self, t: Float[Tensor, "S r"]) -> Basis:
        return replace(self, basis=self.basis.fit(t))

    def roughness(self) -> Float[Tensor, "d d"]:
        return self.basis.roughness()


def demands(basis: Basis) -> tuple[Demand, ...]:
    """The demands around a basis, the outermost first; none for a plain one."""
    return (basis, *demands(basis.basis)) if isinstance(basis, Demand) else ()


def plain(basis: Basis) -> Basis:
    """The basis without the demands on it."""
    return plain(basis.basis) if isinstance(basis, Demand) else basis
