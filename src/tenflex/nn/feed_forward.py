"""Linear maps with the activation functions of the original network between them, some of them gated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.checks import require_rank
from tenflex.nn.elementwise import Elementwise
from tenflex.nn.maps import fill_, numbers, shape_of

SETTINGS = {"in_shape", "out_shape", "nodes", "functions", "gated"}
"""What is saved of a layer besides its numbers."""


@dataclass(frozen=True, eq=False)
class Stage:
    r"""A layer of nodes, :math:`\phi(x V + a)`, or gated, :math:`\phi(x V_1 + a_1) * (x V_2 + a_2)`.

    Args:
        V: One matrix `(m, r)`, or two.
        shift: As many vectors `(r,)`.
        function: phi.
    """

    V: tuple[Float[Tensor, "m r"], ...]
    shift: tuple[Float[Tensor, " r"], ...]
    function: Elementwise

    @property
    def width(self) -> int:
        """The number of nodes."""
        return len(self.shift[0])

    def values(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S r"]:
        """What the nodes give."""
        return self.of(self.arriving(x))

    def arriving(self, x: Float[Tensor, "S m"]) -> list[Float[Tensor, "S r"]]:
        """What arrives at the nodes by each map."""
        return [x @ V + shift for V, shift in zip(self.V, self.shift, strict=True)]

    def of(self, arriving: Sequence[Float[Tensor, "S r"]]) -> Float[Tensor, "S r"]:
        """What the nodes make of that."""
        first, *gates = arriving
        return self.function(first) if not gates else self.function(first) * gates[0]


@dataclass(frozen=True)
class Spread:
    """How a second convolution reads the nodes of a first one: at places of an image, by a kernel.

    Args:
        places: The places of the nodes along each of two axes.
        kernel: The places that are read together, along each.
        stride: How far apart two kernels begin.
        padding: The zeros around the places.
        dilation: How far apart the places of one kernel are.
    """

    places: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def reads(self) -> int:
        """How many values of a node are read together."""
        return self.kernel[0] * self.kernel[1]

    def __call__(self, hidden: Float[Tensor, "S places r"]) -> Float[Tensor, "rows reads*r"]:
        """What is read together, the values of one node side by side."""
        image = hidden.mT.unflatten(-1, self.places)
        sizes = {"padding": self.padding, "stride": self.stride, "dilation": self.dilation}
        return F.unfold(image, self.kernel, **sizes).mT.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Nodes:
    """Layers of nodes and the linear map behind them, as matrices that act from the right.

    Args:
        stages: The layers of nodes.
        W: `(r, n)`, or `(reads * r, n)`.
        bias: `(n,)`.
        spread: How W reads nodes that stand at places of images, `(S, places, m)`; None where an input has one place.
    """

    stages: tuple[Stage, ...]
    W: Float[Tensor, "r n"]
    bias: Float[Tensor, " n"]
    spread: Spread | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of nodes of each layer."""
        return tuple(one.width for one in self.stages)

    def to(self, like: Tensor) -> Nodes:
        """The same numbers in the dtype and on the device of a tensor."""
        stages = (
            Stage(tuple(V.to(like) for V in one.V), tuple(shift.to(like) for shift in one.shift), one.function)
            for one in self.stages
        )
        return replace(self, stages=tuple(stages), W=self.W.to(like), bias=self.bias.to(like))

    def hidden(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S r"]:
        """What the nodes of the last layer give."""
        for stage in self.stages:
            x = stage.values(x)
        return x if self.spread is None else self.spread(x)

    def outputs(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
        """The outputs."""
        return self.hidden(x) @ self.W + self.bias


class FeedForward(nn.Module):
    r"""A feed-forward part, :math:`\phi(x V + a) W + b` or gated :math:`(\phi(x V_1 + a_1) * (x V_2 + a_2)) W + b`.

    It is what a network had before, with fewer nodes: standard linear layers, and activation functions of which
    nothing is stored. `maps` are the linear maps, those of a gated layer side by side, the gate first.

    Args:
        in_shape: The shape of one input, without the batch; it is flattened to m numbers.
        out_shape: The shape of one output; n numbers.
        nodes: The number of nodes, or those of each layer.
        functions: The activation function, or those of each layer.
        gated: Whether the layers are gated, or whether each is.

    Raises:
        TypeError: if a shape is not a tuple.
        ValueError: if a size is not a whole number of at least 1, or there is not one function a layer.

    Example:
        >>> layer = FeedForward((384,), (384,), 96, Elementwise("gelu"))
        >>> layer(torch.zeros(5, 384)).shape
        torch.Size([5, 384])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        nodes: int | tuple[int, ...],
        functions: Elementwise | tuple[Elementwise, ...],
        gated: bool | tuple[bool, ...] = False,
    ) -> None:
        super().__init__()
        require_rank(nodes)
        self.in_shape, self.out_shape = shape_of("in_shape", in_shape), shape_of("out_shape", out_shape)
        self.nodes = nodes if isinstance(nodes, tuple) else (nodes,)
        count = len(self.nodes)
        self.functions = functions if isinstance(functions, tuple) else (functions,) * count
        self.gated = gated if isinstance(gated, tuple) else (gated,) * count
        if not len(self.functions) == len(self.gated) == count:
            raise ValueError(
                f"expected one function and one gated for each of {count} layers, got {len(self.functions)} and "
                f"{len(self.gated)}"
            )
        sizes = pairwise((numbers(self.in_shape), *self.nodes))
        first = [nn.Linear(m, r * (1 + gate)) for (m, r), gate in zip(sizes, self.gated, strict=True)]
        self.maps = nn.ModuleList([*first, nn.Linear(self.nodes[-1], numbers(self.out_shape))])

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs; all dimensions before `in_shape` are batch dimensions."""
        if len(self.in_shape) > 1:
            x = x.flatten(-len(self.in_shape))
        *inner, last = self.maps
        for linear, function, gate in zip(inner, self.functions, self.gated, strict=True):
            t = linear(x)
            if gate:
                first, second = t.chunk(2, -1)
                x = function(first) * second
            else:
                x = function(t)
        x = last(x)
        return x.unflatten(-1, self.out_shape) if len(self.out_shape) > 1 else x

    @classmethod
    def from_nodes(
        cls,
        nodes: Nodes,
        in_shape: tuple[int, ...] | None = None,
        out_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> FeedForward:
        """The layer of nodes; flat inputs and outputs, and the nodes' dtype, when left out."""
        in_shape, out_shape = in_shape or (len(nodes.stages[0].V[0]),), out_shape or (len(nodes.bias),)
        functions, gated = (tuple(one.function for one in nodes.stages), tuple(len(one.V) == 2 for one in nodes.stages))
        with torch.device("meta"):  # all is overwritten: draw no random numbers for it
            layer = cls(in_shape, out_shape, nodes.widths, functions, gated)
        layer.to(dtype or nodes.bias.dtype).to_empty(device=nodes.bias.device)
        stages = ((torch.cat(one.V, 1), torch.cat(one.shift)) for one in nodes.stages)
        for linear, (matrix, bias) in zip(layer.maps, (*stages, (nodes.W, nodes.bias)), strict=True):
            fill_(linear, (matrix,), bias)
        return layer

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes an empty layer of."""
        return {
            "in_shape": list(self.in_shape),
            "out_shape": list(self.out_shape),
            "nodes": list(self.nodes),
            "functions": [one.to_dict() for one in self.functions],
            "gated": list(self.gated),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FeedForward:
        """An empty layer with saved settings.

        Raises:
            ValueError: if a setting is missing, unknown or out of its range.
        """
        if not isinstance(saved, Mapping) or set(saved) != SETTINGS:
            raise ValueError(f"a feed-forward layer has the settings {sorted(SETTINGS)}, got {saved!r}")
        if not all(isinstance(one, (list, tuple)) and one for one in saved.values()):
            raise ValueError(f"the settings of a feed-forward layer must be lists, got {dict(saved)!r}")
        for one in saved["functions"]:
            if not isinstance(one, Mapping) or set(one) != {"name", "setting"}:
                raise ValueError(f"an activation function has a name and a setting, got {one!r}")
        functions = tuple(Elementwise(**one) for one in saved["functions"])
        before, after, nodes = (tuple(saved[name]) for name in ("in_shape", "out_shape", "nodes"))
        with torch.random.fork_rng(devices=[]):  # what is drawn here will be overwritten
            return cls(before, after, nodes, functions, tuple(map(bool, saved["gated"])))
