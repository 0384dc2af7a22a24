"""What counts how much of what leaves a block, and blocks of several outputs, with the error of each."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.evaluate.fidelity import Unpadded
from tenflex.evaluate.report import PartReport
from tenflex.planning.low_rank import is_for_kernel
from tenflex.planning.plan import Block, Plan
from tenflex.sampling.metric import metric_root
from tenflex.sums import mean_of, over_samples
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch
from tenflex.surgery.parts import Parts
from tenflex.units import Drawn


def require_parts(cut: Cut, plan: Plan) -> None:
    """Raise ValueError if a plan asks for what is not for a block of several outputs."""
    if cut.several is None:
        return
    asked = plan.blocks.get(cut.name)
    if plan.metric is not None:
        raise ValueError(
            f"block {cut.name!r} has the outputs {list(cut.several.names)}, which count alike, each by its own size: "
            f"leave metric out"
        )
    if isinstance(asked, Block) and asked.unit == "patch":
        raise ValueError(
            f"block {cut.name!r} has several outputs, and is sampled by examples or positions: unit='patch' is not "
            f"for it"
        )


def output_root(
    model: nn.Module, cut: Cut, batches: list[Any], plan: Plan, rows: Drawn, leaving: Float[Tensor, "S *row"]
) -> Float[Tensor, "n *n"] | None:
    """The root of the metric in which a block's outputs count, or its diagonal; None to count all alike.

    Several outputs count by their sizes; one as a plan asks. Thinner kernels of convolutions have no use for it.
    """
    if cut.several is not None:
        return size_root(cut.several, leaving[rows.split(plan.held_out).fitted])
    if plan.metric is None or is_for_kernel(plan.blocks.get(cut.name), cut.function(model)):
        return None

    def compared(batch: Batch, outputs: Tensor) -> Tensor:
        return Unpadded(plan.mask).of(model, batch, {0: outputs})[0]

    return metric_root(model, cut, batches, plan.metric, rows.unit.every, plan.seed, plan.memory, compared)


def size_root(parts: Parts, leaving: Float[Tensor, "S *row"]) -> Float[Tensor, " n"]:
    """What errors of each number of several outputs are multiplied by, so that every output counts the same.

    An output counts by its own spread, the root of the summed variances of its numbers, whatever its units and however
    many numbers it has. One that never changes is measured by the largest spread.

    Args:
        parts: The outputs.
        leaving: What leaves the block for its samples, all of them in one row.
    """
    rows = leaving.double()
    variances = mean_of((rows - mean_of(rows)).square())
    spreads = torch.stack([one.sum().sqrt() for one in variances.split(parts.widths, -1)])
    spreads = positive(torch.where(spreads > 0, spreads, spreads.amax()))
    each = torch.cat([(1 / one).expand(width) for one, width in zip(spreads, parts.widths, strict=True)])
    return each.expand(rows.shape[1:]).flatten()


@torch.no_grad()
def part_reports(
    parts: Parts, layer: nn.Module, passed: tuple[Tensor, Tensor], rows: Drawn, plan: Plan
) -> tuple[PartReport, ...]:
    """The error of each output of a block, on the samples that choose nothing, as far as there are such."""
    (x, y), split = passed, rows.split(plan.held_out)
    _, index = split.judging
    wanted, mean = y[index].double(), mean_of(y[split.fitted].double())
    lost, spread = (_sums(parts, one) for one in (layer(x[index]).double() - wanted, wanted - mean))
    errors, shares = (lost / positive(spread)).sqrt(), spread / positive(spread.sum())
    return tuple(map(PartReport, parts.names, errors.tolist(), shares.tolist()))


def _sums(parts: Parts, rows: Float[Tensor, "S *row"]) -> Float[Tensor, " parts"]:
    """The sums of the squares of each output, over all samples."""
    return over_samples(torch.stack([one.square().sum() for one in rows.split(parts.widths, -1)]))


def joint_error(parts: tuple[PartReport, ...]) -> float:
    """The error of all outputs, of which each counts the same: the root of the mean of the squares."""
    return float((sum(one.output_error**2 for one in parts) / len(parts)) ** 0.5)
