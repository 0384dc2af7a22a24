"""Look-ups for runtimes that read one number of each column fast, and copy the rows of a table one by one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.export.pieces import with_pieces_as
from tenflex.nn.folded import Pieces, horner


class Columns(nn.Module):
    """The same as `Pieces`, with a table `(P, r)` for each power.

    Straight pieces at whole numbers are told by where they would meet 0, so that the place in a piece is not needed.

    Args:
        pieces: What it is made from.
    """

    breaks: Tensor | None

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self.nodes, self.pieces = pieces.nodes, pieces.pieces
        tables = list(pieces.table.unflatten(0, (pieces.nodes, pieces.pieces)).permute(2, 1, 0))
        self.straight = pieces.breaks is None and pieces.degree == 1
        if self.straight:
            start, slope = (one.double() for one in tables)
            whole = torch.arange(pieces.pieces, device=start.device)[:, None]
            tables[0] = (start - slope * whole).to(pieces.table.dtype)
        self.count = len(tables)
        for place, one in enumerate(tables):
            self.register_buffer(f"table{place}", one.contiguous())
        self.register_buffer("breaks", pieces.breaks)

    def forward(self, u: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The activations of the last dimension."""
        flat = u if u.ndim == 2 else u.reshape(-1, self.nodes)
        if self.breaks is not None:
            start, *polynomial = self._read((flat.unsqueeze(-1) >= self.breaks).sum(-1))
            return horner(polynomial, flat - start).view(u.shape)
        top = float(self.pieces - 1)
        if self.straight:
            return horner(self._read(flat.clamp(0.0, top).long()), flat).view(u.shape)
        piece = flat.floor().clamp(0.0, top)
        return horner(self._read(piece.long()), flat - piece).view(u.shape)

    def _read(self, piece: Tensor) -> list[Tensor]:
        """A number of each table; NaN has become any whole number, which must not lead out of it."""
        place = piece.clamp(0, self.pieces - 1)
        return [torch.gather(getattr(self, f"table{one}"), 0, place) for one in range(self.count)]


def by_columns(network: nn.Module) -> nn.Module:
    """The network with such look-ups: a copy if it has any.

    Args:
        network: What was folded, or any other; it is not changed.
    """
    return with_pieces_as(Columns, network)
