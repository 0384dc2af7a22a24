"""Which blocks are linear maps with activation functions between them: told by what passes through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.nn.elementwise import Elementwise, recognised
from tenflex.nn.feed_forward import Nodes, Stage
from tenflex.surgery.batch import nearly_equal
from tenflex.surgery.carry import Carried
from tenflex.surgery.quiet import undisturbed

TRIED = 64
"""So many samples tell one activation function from another."""


@dataclass(frozen=True, eq=False)
class Passage:
    """One call of a module that is an affine map, `y = x A + b`.

    Args:
        module: The module.
        x: What it was given, `(S, m)`.
        y: What it gave, `(S, n)`.
        A: `(m, n)`.
        b: `(n,)`.
    """

    module: nn.Module
    x: Float[Tensor, "S m"]
    y: Float[Tensor, "S n"]
    A: Float[Tensor, "m n"]
    b: Float[Tensor, " n"]

    def halves(self) -> list[Passage]:
        """The map as two side by side, as gated layers are often stored; none if its outputs are odd in number."""
        if len(self.b) % 2:
            return []
        parts = zip(self.y.chunk(2, -1), self.A.chunk(2, -1), self.b.chunk(2, -1), strict=True)
        return [Passage(self.module, self.x, y, A, b) for y, A, b in parts]


def own_nodes(function: Callable[[Tensor], Tensor], x: Float[Tensor, "S *m"]) -> Nodes | None:
    """The layers of nodes of a block, if it is nothing but linear maps with known activation functions between them.

    The block runs once. Of what passes through its linear maps (`nn.Linear`, or whatever has a matrix as its weight and
    is affine) it is seen which of them read the block's input, how one's output became another's input, and whether
    the last one's output is the block's, or those of several side by side, as of heads on one trunk.

    Args:
        function: The block.
        x: Some of its inputs; the first few are tried.

    Returns:
        The layers, as copies in the block's dtype, or None.
    """
    if not isinstance(function, nn.Module):
        return None
    x = x[:TRIED].detach()
    passed, output = passages(function, x.clone())
    flat, stages = x.flatten(1), list[Stage]()
    while len(passed) > 1:
        if stages and (last := _side_by_side(passed, output.flatten(1))) is not None:
            passed = [last]
            break
        found = _stage(passed, flat)
        if found is None:
            return None
        stage, count = found
        stages.append(stage)
        passed = passed[count:]
        flat = passed[0].x
    whole = bool(passed) and bool(stages) and nearly_equal(passed[0].y, output.flatten(1))
    return Nodes(tuple(stages), passed[0].A, passed[0].b) if whole else None


def one_layer_of(nodes: Nodes, ranks: tuple[int, ...]) -> bool:
    """Whether a block is one layer of nodes, of which as many can be kept as are asked for."""
    (first, *others), (rank, *more) = nodes.stages, ranks
    return not others and not more and len(first.V) == 1 and rank <= first.width


@torch.no_grad()
def passages(function: nn.Module, x: Float[Tensor, "S *m"]) -> tuple[list[Passage], Tensor]:
    """The affine calls in a run of a module, in order, and its output."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def heard(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given = args[0] if len(args) == 1 else None
        if isinstance(given, Carried) or isinstance(output, Carried):  # inside of a block that was replaced before
            return
        if isinstance(given, Tensor) and isinstance(output, Tensor) and given.ndim and output.ndim:
            x, y = (one.detach().clone().reshape(-1, one.shape[-1]) for one in (given, output))
            calls.append((module, x, y))

    with undisturbed(function), ExitStack() as hooks:
        for module in function.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(heard).remove)
        output = function(x)
    found = (affine(module, given, gave) for module, given, gave in calls)
    return [one for one in found if one is not None], output


def affine(module: nn.Module, x: Float[Tensor, "S m"], y: Float[Tensor, "S n"]) -> Passage | None:
    """A call of a module as an affine map, if its weight says what it did; a weight may stand either way round."""
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    if not isinstance(weight, Tensor):
        return None
    weight = weight.detach()
    b = bias.detach().clone() if isinstance(bias, Tensor) else torch.zeros_like(y[0])
    for A in (weight.mT, weight):
        fits = x.dtype == A.dtype == b.dtype and tuple(A.shape) == (x.shape[1], y.shape[1])  # autocast gives others
        if fits and nearly_equal(x @ A + b, y):
            return Passage(module, x, y, A.clone(), b)
    return None


def layer_before(calls: Sequence[Passage], reader: Passage) -> int:
    """How many of the last calls make the nodes that another one reads: one, or the two of a gated layer; else 0."""
    last = calls[-1]
    function = recognised(last.y, reader.x)
    if function is not None and function.name != "identity":
        return 1
    pair = list(calls[-2:])
    alike_in = len(pair) == 2 and alike(pair[0].x, pair[1].x) and pair[0].y.shape == pair[1].y.shape == reader.x.shape
    return 2 if alike_in and _gated(pair, reader.x) is not None else 0


def _side_by_side(heads: list[Passage], output: Float[Tensor, "S n"]) -> Passage | None:
    """Maps that read the same, as one, if the block gives what they give, one after the other in whatever order."""
    if not all(alike(one.x, heads[0].x) for one in heads[1:]):
        return None
    order, left, at = list[Passage](), list(heads), 0
    while left:
        found = next((one for one in left if alike(one.y, output[:, at : at + len(one.b)])), None)
        if found is None:
            return None
        order.append(found)
        left.remove(found)
        at += len(found.b)
    A, b = torch.cat([one.A for one in order], 1), torch.cat([one.b for one in order])
    return Passage(heads[0].module, heads[0].x, output, A, b) if at == output.shape[1] else None


def _stage(passed: list[Passage], x: Float[Tensor, "S m"]) -> tuple[Stage, int] | None:
    """The first layer of nodes of what is left, and how many maps make it."""
    first, second = passed[:2]
    if not alike(first.x, x):
        return None
    plain = recognised(first.y, second.x)
    if plain is not None and plain.name != "identity":  # two linear maps in a row are one
        return Stage((first.A,), (first.b,), plain), 1
    if len(passed) > 2 and alike(second.x, x) and first.y.shape == second.y.shape == passed[2].x.shape:
        gated = _gated([first, second], passed[2].x)
        return None if gated is None else (gated, 2)
    gated = _gated(first.halves(), second.x) if 2 * second.x.shape[1] == first.y.shape[1] else None
    return None if gated is None else (gated, 1)


def _gated(pair: list[Passage], product: Float[Tensor, "S r"]) -> Stage | None:
    """A gated layer, if the product is a known function of the one times the other."""
    for one, other in permutations(pair, 2):
        safe = other.y.abs() > 1e-3 * other.y.abs().max()  # where a quotient tells something
        function = _through(one.y, other.y, product, safe)
        if function is not None:
            return Stage((one.A, other.A), (one.b, other.b), function)
    return None


def _through(gate: Tensor, factor: Tensor, product: Tensor, safe: Tensor) -> Elementwise | None:
    """The function of the gate in a product."""
    if not bool(safe.any()):
        return None
    found = recognised(gate[safe], product[safe] / factor[safe])
    return found if found is not None and alike(found(gate) * factor, product) else None


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same up to rounding."""
    return one.shape == other.shape and nearly_equal(one, other)
