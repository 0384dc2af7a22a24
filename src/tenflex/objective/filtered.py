"""The coupled objective in activations by their values, slopes being differences of them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.objective.differences import Differences, differences
from tenflex.objective.linear import conjugate_gradients
from tenflex.objective.prepared import Prepared

TOLERANCE = 1e-6
"""Of conjugate gradients in every sweep."""


@dataclass(frozen=True, eq=False)
class FilterSystem:
    """The normal equations in the chords of all activations, for given V and W.

    Args:
        filter: The differences along the points of every node.
        sizes: The squared norms of the columns of W, `(r,)`.
        mix_f: `c_F W^T W`, `(r, r)`.
        mix_j: `c_J (W^T W) * (V^T V)`, `(r, r)`.
        to_g: `c_F F W`, `(S, r)`.
        to_h: `c_J` times `w_k . J_s v_k`, `(S, r)`.
        prices: Of the roughness of each activation, with a column of W of unit norm, `(r,)`.
    """

    filter: Differences
    sizes: Float[Tensor, " r"]
    mix_f: Float[Tensor, "r r"]
    mix_j: Float[Tensor, "r r"]
    to_g: Float[Tensor, "S r"]
    to_h: Float[Tensor, "S r"]
    prices: Float[Tensor, " r"]

    @classmethod
    def at(cls, problem: Prepared, V: Tensor, W: Tensor, smoothness: float) -> FilterSystem:
        """Those of a problem."""
        objective, gram = problem.fitted, W.mT @ W
        t = objective.inputs @ V
        return cls(
            differences(t),
            gram.diagonal(),
            mix_f=objective.weight_f * gram,
            mix_j=objective.weight_j * gram * (V.mT @ V),
            to_g=objective.weight_f * objective.centred @ W,
            to_h=objective.weight_j * objective.jacobians.onto(V, W),
            prices=smoothness * objective.weight_j * V.square().sum(0) * len(t) * (t.amax(0) - t.amin(0)),
        )

    def costs(self, p: Float[Tensor, "S-1 r"]) -> Float[Tensor, " r"]:
        """What the roughness of each activation costs with a column of W of unit norm."""
        return self.prices * (p * self.filter.roughen(p)).sum(0)

    def solve(self, start: Float[Tensor, "S-1 r"]) -> Float[Tensor, "S-1 r"]:
        """The chords, by conjugate gradients from `start`."""
        diagonal = positive(self.diagonal())
        right = self.filter.pull(self.to_g, self.to_h)
        return conjugate_gradients(self.apply, right, start, lambda left: left / diagonal, tolerance=TOLERANCE)

    def apply(self, p: Float[Tensor, "S-1 r"]) -> Float[Tensor, "S-1 r"]:
        """The matrix times chords."""
        G, H = self.filter.values(p), self.filter.slopes(p)
        return self.filter.pull(G @ self.mix_f, H @ self.mix_j) + self.prices * self.sizes * self.filter.roughen(p)

    def diagonal(self) -> Float[Tensor, "S-1 r"]:
        """The diagonal of the matrix; zero for chords that do not exist."""
        of_values, of_slopes, of_roughness = self.filter.diagonals()
        fit = of_values * self.mix_f.diagonal() + of_slopes * self.mix_j.diagonal()
        return fit + of_roughness * self.prices * self.sizes
