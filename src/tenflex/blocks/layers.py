"""The layer that stands in the place of a block, by what a plan asks for: one function each, behind one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from tenflex.blocks.heads import joint_error, part_reports
from tenflex.blocks.other import own_layer, thin_layer
from tenflex.blocks.outputs import whole_errors
from tenflex.blocks.sampled import sampled_block
from tenflex.blocks.solved import chosen_solution
from tenflex.checkpoint import Checkpoints
from tenflex.kept import Own
from tenflex.nn import FeedForward, FeedForwardConv, FlexibleConv, FlexibleLayer
from tenflex.nn.chained import Chained
from tenflex.nn.low_rank import ThinLinear
from tenflex.planning.low_rank import linear_in
from tenflex.planning.plan import Block, LowRank, Placed, Plan
from tenflex.progress import OnProgress
from tenflex.reduction import matrix_of
from tenflex.sampling.gradient_check import warn_of_derivatives
from tenflex.solution import Solution
from tenflex.surgery.parts import Parts
from tenflex.units import Drawn

InPlace: TypeAlias = FlexibleLayer | FlexibleConv | FeedForward | FeedForwardConv | ThinLinear | Chained
"""What may stand in the place of a block."""


@dataclass(frozen=True, eq=False)
class Task:
    """A block, with all that is needed to make a layer for it.

    Args:
        name: The block.
        function: What it computes, as a module of its own.
        passed: What arrives at it now, and what should leave it.
        rows: Which samples were drawn of it.
        plan: What is asked for.
        report: Told of every step.
        saved: Where solutions are kept.
        most_memory: What its samples may take, in bytes.
        root: That of the metric of its outputs, or its diagonal; None to count all alike.
        parts: The outputs, where there are several.
        later: Whether other blocks were replaced before, so that nobody could know what arrives.
    """

    name: str
    function: nn.Module
    passed: tuple[Tensor, Tensor]
    rows: Drawn
    plan: Plan
    report: OnProgress
    saved: Checkpoints
    most_memory: int
    root: Float[Tensor, "n *n"] | None
    parts: Parts | None = None
    later: bool = False

    @property
    def asked(self) -> Placed:
        """What the plan has for this block."""
        return self.plan.blocks[self.name]


@dataclass(frozen=True, eq=False)
class Filled:
    """A layer for a block.

    Args:
        layer: The layer.
        told: What a report says of it, by the names of its fields.
        solution: What it was made of; None where nothing was decoupled.
    """

    layer: InPlace
    told: Mapping[str, Any]
    solution: Solution | None = None


def filled(task: Task) -> Filled:
    """The layer that is asked for in the place of a block."""
    if isinstance(task.asked, LowRank):
        return thin(task, task.asked)
    found = own(task) if keeps_nodes(task.asked) else flexible(task, task.asked)
    return found if task.parts is None else in_parts(task, task.parts, found)


def in_parts(task: Task, parts: Parts, found: Filled) -> Filled:
    """The same with the error of each output, and of all of them, of which each counts the same."""
    each = part_reports(parts, found.layer, task.passed, task.rows, task.plan)
    return replace(found, told={**found.told, "parts": each, "output_error": joint_error(each)})


def flexible(task: Task, asked: Block) -> Filled:
    """A flexible layer, from samples of the block."""
    plan, room, (x, y) = task.plan, task.most_memory, task.passed
    try:
        warn_of_derivatives(task.name, task.rows.unit.function(task.function), x, y[0].numel())
        block = sampled_block(task.function, task.passed, task.rows, plan, task.report, room, asked, task.root)
    except ValueError as error:
        raise ValueError(f"block {task.name!r}: {error}") from None
    varying = block.samples.sizes[2]
    if task.later and asked.factor is not None and asked.factor > varying:  # fewer directions than in the original
        plan = replace(plan, blocks={**plan.blocks, task.name: replace(asked, factor=varying)})
    choice = chosen_solution(block, task.name, plan, task.report, task.saved, room)
    solution, layer = choice.solution, block.layer(choice.solution)
    told = {
        "output_error": solution.output_error,
        "jacobian_error": solution.jacobian_error,
        "result": solution.result,
        "judged": solution.judged,
        "projection_error": block.projection_error,
        "chosen": choice.settings,
        "linear": linear_in(task.function) is not None,
        "input_macs": layer.input_macs if isinstance(layer, FlexibleLayer) else None,
    }
    if block.output_modes is not None:
        errors = whole_errors(layer, block.output_modes[1], task.passed, task.rows, plan)
        told |= {"output_error": errors.layer, "output_projection": errors.modes}
    return Filled(layer, told, solution)


def own(task: Task) -> Filled:
    """Some of the block's own nodes, refitted."""
    function = task.rows.unit.function(task.function)
    passed = (*task.passed, task.rows.groups)
    root = None if task.root is None else matrix_of(task.root)
    return Filled(*own_layer(function, task.name, passed, task.plan, task.report, root))


def thin(task: Task, asked: LowRank) -> Filled:
    """Thin layers in the place of a linear one or a convolution."""
    root = None if task.root is None else matrix_of(task.root)
    return Filled(*thin_layer(task.name, task.function, task.passed, task.rows, task.plan, asked, root))


def keeps_nodes(asked: Placed) -> bool:
    """Whether a block's own nodes are asked for."""
    return isinstance(asked, Block) and isinstance(asked.basis, Own)
