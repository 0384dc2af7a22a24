"""The exact refinement of layers of nodes on the outputs: every map at once, the last one always the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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

SHRUNK = 1.0
"""Inputs count as if they varied by such a share of the mean in all directions besides: of networks and numbers of
samples the best choice differs from 0.3 to 3, and by 1 % of the error."""

HELD = (750.0, 75.0, 7.5, 0.0)
"""Directions of nodes are held back to those of the start as by so many samples at which none of them should change;
then by fewer, as long as the validation samples gain."""

LEAST = 1e-2
"""What hardly matters counts as if it mattered by such a share of the mean."""

TELLING, MOST, DRAWS = 4096, 2**22, 4
"""So many samples tell how much matters what arrives at a node, of no more outputs than that in all, with so many
random combinations of them."""


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
    """Coordinates in which a descent is quick: inputs of about unit covariance, outputs in a metric, of unit size.

    The covariance is shrunk, inputs being compared by how much they matter: directions in which samples hardly vary, of
    which they tell little, are left more as they are.

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
    def of(rows: Rows, metric: Float[Tensor, "n n"] | None, matters: Float[Tensor, " m"] | None = None) -> Frame:
        """That of some samples and the root of a metric.

        Args:
            rows: The samples.
            metric: The root of the matrix that measures errors of the outputs; None for the identity.
            matters: By how much the outputs change with each input; None for all alike.
        """
        x, y = rows.one_below_the_other
        mean, output_mean = (mean_of(one.double()) for one in (x, y))
        count = sample_count(x)
        gram = x.new_zeros(len(mean), len(mean), dtype=torch.float64)
        for part in chunks(len(x), 4 * len(mean)):
            gram += gram_matrix(x[part].double() - mean)
        gram /= count
        deviations = positive(gram.diagonal().sqrt())
        units = torch.ones_like(mean) if matters is None else least(matters.double() * deviations) / deviations
        values, axes = torch.linalg.eigh(units[:, None] * gram * units)
        values = values.clamp(min=0) + SHRUNK * positive(values.mean())
        root = torch.eye(len(output_mean), dtype=mean.dtype, device=mean.device) if metric is None else metric.double()
        squares = ((y[part].double() - output_mean) @ root for part in chunks(len(y), 4 * len(root)))
        size = positive(over_samples(sum(one.square().sum() for one in squares))).sqrt()  # type: ignore[arg-type]
        down = root / size
        parts = (mean, units[:, None] * axes / values.sqrt(), output_mean, down, torch.linalg.inv(down))
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

    .. math:: E(V) = \min_{W, b} \|Y - G(V) W - b\|^2 + \rho \|W - W_0\|^2 + h \sum_k u_k^2 \|v_k - v_{k0}\|^2

    with :math:`W_0` and :math:`v_{k0}` those of the start, and :math:`u_k` what the outputs change with what arrives at
    a node. So the maps of the first layer, of which samples tell the least, move where many samples ask for it.

    Its gradient is that of the sum with W held where it is (variable projection). Samples pass some at a time, in
    their own dtype, and are summed up in float64: beside them no number a sample is kept.

    References:
        Golub, Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
        separate", 1973, https://doi.org/10.1137/0710036

    Args:
        rows: The samples, in the coordinates of a frame.
        like: Layers of the wanted form.
        units: u for each map V of the first layer, in which its columns are measured.
        ridge: rho.
        held: h.
    """

    rows: Rows
    like: Nodes
    units: tuple[Float[Tensor, " r"], ...]
    ridge: float
    held: float = 0.0

    @staticmethod
    def at(rows: Rows, nodes: Nodes, ridge: float = RIDGE) -> Projected:
        """The function around some layers, the ridge being a share of the nodes' mean variance."""
        units = tuple(least(one) for one in influences(nodes, rows.x))
        moments = Moments.of(Chain(nodes.stages, nodes.spread), in_rows, rows.x, rows.y)
        return Projected(rows, nodes, units, ridge * moments.size)

    @property
    def own(self) -> list[Tensor]:
        """The maps of the first layer in their units, and its shifts."""
        first = self.like.stages[0]
        return [one * unit for several in (first.V, first.shift) for one, unit in zip(several, self.units, strict=True)]

    def parameters(self) -> list[Tensor]:
        """What is descended over, at the start."""
        _, *others = self.like.stages
        own = self.own
        later = [one for stage in others for one in (*stage.V, *stage.shift)]
        return [one.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for one in (*own, *later)]

    def stages(self, parameters: list[Tensor]) -> tuple[Stage, ...]:
        """The layers of nodes that they stand for."""
        stages, at = [], 0
        for k, like in enumerate(self.like.stages):
            width = len(like.V)
            own = parameters[at : at + 2 * width]
            if k == 0:
                own = [one / unit for one, unit in zip(own, 2 * self.units, strict=True)]
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
        for one, start in zip(parameters, self.own, strict=False):  # which are the first ones
            moved = one.detach() - start
            total += self.held * float(moved.double().square().sum())
            one.grad = 2 * self.held * moved
        places = len(in_rows(self.rows.y[:1]))
        for part in chunks(len(self.rows), 4 * places * (len(best.W) + len(best.bias))):
            with torch.enable_grad():
                hidden = Chain(self.stages(list(shared(*parameters))), best.spread)(self.rows.x[part])
                error = (hidden @ best.W + (best.bias - in_rows(self.rows.y[part]))).square().sum(dtype=torch.float64)
            error.backward()
            total += float(over_samples(error.detach()))
        away = (best.W - self.like.W).double().square().sum()
        return total + places * len(self.rows) * self.ridge * float(away)


def influences(nodes: Nodes, x: Float[Tensor, "S m"]) -> list[Float[Tensor, " r"]]:
    """How much the outputs change with what arrives at each node of the first layer by each map.

    Root mean squares over samples, of all outputs together: gradients of random combinations of these tell.
    """
    first, *others = nodes.stages
    behind = Chain(tuple(others), nodes.spread)
    x = x[: max(1, min(TELLING, MOST // max(first.width, len(nodes.bias))) // x[0, ..., 0].numel())]
    generator, total = torch.Generator().manual_seed(0), [torch.zeros_like(one) for one in first.shift]
    for _ in range(DRAWS):
        with torch.enable_grad():
            arriving = [one.detach().requires_grad_() for one in first.arriving(x)]
            outputs = behind(first.of(arriving)) @ nodes.W
            drawn = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
            slopes = torch.autograd.grad((outputs * drawn.to(outputs)).sum(), arriving)
        total = [sum_ + mean_of(in_rows(one).square()) for sum_, one in zip(total, slopes, strict=True)]
    return [(one / DRAWS).sqrt() for one in total]


def least(sizes: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Sizes, of which none is far below the mean."""
    return positive(sizes.clamp(min=LEAST * float(sizes.mean())))


def matter(nodes: Nodes, rows: Rows, metric: Float[Tensor, "n n"] | None) -> Float[Tensor, " m"]:
    """By how much the outputs of layers of nodes change with each input, as if nodes did not help each other.

    In units in which the largest number of the map behind them is 1, so that no square is too large.
    """
    W = nodes.W.double() if metric is None else nodes.W.double() @ metric
    sizes = influences(replace(nodes, W=(W / positive(W.abs().max())).to(nodes.W)), rows.x)
    parts = (V.double().square() @ one.double().square() for V, one in zip(nodes.stages[0].V, sizes, strict=True))
    return torch.stack(list(parts)).sum(0).sqrt()


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

    Nodes are held back to their start at first, and less so as long as the validation samples gain.

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
    frame = Frame.of(fitted, metric, matter(nodes, fitted, metric))
    judge = frame.rows(validation or fitted)
    problem = Projected.at(frame.rows(fitted), frame.narrow(nodes), ridge)
    descent = Descent(problem.like, error_of(problem.like, judge), problem.parameters())
    for held in HELD:
        here = replace(problem, held=held)
        if not descent.lowered(here, lambda found: error_of(found, judge), iterations, on_step):
            break
    return frame.expand(descent.best)


@dataclass(eq=False)
class Descent:
    """Where a descent stands.

    Args:
        best: The best layers that were seen.
        least: Their error.
        parameters: What is descended over, as it is now.
        done: The iterations.
    """

    best: Nodes
    least: float
    parameters: list[Tensor]
    done: int = 0

    def lowered(
        self,
        problem: Projected,
        error: Callable[[Nodes], float],
        iterations: int,
        on_step: Callable[[int, float], None] | None,
    ) -> bool:
        """Whether iterations on a problem lowered the error; they end when it is no longer worth it.

        Args:
            problem: What is descended.
            error: That of layers.
            iterations: The most of all.
            on_step: As in `refined`.
        """
        descent = LBFGS(
            self.parameters,
            max_iter=STRIDE,
            max_eval=STRIDE + STRIDE // 2,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=1e-14,
        )
        gained = False
        while self.done < iterations:
            descent.step(lambda: torch.tensor(problem.loss(self.parameters), dtype=torch.float64, device="cpu"))
            self.done += STRIDE
            found = problem.nodes(self.parameters)
            now, before = error(found), self.least
            if on_step is not None:
                on_step(min(self.done, iterations), now)
            if now < before:
                self.best, self.least = found, now
            if not now < (1 - WORTH) * before:
                break
            gained = True
        return gained
