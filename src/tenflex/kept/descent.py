"""The exact refinement of layers of nodes on the outputs: every map at once, the last one always the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.kept.choose import RIDGE, Chain, Moments, in_rows
from tenflex.nn.feed_forward import Nodes, Stage
from tenflex.sums import chunks, gram_matrix, mean_of, over_samples, sample_count, shared
from tenflex.uncompiled import LBFGS

ITERATIONS = 100
"""The most iterations, unless told otherwise."""

STRIDE = 5
"""Iterations between two looks at the validation samples."""

WORTH = 1e-3
"""It goes on as long as as many iterations lower the error of the validation samples by such a share."""

LEAST = 1e-3
"""Directions in which the inputs vary less than this share of the mean count as if they varied so much."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples of a block.

    Args:
        x: What arrives, `(S, m)`, or at each place of images, `(S, places, m)`.
        y: What should leave, `(S, n)` or `(S, places, n)`.
    """

    x: Float[Tensor, "S m"]
    y: Float[Tensor, "S n"]

    @property
    def one_below_the_other(self) -> tuple[Float[Tensor, "rows m"], Float[Tensor, "rows n"]]:
        """Those of all places."""
        return in_rows(self.x), in_rows(self.y)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates in which a descent is quick: inputs of unit covariance, outputs measured by a metric, of unit size.

    Args:
        mean: Of the inputs.
        down: From centred inputs to the coordinates.
        output_mean: Of the outputs.
        output_down: From centred outputs to the coordinates.
        output_up: The way back.
    """

    mean: Float[Tensor, " m"]
    down: Float[Tensor, "m m"]
    output_mean: Float[Tensor, " n"]
    output_down: Float[Tensor, "n n"]
    output_up: Float[Tensor, "n n"]

    @staticmethod
    def of(rows: Rows, metric: Float[Tensor, "n n"] | None) -> Frame:
        """That of some samples and the root of a metric."""
        x, y = rows.one_below_the_other
        mean, output_mean = (mean_of(one.double()) for one in (x, y))
        count = sample_count(x)
        gram = x.new_zeros(len(mean), len(mean), dtype=torch.float64)
        for part in chunks(len(x), 4 * len(mean)):
            gram += gram_matrix(x[part].double() - mean)
        values, axes = torch.linalg.eigh(gram / count)
        values = values.clamp(min=0) + LEAST * positive(values.mean())
        root = torch.eye(len(output_mean), dtype=mean.dtype, device=mean.device) if metric is None else metric.double()
        squares = ((y[part].double() - output_mean) @ root for part in chunks(len(y), 4 * len(root)))
        size = positive(over_samples(sum(one.square().sum() for one in squares))).sqrt()  # type: ignore[arg-type]
        down = root / size
        parts = (mean, axes / values.sqrt(), output_mean, down, torch.linalg.inv(down))
        return Frame(*(one.to(rows.x) for one in parts))

    def rows(self, rows: Rows) -> Rows:
        """Samples in these coordinates."""
        return Rows((rows.x - self.mean) @ self.down, (rows.y - self.output_mean) @ self.output_down)

    def narrow(self, nodes: Nodes) -> Nodes:
        """Layers in these coordinates, from those of the block."""
        first = nodes.stages[0]
        shifts = tuple(one + self.mean @ V for V, one in zip(first.V, first.shift, strict=True))
        maps = tuple(torch.linalg.solve(self.down, V) for V in first.V)
        bias = (nodes.bias - self.output_mean) @ self.output_down
        stages = Stage(maps, shifts, first.function), *nodes.stages[1:]
        return Nodes(stages, nodes.W @ self.output_down, bias, nodes.spread)

    def expand(self, nodes: Nodes) -> Nodes:
        """The way back."""
        first = nodes.stages[0]
        maps = tuple(self.down @ V for V in first.V)
        shifts = tuple(one - self.mean @ V for V, one in zip(maps, first.shift, strict=True))
        bias = self.output_mean + nodes.bias @ self.output_up
        stages = Stage(maps, shifts, first.function), *nodes.stages[1:]
        return Nodes(stages, nodes.W @ self.output_up, bias, nodes.spread)


@dataclass(frozen=True, eq=False)
class Projected:
    r"""The error of the outputs as a function of the layers of nodes, the map behind them being the best one.

    .. math:: E(V) = \min_{W, b} \|Y - G(V) W - b\|^2 + \rho \|W - W_0\|^2

    with :math:`W_0` that of the start.

    Its gradient is that of the sum with W held where it is (variable projection). Samples pass some at a time, in
    their own dtype, and are summed up in float64: beside them no number a sample is kept.

    References:
        Golub, Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
        separate", 1973, https://doi.org/10.1137/0710036

    Args:
        rows: The samples, in the coordinates of a frame.
        like: Layers of the wanted form.
        unit: In what units the columns of V of the first layer are measured: those of nodes that do more are smaller.
        ridge: rho.
    """

    rows: Rows
    like: Nodes
    unit: Float[Tensor, " r"]
    ridge: float

    @staticmethod
    def at(rows: Rows, nodes: Nodes, ridge: float = RIDGE) -> Projected:
        """The function around some layers, the ridge being a share of the nodes' mean variance."""
        unit = torch.ones_like(nodes.stages[0].shift[0])
        if len(nodes.stages) == 1:
            size = nodes.W.reshape(len(unit), -1).norm(dim=1)
            unit = positive(size.clamp(min=1e-2 * float(size.mean())))
        moments = Moments.of(Chain(nodes.stages, nodes.spread), in_rows, rows.x, rows.y)
        return Projected(rows, nodes, unit, ridge * moments.size)

    def parameters(self) -> list[Tensor]:
        """What is descended over, at the start."""
        first, *others = self.like.stages
        own = [one * self.unit for one in (*first.V, *first.shift)]
        later = [one for stage in others for one in (*stage.V, *stage.shift)]
        return [one.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for one in (*own, *later)]

    def stages(self, parameters: list[Tensor]) -> tuple[Stage, ...]:
        """The layers of nodes that they stand for."""
        stages, at = [], 0
        for k, like in enumerate(self.like.stages):
            width = len(like.V)
            own = [one / self.unit if k == 0 else one for one in parameters[at : at + 2 * width]]
            stages.append(Stage(tuple(own[:width]), tuple(own[width:]), like.function))
            at += 2 * width
        return tuple(stages)

    def nodes(self, parameters: list[Tensor]) -> Nodes:
        """The layers with the best map behind them."""
        with torch.no_grad():
            stages = self.stages(parameters)
            moments = Moments.of(Chain(stages, self.like.spread), in_rows, self.rows.x, self.rows.y)
            W, bias = moments.solve(self.like.W.double(), self.ridge)
            return Nodes(stages, W.to(self.rows.y), bias.to(self.rows.y), self.like.spread)

    def loss(self, parameters: list[Tensor]) -> float:
        """E, its gradient being left with the parameters."""
        best = self.nodes(parameters)
        total = 0.0
        for one in parameters:
            one.grad = torch.zeros_like(one)
        places = len(in_rows(self.rows.y[:1]))
        for part in chunks(len(self.rows), 4 * places * (len(best.W) + len(best.bias))):
            with torch.enable_grad():
                hidden = Chain(self.stages(list(shared(*parameters))), best.spread)(self.rows.x[part])
                error = (hidden @ best.W + (best.bias - in_rows(self.rows.y[part]))).square().sum(dtype=torch.float64)
            error.backward()
            total += float(over_samples(error.detach()))
        away = (best.W - self.like.W).double().square().sum()
        return total + places * len(self.rows) * self.ridge * float(away)


def error_of(nodes: Nodes, rows: Rows) -> float:
    """The squared error on samples in the coordinates of a frame, where those that it is made of have the size 1."""
    with torch.no_grad():
        places = len(in_rows(rows.y[:1]))
        parts = chunks(len(rows), 4 * places * max(sum(nodes.widths), len(nodes.W)))
        errors = (nodes.outputs(rows.x[part]) - in_rows(rows.y[part]) for part in parts)
        total = over_samples(sum(one.square().sum(dtype=torch.float64) for one in errors))  # type: ignore[arg-type]
    return float(total)


def refined(
    nodes: Nodes,
    fitted: Rows,
    validation: Rows | None,
    metric: Float[Tensor, "n n"] | None = None,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    on_step: Callable[[int, float], None] | None = None,
) -> Nodes:
    """Layers of nodes that are nearer to the outputs: L-BFGS over all maps, the last one being eliminated.

    References:
        Liu, Nocedal, "On the limited memory BFGS method for large scale optimization", 1989,
        https://doi.org/10.1007/BF01589116

    Args:
        nodes: Where it starts.
        fitted: The samples to fit.
        validation: Those that tell when to stop, and which layers were the best; None to go on as the fit falls.
        metric: The root of the matrix that measures errors of the outputs; None for the identity.
        ridge: How much the last map is held back to that of the start.
        iterations: The most iterations.
        on_step: Told after every few iterations how many are done, and the error.

    Returns:
        The best layers that were seen, the first ones included.
    """
    frame = Frame.of(fitted, metric)
    judge = frame.rows(validation or fitted)
    problem = Projected.at(frame.rows(fitted), frame.narrow(nodes), ridge)
    best, least = problem.like, error_of(problem.like, judge)
    parameters = problem.parameters()
    descent = LBFGS(
        parameters,
        max_iter=STRIDE,
        max_eval=STRIDE + STRIDE // 2,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=1e-14,
    )
    for done in range(STRIDE, iterations + STRIDE, STRIDE):
        descent.step(lambda: torch.tensor(problem.loss(parameters), dtype=torch.float64, device="cpu"))
        found = problem.nodes(parameters)
        error = error_of(found, judge)
        if on_step is not None:
            on_step(min(done, iterations), error)
        before = least
        if error < least:
            best, least = found, error
        if not error < (1 - WORTH) * before:
            break
    return frame.expand(best)
