"""Activations for runtimes that compute many numbers at once, and start an operator or read a table slowly."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.export.pieces import with_pieces_as
from tenflex.nn.folded import FoldedConv, FoldedLayer, Pieces, batch_sizes
from tenflex.surgery.twin import duplicate

MOST_PIECES = 12
"""Above so many pieces a table is read faster than all of them are computed."""

ROUNDING = 1e-6
"""The largest difference to the table, of the largest value, that is taken for rounding."""

POINTS = 5
"""Points of each piece at which the two are compared, its ends among them."""


class Increments(nn.Module):
    r"""The same as `Pieces`, as the sum of what each piece adds until its end: nothing is looked up.

    .. math:: g_k(u) = g_k(b_1) + \sum_{j=0}^{P-1} q_{kj}(\min(\max(u - b_{\max(j, 1)}, l_j), w_j)), \quad q_{kj}(0) = 0

    b are the breaks, l is 0 but for the tail on the left, which has no end there and w = 0, and w are the widths of the
    pieces, of which the last has no end. It takes activations without jumps, and P times the work, in ten operators of
    standard kinds. NaN gives NaN where a runtime's minimum and maximum give their second argument then, or NaN.

    Args:
        pieces: What it is made from.
    """

    breaks: Tensor
    low: Tensor
    high: Tensor
    constant: Tensor | None
    ones: Tensor

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self.nodes, table = pieces.nodes, pieces.table.double().unflatten(0, (pieces.nodes, pieces.pieces))
        if pieces.breaks is None:
            breaks = torch.arange(1, pieces.pieces, device=table.device).double().expand(self.nodes, -1)
            start = torch.zeros_like(table[:, 0, 0])
        else:
            breaks, start, table = pieces.breaks.double(), table[:, 0, 0], table[..., 1:]
        endless = torch.full_like(breaks[:, :1], torch.finfo(torch.float32).max)
        first, inner, none = breaks[:, :1], breaks.diff(dim=1), torch.zeros_like(breaks)
        self.degree = table.shape[2] - 1
        made = {
            **{f"power{one}": table[..., one] for one in range(1, self.degree + 1)},
            # as large as the powers, though most are alike: runtimes compute tensors of one shape much faster
            "breaks": torch.cat([first, breaks], 1),
            "low": torch.cat([-endless, none], 1),
            "high": torch.cat([torch.zeros_like(first), inner, endless], 1),
            "constant": table[:, 0, 0] + table[:, 0, 1] * (first[:, 0] - start),
            "ones": torch.ones_like(table[:1, :, 0]),
        }
        for name, one in made.items():
            self.register_buffer(name, one.to(pieces.table.dtype).contiguous())

    def forward(self, u: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The activations of the last dimension."""
        inside = torch.maximum(self.low, torch.minimum(self.high, u.unsqueeze(-1) - self.breaks))
        total = self.power(self.degree) * inside
        for one in range(self.degree - 1, 0, -1):
            total = (total + self.power(one)) * inside
        added = F.linear(total, self.ones).reshape(*batch_sizes(u), self.nodes)  # some runtimes know no other sum
        return added if self.constant is None else added + self.constant

    def power(self, one: int) -> Tensor:
        """The coefficients of a power, `(r, P)`."""
        found: Tensor = getattr(self, f"power{one}")
        return found


def by_increments(network: nn.Module) -> nn.Module:
    """The network with such activations, where they are the same function: a copy if it has any.

    Args:
        network: What was folded, or any other; it is not changed.
    """
    new = with_pieces_as(_as_increments, network)
    for module in [] if new is network else new.modules():
        if isinstance(module, (FoldedLayer, FoldedConv)):
            _settle_constants(module.steps)
    return new


@torch.no_grad()
def _as_increments(pieces: Pieces) -> nn.Module:
    """As increments; the pieces themselves if they are one or many, jump, or rounding would tell."""
    if not 1 < pieces.pieces <= MOST_PIECES or pieces.degree < 1:
        return pieces
    made = Increments(pieces)
    breaks = made.breaks[:, 1:].double()  # the tails are looked at for as long as a piece
    length = breaks.diff(dim=1).amax() if breaks.shape[1] > 1 else breaks.new_ones(())
    ends = torch.cat([breaks[:, :1] - length, breaks, breaks[:, -1:] + length], 1)
    share = torch.linspace(0, 1, POINTS, dtype=ends.dtype, device=ends.device)
    places = (ends[:, :-1, None] + share * ends.diff(dim=1)[..., None]).flatten(1).mT
    places = places.to(pieces.table).contiguous()
    exact: Tensor = duplicate(pieces).double()(places.double())
    off = (made(places) - exact).abs().amax(0)
    return made if bool((off <= ROUNDING * exact.abs().amax(0)).all()) else pieces


@torch.no_grad()
def _settle_constants(steps: nn.Sequential) -> None:
    """Bring constants into the map that follows."""
    for one, after in pairwise(steps):
        if isinstance(one, Increments) and one.constant is not None and type(after) is nn.Linear:
            bias: Tensor | None = after.bias
            total = after.weight.double() @ one.constant.double() + (0 if bias is None else bias.double())
            after.bias, one.constant = nn.Parameter(total.to(after.weight), requires_grad=False), None
