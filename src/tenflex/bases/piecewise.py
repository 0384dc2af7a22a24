"""Piecewise polynomials: the common form of splines and hinges, and the fast way to evaluate either."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.bases.base import Basis


class PiecewiseBasis(Basis):
    r"""A basis that is a polynomial between consecutive breaks, and linear beyond the outermost ones.

    A family gives its breaks and, for each of the `K + 1` pieces, the coefficients of every function in the local
    coordinate `t - start`, lowest power first. Everything else follows: one look-up of the piece and one Horner scheme
    evaluate an activation, however many functions it sums.

    .. math:: \phi_j(t) = \sum_{a=0}^{p} \mathrm{table}_{i a j} \, (t - \mathrm{start}_i)^a
        \quad \text{for } t \text{ in piece } i
    """

    # No settings, but made of them with the basis: breaks and table, these where they were needed, and the even grid.
    made: tuple[Tensor, Tensor]
    converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]]
    start: float
    step: float
    last: int

    def __post_init__(self) -> None:
        """Make breaks and table now: whatever runs an activation later (export, vmap) then meets constants."""
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
            object.__setattr__(self, "made", (self.breaks(), self.table()))
            object.__setattr__(self, "start", float(self.made[0][0, 0]))
            object.__setattr__(self, "step", float(self.made[0][0, 1] - self.made[0][0, 0]))
            object.__setattr__(self, "last", self.made[0].shape[-1] - 1)  # a shape would be a tensor in `torch.jit`
        object.__setattr__(self, "converted", {})

    @abstractmethod
    def breaks(self) -> Float[Tensor, "r_or_1 K"]:
        """The ascending breaks of each node in float64; one row when all nodes share them."""

    @abstractmethod
    def table(self) -> Float[Tensor, "r_or_1 pieces powers d"]:
        """The local coefficients in float64: `K + 1` pieces, the first and last being the linear tails."""

    def pieces(self) -> tuple[Float[Tensor, "r_or_1 K"], int]:
        breaks, table = self.made
        low, high = self.interval
        before = breaks.new_full((len(breaks), int(low < self.start)), low)  # a tail that begins inside the interval
        after = breaks.new_full((len(breaks), int(high > breaks[0, -1])), high)
        return torch.cat([before, breaks, after], 1), table.shape[2] - 1

    @property
    def even(self) -> bool:
        """Whether all nodes share evenly spaced breaks, so that the piece is found by one division."""
        return True

    def value(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self._dense(t, 0)

    def derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self._dense(t, 1)

    def second_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        return self._dense(t, 2)

    def combine(self, t: Float[Tensor, "*batch r"], coefficients: Float[Tensor, "r d"]) -> Float[Tensor, "*batch r"]:
        piece, local = self._locate(t)
        return horner(self._rows(piece, coefficients), local, 0)

    def curves(
        self, t: Float[Tensor, "S r"], coefficients: Float[Tensor, "r d"]
    ) -> tuple[Float[Tensor, "S r"], Float[Tensor, "S r"], Float[Tensor, "S r"]]:
        piece, local = self._locate(t)
        rows = self._rows(piece, coefficients)
        return horner(rows, local, 0), horner(rows, local, 1), horner(rows, local, 2)

    def pull(
        self, t: Float[Tensor, "S r"], to_g: Float[Tensor, "S r"], to_h: Float[Tensor, "S r"]
    ) -> Float[Tensor, "r d"]:
        piece, local = self._locate(t)
        _, table = on(self, t.dtype, t.device)
        pieces, powers = table.shape[1:3]
        nodes = t.shape[-1]
        row = (piece + pieces * torch.arange(nodes, device=t.device)).flatten()
        sums, power = t.new_zeros(powers, nodes * pieces), torch.ones_like(local)
        sums[0].scatter_add_(0, row, to_g.flatten())
        for a in range(1, powers):  # the derivative of local^a g + (local^a)' h, a power of local after the other
            term = power * torch.addcmul(a * to_h, local, to_g)
            sums[a].scatter_add_(0, row, term.flatten())
            power = power * local
        return torch.einsum("arp,rpad->rd", sums.view(powers, nodes, pieces), table.expand(nodes, -1, -1, -1))

    def _locate(self, t: Tensor) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The piece of every `t`, from 0 (left tail) to K (right tail), and the local coordinate in it."""
        if self.even:
            cell = torch.floor((t.detach() - self.start) / self.step).clamp(-1.0, float(self.last))
            local = t - (self.start + self.step * cell.clamp(min=0.0))
            return (cell.to(torch.int64) + 1).clamp(0, self.last + 1), local  # NaN has become any whole number
        breaks, _ = on(self, t.dtype, t.device)
        piece = (t.unsqueeze(-1) >= breaks).sum(-1)
        node = torch.arange(len(breaks), device=t.device)
        return piece, t - breaks[node, (piece - 1).clamp(0)]

    def _rows(self, piece: Tensor, coefficients: Tensor) -> list[Float[Tensor, "*batch r"]]:
        """The polynomial of every activation on its piece, lowest power first, with the coefficients summed in."""
        _, table = on(self, coefficients.dtype, coefficients.device)
        nodes, pieces = len(coefficients), table.shape[1]
        curves = torch.einsum("rpad,rd->arp", table.expand(nodes, -1, -1, -1), coefficients).flatten(1)
        place = (piece + pieces * torch.arange(nodes, device=piece.device)).flatten()
        return [power.index_select(0, place).view_as(piece) for power in curves]

    def _dense(self, t: Tensor, order: int) -> Tensor:
        piece, local = self._locate(t)
        _, table = on(self, t.dtype, t.device)
        node = torch.arange(len(table), device=t.device) if len(table) > 1 else 0
        rows = table[node, piece]
        return horner(rows.unbind(-2), local.unsqueeze(-1), order)


def horner(
    polynomial: Sequence[Float[Tensor, "*batch"]], t: Float[Tensor, "*batch"], order: int
) -> Float[Tensor, "*batch"]:
    """The `order`-th derivative (0, 1 or 2) of a polynomial with coefficients from the lowest power up."""
    factors = [a * (a - 1) if order == 2 else a if order == 1 else 1 for a in range(len(polynomial))]
    if len(polynomial) <= order:
        return torch.zeros_like(polynomial[0] * t)
    total = factors[-1] * polynomial[-1] if factors[-1] != 1 else polynomial[-1]
    for a in range(len(polynomial) - 2, order - 1, -1):
        total = torch.addcmul(factors[a] * polynomial[a] if factors[a] != 1 else polynomial[a], total, t)
    return total


def on(basis: PiecewiseBasis, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The breaks and the table of a basis where they are needed, converted once and kept with the basis.

    Not while a graph is traced, nor in inference mode: what is made then is no plain tensor, and breaks later calls.
    """
    if torch.compiler.is_compiling() or torch.jit._trace.is_tracing():
        return basis.made[0].to(device, dtype), basis.made[1].to(device, dtype)
    found = basis.converted.get((dtype, device))
    if found is None:
        found = basis.made[0].to(device, dtype), basis.made[1].to(device, dtype)
        if type(found[0]) is Tensor and not found[0].is_inference():
            basis.converted[dtype, device] = found
    return found
