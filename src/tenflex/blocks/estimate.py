"""About how long the layer of a block will take: told before its first sample."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.orthonormal import Orthonormal
from tenflex.bases.wrapped import plain
from tenflex.coordinates.active import needed
from tenflex.coordinates.sensitivity import WIDEST
from tenflex.factors import Activations, Factors
from tenflex.kept.recognise import one_layer_of, own_nodes
from tenflex.objective.objective import Objective
from tenflex.planning.effort import speed
from tenflex.planning.plan import DEFAULT_BASIS, Block
from tenflex.samples import Samples
from tenflex.sampling.jacobian import LOST_ENERGY, MOST_TOLD, BatchMap
from tenflex.sampling.views import FEWEST_TOGETHER, ROWS, pilot_outputs, products
from tenflex.shown import in_words
from tenflex.solvers.default import SMALL

EVALUATIONS = 500
"""Of the objective and its gradient: of three starts, a refinement, and trials of other settings."""

STEPS = 40
"""Of Gauss-Newton, from a block's own nodes; L-BFGS takes less time where these would be dear."""

PIECE = 2**20
"""The most numbers of Jacobians of the piece that is timed."""

MOST_VIEWED = 1024
"""The most views of Jacobians that tell how many directions are active."""

HOURS = 3600.0
"""Seconds from which on a user is warned, whoever listens to progress or not."""


def expected_seconds(
    f: BatchMap,
    inputs: Float[Tensor, "S *m"],
    n: int,
    asked: Block,
    views: int | None,
    fitted: int,
    count: int | None = None,
) -> float:
    """About how long sampling a block and solving for its layer take: within a factor of three, as a rule.

    From the time of one backward pass of some samples, and of one evaluation of the objective on numbers of the same
    sizes.

    Args:
        f: The block, as a map of a batch.
        inputs: What arrives at it.
        n: The number of outputs.
        asked: Its layer.
        views: The views of each Jacobian; None for whole ones.
        fitted: The samples that are fitted.
        count: The samples in all, where the inputs are only some of them.
    """
    count = count or len(inputs)
    k, active = n if views is None else min(views, n), active_in(f, inputs, n)
    few = min(MOST_TOLD, count)
    told = few * n if views is None else ROWS * active + few * min(n, pilot_outputs(few, active))
    some = inputs[:FEWEST_TOGETHER]
    one = torch.ones(1, n, dtype=torch.float64, device=inputs.device)
    passes = seconds_of(lambda: products(f, some, one)) / len(some) * (count * k + told + count)
    evaluation = Piece(fitted, n, active, max(asked.ranks), views, asked.basis).seconds(inputs.device)
    solving = EVALUATIONS * len(asked.ranks) * evaluation
    return passes + solving + kept_seconds(f, inputs, asked, views, (fitted, n, active))


def kept_seconds(
    f: BatchMap, inputs: Float[Tensor, "S *m"], asked: Block, views: int | None, sizes: tuple[int, int, int]
) -> float:
    """About how long a second start takes, of the block's own nodes; 0 where there is none.

    Args:
        f: The block, as a map of a batch.
        inputs: What arrives at it.
        asked: Its layer.
        views: The views of each Jacobian; None for whole ones, which Gauss-Newton takes.
        sizes: The samples that are fitted, the outputs, the active directions.
    """
    one = asked.factor is None and asked.output_factor is None and asked.modes is None and len(asked.ranks) == 1
    if views is not None or asked.start == "cpd" or not one:
        return 0.0
    nodes = own_nodes(f, inputs)
    if nodes is None or not one_layer_of(nodes, asked.ranks):
        return 0.0
    (fitted, n, active), (rank,) = sizes, asked.ranks
    basis = plain(asked.basis if isinstance(asked.basis, Basis) else DEFAULT_BASIS)
    unknowns = rank * (active + n + basis.size + 1) + n
    step = min(SMALL, fitted * n * (active + 1) * unknowns**2)
    return STEPS * step / speed(inputs.device)


def active_in(f: BatchMap, inputs: Float[Tensor, "S *m"], n: int) -> int:
    """About how many directions of the inputs are active: by views of a few Jacobians, as far as these tell."""
    m, some = inputs[0].numel(), inputs[:FEWEST_TOGETHER]
    most, each = min(m, WIDEST), -(-min(2 * m, MOST_VIEWED) // len(some))
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(len(some), min(n, each), n, generator=generator, dtype=torch.float64, device="cpu")
    rows = products(f, some, u.to(inputs.device)).flatten(0, 1).double()
    found = needed(torch.linalg.eigvalsh(rows.mT @ rows if m <= len(rows) else rows @ rows.mT).flip(0), LOST_ENERGY)
    return min(most, found) if 4 * found <= 3 * len(rows) else most


@dataclass(frozen=True)
class Piece:
    """An evaluation of the objective, to be timed.

    Args:
        count: The samples that are fitted.
        n: The number of outputs.
        m: The number of inputs.
        r: The number of nodes.
        views: The views of each Jacobian; None for whole ones.
        basis: The functions of the activations, where they are of a basis.
    """

    count: int
    n: int
    m: int
    r: int
    views: int | None
    basis: Any = None

    def seconds(self, device: torch.device) -> float:
        """Of one evaluation with its gradient; of many samples only some are evaluated, and all take as much each."""
        k = self.n if self.views is None else min(self.views, self.n)
        some = min(self.count, max(FEWEST_TOGETHER, PIECE // (self.m * max(k, 1))))
        # In a context of its own: these are no samples that several processes share.
        evaluate: Callable[[], object] = Context().run(self.on, some, device)
        return Context().run(seconds_of, evaluate) * self.count / some

    def on(self, some: int, device: torch.device) -> Callable[[], object]:
        """The evaluation, on so many random samples."""
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device)

        z, V, W = drawn(some, self.m), drawn(self.m, self.r) / self.m**0.5, drawn(self.n, self.r)
        k = self.n if self.views is None else min(self.views, self.n)
        directions = None if self.views is None else drawn(some, k, self.n)
        objective = Objective(Samples(z, drawn(some, self.n), drawn(some, k, self.m), directions=directions), 1.0)
        basis: Any = Orthonormal(plain(self.basis if isinstance(self.basis, Basis) else DEFAULT_BASIS))
        scale, shift = basis.place(z @ V)
        basis = basis.fit(z @ V * scale + shift)
        layer = Factors.single(V * scale, W, Activations(drawn(self.r, basis.size), shift, basis), W.new_zeros(self.n))

        dtype = W.dtype if self.views is None else torch.float32  # as `Refine` does for most of its way

        def evaluate() -> None:
            with torch.enable_grad():
                parameters = [one.detach().requires_grad_() for one in layer.tensors()]
                objective.loss(layer.with_tensors(parameters), dtype=dtype).backward()

        return evaluate


def seconds_of(run: Callable[[], object]) -> float:
    """The least time of three calls, after one that warms up: others may be at work on the machine."""
    run()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def warn_of(name: str, seconds: float) -> None:
    """Warn of a block that takes hours."""
    if seconds > HOURS:
        warnings.warn(
            f"block {name!r} will take about {in_words(seconds)}: fewer samples, a lower rank or views=0 take less",
            stacklevel=2,
        )
