"""What else may stand in the place of a block: its own nodes, two thin layers."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.chen2021 import Spectrum
from tenflex.baselines.linear import Dense
from tenflex.bases.base import positive
from tenflex.kept import Own
from tenflex.kept.channels import Channels
from tenflex.kept.descent import ITERATIONS, Rows
from tenflex.kept.fit import fitted_nodes, judged_layer, output_error, require_own
from tenflex.nn import FeedForward, FeedForwardConv
from tenflex.nn.chained import Chained
from tenflex.nn.low_rank import ThinLinear
from tenflex.planning.kernels import CAREFUL, FORMS, Passage, thin_kernel
from tenflex.planning.low_rank import linear_in, low_rank_axes, require_low_rank
from tenflex.planning.plan import Block, LowRank, Plan
from tenflex.progress import OnProgress, Progress
from tenflex.result import Result
from tenflex.split import split_samples
from tenflex.units import Drawn


def fitted_axes(
    function: nn.Module,
    passed: tuple[Tensor, Tensor],
    rows: Drawn,
    plan: Plan,
    root: Float[Tensor, "n n"] | None = None,
) -> Spectrum:
    """The axes of a linear layer, for the samples that are fitted, perhaps in a metric of its outputs."""
    linear = linear_in(function)
    if linear is None:
        raise ValueError("only a single nn.Linear has axes to cut")
    x, y = passed
    fitted = rows.split(plan.held_out).fitted
    return low_rank_axes(linear, x[fitted], y[fitted], root)


def passed_in(dense: Dense, passed: tuple[Tensor, Tensor], rows: Drawn, plan: Plan) -> Passage:
    """The moments of what passes a convolution, for the patches that are fitted."""
    x, y = passed
    fitted = rows.split(plan.held_out).fitted
    return Passage.of(dense, x[fitted].detach(), y[fitted].detach())


def thin_of(
    dense: Dense,
    passed: tuple[Tensor, Tensor],
    rows: Drawn,
    plan: Plan,
    asked: LowRank,
    root: Float[Tensor, "n n"] | None = None,
) -> tuple[ThinLinear | Chained, Tensor]:
    """Thin layers, and the matrix that they stand for."""
    if not isinstance(dense, nn.Linear):
        return thin_kernel(passed_in(dense, passed, rows, plan), FORMS[asked.form], asked.rank, CAREFUL)
    layer = fitted_axes(dense, passed, rows, plan, root).thin(max(asked.ranks))
    if not isinstance(layer, ThinLinear):
        raise TypeError(f"expected two thin linear layers in the place of {dense}, got {layer}")
    return layer, layer.weight


def thin_layer(
    name: str,
    function: nn.Module,
    passed: tuple[Tensor, Tensor],
    rows: Drawn,
    plan: Plan,
    asked: LowRank,
    root: Float[Tensor, "n n"] | None = None,
) -> tuple[ThinLinear | Chained, dict[str, Any]]:
    """Thin layers in the place of a linear one or a convolution, and what is told of them.

    The root of a metric of outputs is for linear layers: the map behind a thinner kernel is best in any metric.
    """
    dense = require_low_rank(name, function, asked)
    layer, weight = thin_of(dense, passed, rows, plan, asked, root)
    error, judged = output_error(rows.unit.function(layer), passed, rows.split(plan.held_out))
    before = dense.weight.detach().flatten(1)
    bent = float((weight.detach() - before).norm() / positive(before.norm()))
    return layer, {"output_error": error, "jacobian_error": bent, "result": Result.CONVERGED, "judged": judged}


def own_layer(
    function: nn.Module,
    name: str,
    rows: tuple[Tensor, Tensor, Tensor],
    plan: Plan,
    report: OnProgress,
    root: Float[Tensor, "n n"] | None = None,
) -> tuple[FeedForward | FeedForwardConv, dict[str, Any]]:
    """The layer of a block's own nodes or channels that a plan asks for, and what is told of it.

    Args:
        function: The block.
        name: Its name.
        rows: Its inputs, the outputs that it should have, and their groups.
        plan: The plan.
        report: Told of every step.
        root: That of the metric of its outputs; None to count all alike.
    """
    x, y, groups = rows
    asked = plan.blocks[name]
    own, split = require_own(name, function, x, asked.ranks), split_samples(groups, plan.held_out)
    steps = ITERATIONS if isinstance(asked, Block) and asked.basis == Own() else 0

    def tell(done: int, error: float) -> None:
        report(Progress("refine", done, ITERATIONS, error))

    layer: FeedForward | FeedForwardConv
    if isinstance(own, Channels):
        found = fitted_nodes(own.nodes, asked.ranks, own.rows(x, y), split, root, steps, tell)
        layer = FeedForwardConv.from_nodes(found, own.sliding, x.dtype).eval()
    else:
        flat = Rows(x.flatten(1), y.flatten(1))
        found = fitted_nodes(own, asked.ranks, flat, split, root, steps, tell)
        layer = FeedForward.from_nodes(found, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype).eval()
    error, slopes, judged = judged_layer(function, layer, (x, y), split)
    told = {"output_error": error, "jacobian_error": slopes, "result": Result.MOST_STEPS, "judged": judged}
    return layer, told
