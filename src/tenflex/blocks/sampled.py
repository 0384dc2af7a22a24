"""A block with its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.blocks.estimate import expected_seconds
from tenflex.blocks.outputs import Narrowed, chosen_output_modes, narrowed_root
from tenflex.blocks.rows import views_of
from tenflex.modes import Modes, Multilinear
from tenflex.nn import FlexibleConv, FlexibleLayer
from tenflex.planning.plan import Block, Plan
from tenflex.progress import ESTIMATE, OnProgress, Progress
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sampling.jacobian import BatchMap, Seen, sample_block, some_jacobians
from tenflex.sampling.memory import WIDE, Budget
from tenflex.sampling.metric import in_metric, out_of_metric
from tenflex.sampling.metric import turned as turned_outputs
from tenflex.sampling.views import sample_views
from tenflex.solution import Solution
from tenflex.sums import total_of
from tenflex.units import Drawn, Unit


def fitted_in(block: SampledBlock) -> int:
    """The samples of a block that are fitted, in all processes."""
    return total_of(len(block.samples) - sum(block.samples.aside or (0,)))


@dataclass(frozen=True)
class SampledBlock:
    """A block with its samples, from which layers of any size can be solved for.

    Args:
        unit: What one sample is.
        function: What the block makes of samples, as a module of its own.
        samples: What it does, in reduced coordinates.
        in_shape: The shape of one of its inputs.
        out_shape: The shape of one of its outputs.
        dtype: Of its inputs.
        projection_error: The relative error of its outputs when its inputs are projected on the directions that the
            samples kept.
        modes: Those of its inputs that the samples tell of, and the directions that they chose; None for all.
        output_modes: Those of its outputs, of which the samples are then; None for all.
    """

    unit: Unit
    function: nn.Module
    samples: Samples
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype
    projection_error: float
    modes: tuple[Modes, Multilinear] | None = None
    output_modes: tuple[Modes, Multilinear] | None = None

    def layer(self, solution: Solution) -> FlexibleLayer | FlexibleConv:
        """The layer of a solution, in the block's place."""
        if self.output_modes is not None:
            around = self.in_shape, self.out_shape, self.dtype, self.modes, self.output_modes
            return FlexibleLayer.from_factors(solution.factors, *around).eval()
        return self.unit.layer(solution.factors, self.in_shape, self.out_shape, self.dtype, self.modes).eval()


def sampled_block(
    function: nn.Module,
    passed: tuple[Tensor, Tensor],
    rows: Drawn,
    plan: Plan,
    report: OnProgress,
    most_memory: int,
    asked: Block | None = None,
    root: Float[Tensor, "n *n"] | None = None,
) -> SampledBlock:
    """Sample a block at its rows, what arrives at it and what should leave it, perhaps through modes or in a metric.

    What is asked for tells its modes, and whether views of the Jacobians will do; `TYPICAL` for layers of many sizes.
    """
    x, y = passed
    asked = plan.seen(asked or TYPICAL, tuple(x.shape[1:]))

    def tell(done: int, total: int) -> None:
        report(Progress("sample", done, total))

    function, modes, out_shape = rows.unit.function(function), asked.modes, tuple(y.shape[1:])
    split = rows.split(plan.held_out)
    given = None if asked.output_modes is None else chosen_output_modes(asked.output_modes, y[split.fitted])
    if given is not None:
        function, y = Narrowed(function, given[1]), given[1].narrow(y.flatten(1))
        root = narrowed_root(root, given[1])
    n = y[0].numel()
    frames = None if modes is None else chosen_modes(modes, function, x[split.fitted], n, most_memory)
    turned = function if root is None else in_metric(function, root)
    targets = y if root is None else turned_outputs(y, root)
    how: dict[str, Any] = {"coordinates": plan.coordinates, "split": split, "lost_energy": plan.lost_energy}
    m = x[0].numel()
    fitted = total_of(len(split.fitted))
    views = views_of(plan, asked, (fitted, n, m), most_memory)
    report(Progress(ESTIMATE, 0, 1, seconds=expected_seconds(function, x, n, asked, views, len(split.fitted))))
    if frames is not None or (views is None and n * m <= WIDE):
        seen = turned if frames is None else Seen(turned, frames)
        samples = sample_block(seen, x, targets, most_memory=most_memory, on_chunk=tell, **how)
    else:
        samples = sample_views(turned, x, targets, Budget(most_memory, n, m, views), on_chunk=tell, **how)
    if root is not None:
        samples = out_of_metric(samples, root)
    lost = projection_error(function, x[:PROJECTED], samples.reduction, frames)
    through = None if modes is None or frames is None else (modes.of(tuple(x.shape[1:])), frames)
    return SampledBlock(rows.unit, function, samples, tuple(x.shape[1:]), out_shape, x.dtype, lost, through, given)


TYPICAL = Block(40)
"""What layers of many sizes are sampled for."""


def chosen_modes(modes: Modes, f: BatchMap, x: Float[Tensor, "S *in"], n: int, most_memory: int) -> Multilinear:
    """The directions along the axes of a block's inputs, from samples that will be fitted."""
    return modes.choose(x, some_jacobians(f, x, n, most_memory) if modes.from_jacobians else None)


PROJECTED = 512
"""So many samples tell what a projection costs as well as more do."""


@torch.no_grad()
def projection_error(
    function: nn.Module, x: Float[Tensor, "S *in"], reduction: Reduction | None, modes: Multilinear | None = None
) -> float:
    """The relative error of a block when its inputs are projected on the directions of a reduction, and of modes."""
    if reduction is None:
        return 0.0
    flat = x.flatten(1).to(reduction.mean)
    inner = flat if modes is None else modes.narrow(flat)
    projected = reduction.mean + reduction.inputs(inner) @ reduction.up.mT
    if modes is not None:  # what the modes do not tell stays at its mean
        projected = flat.mean(0) + modes.widen(projected - inner.mean(0))
    expected, found = (function(one).double().flatten(1) for one in (x.clone(), projected.to(x).view_as(x)))
    return float((found - expected).norm() / positive((expected - expected.mean(0)).norm()))
