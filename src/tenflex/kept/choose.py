"""The best of a block's own nodes, and the least-squares fit of what reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.nn.feed_forward import Nodes, Spread, Stage
from tenflex.sums import chunks, over_samples, sample_count

RIDGE = 1e-4
"""How much of the nodes' mean variance holds a fitted map back to the original one."""

GROUPS = 128
"""Nodes leave in about so many groups: those of one are judged together."""

Columns = Callable[[Tensor], Tensor]
"""Numbers of each sample, from its input."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and centred products of what nodes give and of what they shall give together.

    Args:
        mean: Of the nodes, `(w,)`.
        target_mean: `(n,)`.
        gram: The mean products of the nodes, `(w, w)`.
        cross: Of the nodes and the targets, `(w, n)`.
    """

    mean: Float[Tensor, " w"]
    target_mean: Float[Tensor, " n"]
    gram: Float[Tensor, "w w"]
    cross: Float[Tensor, "w n"]

    @staticmethod
    @torch.no_grad()
    def of(nodes: Columns, targets: Columns, x: Float[Tensor, "S m"], y: Float[Tensor, "S k"]) -> Moments:
        """Those of `nodes(x)` and `targets(y)`: some samples at a time in their own dtype, summed up in float64."""
        first = nodes(x[:1])
        places, w, n = *first.shape, targets(y[:1]).shape[1]
        few = slice(max(1, 256 // places))
        around = torch.cat([nodes(x[few]), targets(y[few])], 1).mean(0)  # so that nothing cancels
        total = around.new_zeros(w + n, dtype=torch.float64)
        gram = total.new_zeros(w, w)
        cross = total.new_zeros(w, n)
        for part in chunks(len(x), places * (w + n)):
            values = torch.cat([nodes(x[part]), targets(y[part])], 1) - around
            total += values.sum(0, dtype=torch.float64)
            gram += values[:, :w].mT @ values[:, :w]
            cross += values[:, :w].mT @ values[:, w:]
        count = places * sample_count(x)
        shift = over_samples(total) / count
        gram = over_samples(gram) / count - shift[:w, None] * shift[:w]
        cross = over_samples(cross) / count - shift[:w, None] * shift[w:]
        mean = around + shift
        return Moments(mean[:w], mean[w:], gram, cross)

    @property
    def size(self) -> float:
        """The mean variance of the nodes; 1 if none of them changes."""
        return float(self.gram.diagonal().mean()) or 1.0

    def of_nodes(self, kept: Int[Tensor, " r"], reads: int = 1) -> Moments:
        """Those of some nodes, of each of which several values are read."""
        kept = columns_of(kept, reads)
        return Moments(self.mean[kept], self.target_mean, self.gram[kept][:, kept], self.cross[kept])

    def with_ridge(self, ridge: float | None = None) -> Float[Tensor, "w w"]:
        """The products of the nodes with a number added to the diagonal, a share of their mean variance without one."""
        eye = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        return self.gram + (RIDGE * self.size if ridge is None else ridge) * eye

    def solve(
        self, W: Float[Tensor, "w n"], ridge: float | None = None
    ) -> tuple[Float[Tensor, "w n"], Float[Tensor, " n"]]:
        r"""The map with its bias that is best on the samples and near a given one.

        .. math:: \min_{M} \|Y - G M\|^2 + \rho \|M - W\|^2

        Without a value rho is a share of the nodes' mean variance.
        """
        right = self.cross - self.gram @ W
        found = W + torch.linalg.solve(self.with_ridge(ridge), right)
        return found, self.target_mean - self.mean @ found


def eliminated(
    moments: Moments, W: Float[Tensor, "w n"], count: int, metric: Float[Tensor, "n n"] | None = None, reads: int = 1
) -> Int[Tensor, " count"]:
    r"""The nodes that are left, in their order, when those that matter least leave one group after the other.

    Without node k the best map of the others has an error that is higher by :math:`\|W_k\|^2 / (G^{-1})_{kk}`, W being
    the best map of all that are still there; where several values of a node are read, by
    :math:`\mathrm{tr}(W_k^\top ((G^{-1})_{kk})^{-1} W_k)` with its rows and its block. Both are brought up to date by
    one product, so nothing is solved twice.

    References:
        Hassibi, Stork, "Second order derivatives for network pruning: optimal brain surgeon", 1992,
        https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html

    Args:
        moments: Of all nodes.
        W: The original's map, to which the fit is held back.
        count: How many nodes are left.
        metric: The square root of the matrix that measures errors of the targets; None for the identity.
        reads: How many values of each node are read, side by side.
    """
    nodes = len(W) // reads
    left = torch.arange(nodes, device=W.device)
    inverse = torch.linalg.inv(moments.with_ridge())
    best = moments.solve(W)[0]
    best = best if metric is None else best @ metric
    while len(left) > count:
        order = rises(best, inverse, reads).argsort()
        leaving = min(len(left) - count, max(1, nodes // GROUPS))
        staying = order[leaving:].sort().values
        go, stay = columns_of(order[:leaving], reads), columns_of(staying, reads)
        ratio = torch.linalg.solve(inverse[go][:, go], inverse[go][:, stay]).mT
        best = best[stay] - ratio @ best[go]
        inverse = inverse[stay][:, stay] - ratio @ inverse[go][:, stay]
        left = left[staying]
    return left


def columns_of(nodes: Int[Tensor, " r"], reads: int) -> Int[Tensor, " r*reads"]:
    """The columns of some nodes, where so many values of each stand side by side."""
    return (nodes[:, None] * reads + torch.arange(reads, device=nodes.device)).flatten()


def rises(best: Float[Tensor, "w n"], inverse: Float[Tensor, "w w"], reads: int) -> Float[Tensor, " nodes"]:
    """By how much the error rises without each node, see `eliminated`."""
    if reads == 1:
        return best.square().sum(1) / inverse.diagonal()
    rows = best.unflatten(0, (-1, reads))
    blocks = inverse.unflatten(0, (-1, reads)).unflatten(2, (-1, reads)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    return (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))


def kept_nodes(
    nodes: Nodes,
    ranks: tuple[int, ...],
    x: Float[Tensor, "S m"],
    y: Float[Tensor, "S n"],
    metric: Float[Tensor, "n n"] | None = None,
) -> Nodes:
    """The best of a block's nodes, as `held_back` with the usual ridge."""
    return held_back(nodes, ranks, x, y, metric)[0]


def held_back(
    nodes: Nodes,
    ranks: tuple[int, ...],
    x: Float[Tensor, "S m"],
    y: Float[Tensor, "S n"],
    metric: Float[Tensor, "n n"] | None = None,
    ridges: tuple[float, ...] = (RIDGE,),
) -> list[Nodes]:
    """The best of a block's nodes, layer by layer from the front, each with what reads it fitted anew.

    The nodes of a layer are chosen for what the next layer is given, those of the last one for the outputs. What
    reads them is fitted on what really arrives from the nodes that were kept before. With fewer layers than the block
    has, the outputs are fitted to the last one that is left.

    Args:
        nodes: The block's.
        ranks: How many to keep in each layer; at most as many layers as the block has.
        x: What arrives at the block.
        y: What should leave it.
        metric: See `eliminated`.
        ridges: How much the last map is held back to the original one: for each of them there is an answer.
    """
    done: tuple[Stage, ...] = ()
    stage = nodes.stages[0]
    for k, rank in enumerate(ranks[:-1]):
        following = nodes.stages[k + 1]
        V = torch.cat(following.V, 1)
        moments = Moments.of(Chain((*done, stage)), Given(Chain(nodes.stages[: k + 1]), V), x, x)
        chosen = eliminated(moments, V.double(), rank)
        M, b = moments.of_nodes(chosen).solve(V[chosen].double())
        done = (*done, some_of(stage, chosen))
        parts = M.to(x).split(following.width, 1), b.to(x).split(following.width)
        shifts = (one + more for one, more in zip(following.shift, parts[1], strict=True))
        stage = Stage(tuple(parts[0]), tuple(shifts), following.function)
    W, reads = nodes.W.double(), 1 if nodes.spread is None else nodes.spread.reads
    if len(ranks) < len(nodes.stages):  # in the original another layer makes the outputs
        W = W.new_zeros(stage.width, W.shape[1])
    moments = Moments.of(Chain((*done, stage), nodes.spread), in_rows, x, y)
    chosen = eliminated(moments, W, ranks[-1], None if metric is None else metric.double(), reads)
    stages, some = (*done, some_of(stage, chosen)), moments.of_nodes(chosen, reads)
    W = W[columns_of(chosen, reads)]
    maps = (some.solve(W, ridge * some.size) for ridge in ridges)
    return [Nodes(stages, M.to(x), bias.to(x), nodes.spread) for M, bias in maps]


@dataclass(frozen=True, eq=False)
class Given:
    """What the next layer is given by nodes: by way of V, `(r, k)`, without the shift."""

    chain: Chain
    V: Float[Tensor, "r k"]

    def __call__(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S k"]:
        return self.chain(x) @ self.V


def some_of(stage: Stage, chosen: Int[Tensor, " r"]) -> Stage:
    """Some nodes of a layer, the gate of each with it."""
    return Stage(tuple(V[:, chosen] for V in stage.V), tuple(one[chosen] for one in stage.shift), stage.function)


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers of nodes one after another, and how the last one is read."""

    stages: tuple[Stage, ...]
    spread: Spread | None = None

    def __call__(self, x: Float[Tensor, "S m"]) -> Float[Tensor, "S r"]:
        for stage in self.stages:
            x = stage.values(x)
        return x if self.spread is None else self.spread(x)


def in_rows(y: Float[Tensor, "*rows n"]) -> Float[Tensor, "rows n"]:
    """Targets one below the other, those of all places of an image too."""
    return y.flatten(0, -2)
