"""The form in which trained layers run: nothing is left to compute that does not depend on the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.checks import require_whole
from tenflex.modes import Multilinear
from tenflex.modes.multilinear import cheapest_order, multiply_adds
from tenflex.nn.window import Window

THIN, SEVERAL = 16, 32
"""A map to fewer numbers than the first, of at least as many samples, is faster with the samples as columns."""

FEW = 1024
"""Up to so many numbers the pieces are found by a search, which is fewer calls than whole numbers."""


@dataclass(frozen=True)
class Pace:
    """What a runtime takes beside linear maps, in the time of one of their multiply-adds.

    Args:
        call: For the call of an operator; none where a network is one program.
        look_up: To find the piece of one node, and to read it.
        power: For each power of its polynomial.
        along: For a multiply-add of a map along one axis, which is a small product at many places.
        samples: How many are computed at once.
    """

    call: float
    look_up: float = 120.0
    power: float = 10.0
    along: float = 1.0
    samples: int = 16

    def at(self, batch: int) -> Pace:
        """The same for another number of samples at once; ValueError if it is below 1."""
        require_whole("batch", batch, at_least=1)
        return replace(self, samples=batch)


PYTORCH = Pace(40_000.0, look_up=90.0, power=40.0, along=2.5)
"""PyTorch, called from Python, on a processor."""


class Pieces(nn.Module):
    r"""A piecewise polynomial of its own for every node, with one look-up a node.

    .. math:: g_k(u) = \sum_{a=0}^p T_{k c a} \, (u - c)^a, \quad c = \min(\max(\lfloor u \rfloor, 0), P - 1)

    The breaks are the whole numbers, so that a piece is found without a search; a linear map before it brings its nodes
    there. Nodes with breaks of their own find the piece by comparing, and T has the place where it starts in front.

    NaN gives NaN. The polynomials beyond the outermost breaks are linear, so that any finite number gives a finite one.

    Args:
        table: T, `(r, P, powers)`; with breaks `(r, P, 1 + powers)`.
        breaks: `(r, P - 1)`, ascending; None for the whole numbers from 1 to P - 1.
    """

    table: Tensor
    offsets: Tensor
    whole: Tensor
    breaks: Tensor | None

    def __init__(self, table: Float[Tensor, "r P powers"], breaks: Float[Tensor, "r K"] | None = None) -> None:
        super().__init__()
        self.nodes, self.pieces = table.shape[:2]
        self.even = breaks is None
        starts = self.pieces * torch.arange(self.nodes, dtype=torch.int32, device=table.device)
        self.register_buffer("table", table.flatten(0, 1).contiguous())
        self.register_buffer("offsets", starts, persistent=False)
        self.register_buffer("whole", torch.arange(1, self.pieces, device=table.device).to(table), persistent=False)
        self.register_buffer("breaks", breaks)

    def forward(self, u: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The activations of the last dimension."""
        if self.even and not torch.compiler.is_compiling():
            if u.numel() < FEW and u.is_contiguous():
                return self._searched(u)
            if u.device.type == "cpu":
                return self._by_powers(u)
        if self.breaks is not None:
            piece = (u.unsqueeze(-1) >= self.breaks).sum(-1)
            start, *polynomial = self._rows(piece)
            return horner(polynomial, u.unsqueeze(-1) - start).squeeze(-1)
        piece = u.floor().clamp(0.0, float(self.pieces - 1))
        return horner(self._rows(piece), (u - piece).unsqueeze(-1)).squeeze(-1)

    def _searched(self, u: Tensor) -> Tensor:
        """In the fewest calls."""
        held = self._buffers  # attributes of modules are slow to find
        found = torch.bucketize(u, held["whole"], right=True, out_int32=True)  # type: ignore[arg-type]
        rows = torch.embedding(held["table"], found + held["offsets"])  # type: ignore[arg-type, operator]
        return horner(rows.unbind(-1), u - found)

    def _by_powers(self, u: Tensor) -> Tensor:
        """With what processors do fastest: whole numbers in place, and single numbers that are read from each power."""
        piece = u.floor().clamp_(0.0, float(self.pieces - 1))
        place = piece.int().add_(self.offsets).clamp_(0, self.nodes * self.pieces - 1).flatten()
        read = [power.index_select(0, place) for power in self.table.unbind(1)]
        return horner(read, (u - piece).flatten()).view(u.shape)

    def _rows(self, piece: Tensor) -> tuple[Tensor, ...]:
        """The columns of the table; NaN has become any whole number, which must not lead out of it."""
        place = (piece.int() + self.offsets).clamp(0, self.nodes * self.pieces - 1)
        return torch.embedding(self.table, place).split(1, -1)  # runtimes know it as one operator

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.nodes} nodes, {self.pieces} pieces of degree {self.degree}"

    @property
    def degree(self) -> int:
        """The largest degree of the pieces."""
        return self.table.shape[1] - (1 if self.breaks is None else 2)

    def operations_per_example(self) -> int:
        """Operations to evaluate all activations once: finding the piece, the local coordinate, Horner's scheme."""
        find = 3 if self.breaks is None else self.pieces - 1
        return self.nodes * (find + 1 + 2 * self.degree)

    def time(self, pace: Pace) -> float:
        """About what it takes, in multiply-adds: calls of operators, and numbers that are read from a table."""
        compared = 0 if self.breaks is None else 10 * self.pieces
        each = pace.look_up + compared + pace.power * self.degree
        return (8 + self.degree) * pace.call + pace.samples * self.nodes * each


class Polynomial(nn.Module):
    r"""A polynomial of its own for every node, by Horner's scheme.

    .. math:: g_k(u) = \sum_{a=0}^p c_{a k} \, \hat u^a, \quad \hat u = \min(\max(u, -1), 1) \text{ or } u

    Args:
        coefficients: `(powers, r)`, the lowest power first.
        clamped: Whether it stays what it is at -1 and 1 beyond them.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Float[Tensor, "powers r"], clamped: bool = False) -> None:
        super().__init__()
        self.clamped = clamped
        self.register_buffer("coefficients", coefficients.contiguous())

    def forward(self, u: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch r"]:
        """The activations of the last dimension."""
        if self.clamped:
            u = u.clamp(-1.0, 1.0)
        return horner(list(self.coefficients.unbind(0)), u)

    @property
    def degree(self) -> int:
        """The largest power."""
        return len(self.coefficients) - 1

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.coefficients.shape[1]} nodes, degree {self.degree}"

    def operations_per_example(self) -> int:
        """Operations to evaluate all activations once."""
        return self.coefficients.shape[1] * (2 * self.degree + 2 * self.clamped)

    def time(self, pace: Pace) -> float:
        """About what it takes, in multiply-adds."""
        work = self.degree + self.clamped
        return (1 + work) * pace.call + pace.samples * self.coefficients.shape[1] * 10 * work


class FoldedLayer(nn.Module):
    """A flexible layer of standard parts, folded: linear maps with `Pieces` or others of one number a node between.

    It is made by `fold` after training or loading, and not stored by `tenflex` itself. Where a small batch takes no
    longer than a call from Python, calls count: its parts are run without their hooks.

    Args:
        steps: What is applied, in order, to the last dimension.
        in_shape: The shape of one input, without the batch.
        out_shape: The shape of one output.
    """

    def __init__(self, steps: Sequence[nn.Module], in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, out_shape
        self.steps = nn.Sequential(*steps)

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs; all dimensions before `in_shape` are batch dimensions."""
        if len(self.in_shape) > 1:
            x = x.reshape(*batch_sizes(x, len(self.in_shape)), prod(self.in_shape))
        compiling = torch.compiler.is_compiling()
        columns = not compiling and x.ndim == 2 and len(x) >= SEVERAL
        for step in self.steps._modules.values():
            if compiling or type(step) is not nn.Linear:
                x = step.forward(x)
            elif columns and step.out_features < THIN:
                x = _thin(step, x)
            else:
                held = step._parameters  # attributes of modules are slow to find
                x = F.linear(x, held["weight"], held["bias"])  # type: ignore[arg-type]
        return x.reshape(*batch_sizes(x), *self.out_shape) if len(self.out_shape) > 1 else x


class Along(nn.Module):
    """Linear maps along the axes of an input, one after another: what is told of it by its modes.

    Args:
        multilinear: The maps.
    """

    def __init__(self, multilinear: Multilinear) -> None:
        super().__init__()
        self.shape = multilinear.shape
        used = {axis: one for axis, one in enumerate(multilinear.frames) if one is not None}
        self.order = cheapest_order(self.shape, {axis: one.shape[1] for axis, one in used.items()})
        self.macs = multiply_adds(self.shape, {axis: one.shape[1] for axis, one in used.items()}, self.order)
        for axis, one in used.items():
            self.register_buffer(f"axis{axis}", one.detach().mT.contiguous())
        self.size = prod(used[axis].shape[1] if axis in used else size for axis, size in enumerate(self.shape))

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch k"]:
        """What is told of flat inputs."""
        batch = batch_sizes(x)
        x = x.reshape(*batch, *self.shape)
        for axis in self.order:
            place = axis - len(self.shape)
            weight = getattr(self, f"axis{axis}")
            x = F.linear(x, weight) if place == -1 else F.linear(x.transpose(place, -1), weight).transpose(place, -1)
        return x.reshape(*batch, self.size)

    def time(self, pace: Pace) -> float:
        """About what it takes, in multiply-adds."""
        return (3 * len(self.order) + 2) * pace.call + pace.samples * pace.along * self.macs


class FoldedConv(nn.Module):
    """A flexible convolution of standard parts, folded: a convolution, and what comes behind it with channels last.

    Args:
        first: The convolution.
        steps: What is applied, in order, to the channels.
        window: Where the patches lie.
    """

    def __init__(self, first: nn.Module, steps: Sequence[nn.Module], window: Window) -> None:
        super().__init__()
        self.first, self.steps, self.window = first, nn.Sequential(*steps), window

    def forward(self, x: Float[Tensor, "*batch channels *size"]) -> Float[Tensor, "*batch n *places"]:
        """The outputs at every patch."""
        channels = -self.window.dims - 1
        x = self.first(x if self.window.symmetric else self.window.padded(x)).movedim(channels, -1)
        return self.steps(x).movedim(-1, channels)


def batch_sizes(x: Tensor, last: int = 1) -> tuple[int, ...]:
    """The sizes before the last; one of them is left open, as runtimes know more of what has no name."""
    return (-1,) if x.ndim == last + 1 else tuple(x.shape[: x.ndim - last])


def _thin(linear: nn.Linear, x: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
    """The map with the samples as columns."""
    bias: Tensor | None = linear.bias
    if bias is None:
        return torch.mm(linear.weight, x.mT).mT.contiguous()
    return torch.addmm(bias[:, None], linear.weight, x.mT).mT.contiguous()


def time_of(steps: Sequence[nn.Module], pace: Pace = PYTORCH) -> float:
    """About what steps take, in multiply-adds.

    Args:
        steps: Those of a folded layer.
        pace: What else takes time where they run, and the batch.
    """
    total = 0.0
    for step in steps:
        if isinstance(step, nn.Linear):
            total += pace.call + pace.samples * step.weight.numel()
        elif isinstance(step, nn.ReLU):
            total += pace.call  # the work is next to nothing beside that of the maps around
        elif isinstance(step, (Pieces, Polynomial, Along)):
            total += step.time(pace)
        else:  # the functions that trained activations are made of
            total += 20 * pace.call + pace.samples * 1e3
    return total


def horner(polynomial: Sequence[Tensor], t: Tensor) -> Tensor:
    """Polynomials with coefficients from the lowest power up."""
    *rest, total = polynomial
    for one in reversed(rest):
        # as one operator, but where it would be taken apart into a product with 1 besides
        total = one + total * t if torch.compiler.is_compiling() else torch.addcmul(one, total, t)
    return total
