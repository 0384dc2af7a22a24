"""Flexible layers for a sampled block: from each start in question, with settings that held-out samples choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tenflex import distributed
from tenflex.blocks.sampled import SampledBlock, fitted_in
from tenflex.checkpoint import Checkpoints
from tenflex.coordinates.sensitivity import typical_shrinkage
from tenflex.decouple import decouple
from tenflex.factors import Factors
from tenflex.families import ADD
from tenflex.kept import Own
from tenflex.kept.channels import Channels
from tenflex.kept.fit import require_own
from tenflex.kept.recognise import one_layer_of, own_nodes
from tenflex.kept.start import kept_factors
from tenflex.planning.held_out import Choice, Chosen, chosen, typical_coupling
from tenflex.planning.plan import Block, LowRank, Plan
from tenflex.problem import Problem
from tenflex.progress import OnProgress
from tenflex.reduction import matrix_of
from tenflex.sampling.views import telling
from tenflex.solution import Solution
from tenflex.solvers import SOLVERS, Solver
from tenflex.sums import divided


def kept_solution(block: SampledBlock, name: str, plan: Plan, report: OnProgress, saved: Checkpoints) -> Solution:
    """The solution that a plan asks for in the place of a block; one that is kept is not solved for again.

    What a solver of one's own does is told by no settings, unless it is known by its name: nothing is kept of it.
    """
    if plan.solver is not None and not SOLVERS.holds(plan.solver):
        saved = saved.in_memory(f"{plan.solver!r} is no solver that is known: make it known by {ADD}")
    coupling = typical_coupling(fitted_in(block)) if plan.coupling is None else plan.coupling
    resolved = replace(plan, coupling=coupling)
    settings = replace(resolved, blocks={"": plan.blocks[name]}).to_dict()
    layers = saved.layers([name, settings])
    if divided():
        return solved(block, name, resolved, report, Together(layers))
    left = layers is not None and layers.exists()  # by several processes that died
    find: Find = partial(decouple, start=distributed.read_checkpoint(layers)) if layers and left else decouple
    return saved.solution(block.samples, settings, lambda: solved(block, name, resolved, report, find))


def chosen_solution(
    block: SampledBlock, name: str, plan: Plan, report: OnProgress, saved: Checkpoints, most_memory: int
) -> Chosen:
    """The same, and from there on with what held-out samples choose of what the plan leaves open.

    The shrinkage is that of whole Jacobians: views of them keep theirs.
    """
    solution = kept_solution(block, name, plan, report, saved)
    whole = block.samples.directions is None and plan.coordinates is None
    shrinkage = typical_shrinkage(fitted_in(block)) if whole and plan.solver is None else None
    choice = Choice(plan.solver is None and plan.coupling is None, shrinkage, most_memory, plan.seed)
    found = chosen(solution, choice, report)
    if divided():
        distributed.require_same(found.solution.factors, "in the end")
    return found


class Find(Protocol):
    """What finds layers, from a start or from nothing."""

    def __call__(
        self,
        problem: Problem,
        solver: Solver[Any] | None = None,
        *,
        start: Factors | None = None,
        seed: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Solution: ...


@dataclass(frozen=True)
class Together:
    """`decouple` in all processes, each with some of the samples.

    Args:
        kept: Where layers that are found from nothing are kept as they become better.
    """

    kept: Path | None

    def __call__(self, problem: Problem, solver: Solver[Any] | None = None, **how: Any) -> Solution:
        kept = None if how.get("start") is not None else self.kept
        return distributed.decouple(problem, solver, checkpoint=kept, resume=True, **how)


def solved(block: SampledBlock, name: str, plan: Plan, report: OnProgress, find: Find = decouple) -> Solution:
    """Solve for the layer that a plan asks for in the place of a block, from each start that comes into question.

    The error on the validation samples chooses among them.

    Raises:
        ValueError: if the block has no such nodes to start from, or no layer of finite numbers was found.
    """
    asked = plan.blocks[name]
    if isinstance(asked, LowRank):
        raise TypeError(f"block {name!r} is to be two thin layers, for which nothing is solved")
    basis = plan.basis if asked.basis is None or isinstance(asked.basis, Own) else asked.basis
    problem = Problem(
        block.samples,
        asked.rank,
        basis,
        plan.coupling if plan.coupling is not None else typical_coupling(fitted_in(block)),
        asked.factor,
        asked.output_factor,
        held_out=plan.held_out,
    )
    found = []
    if asked.start != "kept":
        found.append(find(problem, plan.solver, seed=plan.seed, on_progress=report))
    factored = asked.factor is not None or asked.output_factor is not None  # what is left of nodes then is not theirs
    alone = asked.start == "cpd" or (asked.start is None and (factored or plan.solver is not None))
    start = None
    if not alone:
        own = partial(kept_start, block, name, asked, problem)
        start = distributed.broadcast(own) if divided() else own()
    if start is not None:
        found.append(find(problem, plan.solver, start=start, seed=plan.seed, on_progress=report))
    return best_of(name, found, plan.solver)


def best_of(name: str, found: Sequence[Solution], solver: Solver[Any] | None) -> Solution:
    """The solution of the least error on the samples that choose.

    Raises:
        ValueError: if none has layers of finite numbers.
    """
    finite = [one for one in found if all(bool(part.isfinite().all()) for part in one.factors.tensors())]
    if not finite:
        raise ValueError(
            f"block {name!r}: expected a layer of finite numbers, got none from "
            f"{'the default recipe' if solver is None else repr(solver)}, which diverged: take another solver, such as "
            f"BestSoFar of this one, which keeps the best layers seen, or a lower rank"
        )
    return min(finite, key=lambda one: one.validation_error)


def kept_start(block: SampledBlock, name: str, asked: Block, problem: Problem) -> Factors | None:
    """Layers made of a block's own nodes, in the coordinates of a solution's factors; None where that is not asked for.

    Raises:
        ValueError: if it is asked for, and the block is not of such a form.
    """
    if block.modes is not None or block.output_modes is not None:
        return None
    samples, fitted = block.samples, telling(problem.split.fitted, problem.samples.sizes[2])
    some = samples.select(fitted)
    x, y = some.original_inputs, some.original_outputs
    inputs = x.view(-1, *block.in_shape).to(block.dtype)
    nodes = own_nodes(block.function, inputs)
    if asked.start is None and not (nodes is not None and one_layer_of(nodes, asked.ranks)):
        return None
    own = require_own(name, block.function, inputs, asked.ranks)
    if isinstance(own, Channels):
        raise ValueError(f"block {name!r}: flexible layers do not start from channels: take basis=Own()")
    metric = None if samples.reduction is None else matrix_of(samples.reduction.output_down)
    return kept_factors(own.to(x), asked.ranks, problem.basis, x, y, metric)
