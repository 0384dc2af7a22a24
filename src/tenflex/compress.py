"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.checks import require_finite, require_floating
from tenflex.coordinates.sensitivity import typical_shrinkage
from tenflex.decouple import decouple
from tenflex.evaluate.cost import Cost, cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.report import BlockReport, Report
from tenflex.nn import FlexibleLayer, layer_to_dict
from tenflex.planning.choice import Choice, Chosen, chosen, typical_coupling
from tenflex.planning.plan import Block, Plan
from tenflex.problem import Problem, require_scale, require_sizes
from tenflex.progress import OnProgress, Progress, silent
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sampling.capture import arrivals, capture, positions
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.inputs import gather
from tenflex.sampling.jacobian import sample_block
from tenflex.sampling.memory import MOST_MEMORY, Budget
from tenflex.solution import Solution
from tenflex.split import groups_of_rows, split_samples
from tenflex.storage.network import Replacement, placed_in, remember_, save_compressed
from tenflex.storage.probe import Probe
from tenflex.storage.state import require_storable
from tenflex.surgery import Cut, find_blocks, find_cut, require_disjoint
from tenflex.surgery.batch import rows_of
from tenflex.surgery.door import require_module
from tenflex.surgery.hooks import hooked_below
from tenflex.surgery.twin import copied, twin


@dataclass(frozen=True)
class Compression:
    """A compressed network and all that is known of how it came about.

    Args:
        model: The compressed network, a new module in eval mode; the original is untouched.
        report: Per block and in all: parameters, MACs, activation operations, errors, time.
        plan: The settings, with wildcards resolved to block names.
        solutions: For each block, its solution.
        replacements: Where layers stand, block by block; those of an earlier compression of the same network first.
        original: The network that was compressed, for `evaluate`.
        probe: The form of its inputs, with which a network that is loaded is compared.
    """

    model: nn.Module
    report: Report
    plan: Plan
    solutions: Mapping[str, Solution]
    replacements: tuple[Replacement, ...]
    original: nn.Module
    probe: Probe | None = None

    def evaluate(self, inputs: Any, labels: Int[Tensor, " S"] | None = None) -> Fidelity:
        """How close the compressed network stays to the original one on other inputs.

        Args:
            inputs: Whatever `compress` takes; all of it is used (see `tenflex.evaluate.fidelity`).
            labels: The classes, for the accuracy.

        Raises:
            TypeError: if inputs or labels are no tensors of the right kind.
            ValueError: if they do not fit each other.
        """
        return fidelity(self.model, self.original, inputs, labels)

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors`, `config.json` and `report.json`; a run that dies leaves the previous result.

        Raises:
            OSError: if the folder cannot be made or written.
            TypeError: if what a module's `get_extra_state` gives is something else than tensors and plain values.
            ValueError: if the folder holds other files than a previous result.
        """
        report = self.report.to_dict()
        save_compressed(folder, self.model, self.plan.to_dict(), self.replacements, report, self.probe)


@torch.inference_mode(False)
def compress(
    model: nn.Module,
    inputs: Any,
    blocks: Mapping[str, Block] | Plan,
    *,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Compression:
    r"""Replace blocks of a trained network by flexible layers, without labels and without training.

    Every block is sampled on what really arrives at it, after earlier replacements, with the original network's outputs
    as target. The original model and the caller's tensors stay as they are.

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542

    Args:
        model: Any network in eval mode.
        inputs: A few hundred unlabelled inputs: a batch, or an iterable of batches such as a DataLoader. A batch is a
            tensor or an array, samples first; a tuple or list of them, of which as many entries are used as the network
            has positional arguments without a default (the rest are labels); or a mapping of them, passed as keyword
            arguments. Of more than `samples` of them as many are drawn at random. Iterables that know their length are
            read to the end; of others, such as a generator, the first `100 * samples` inputs are read.
        blocks: What to replace: a module ("encoder.layer.3.mlp"), a span of modules that feed each other ("fc1:fc3"),
            the whole network (""), or wildcards ("encoder.layer.*.mlp"), each with its layer. Or a whole plan, such as
            that of an earlier compression, which is repeated.
        on_progress: Called while sampling and after every step of a solver.
        **settings: Those of a `Plan` besides its blocks: `samples`, the most inputs (or positions of sequences) that
            are used, `basis`, `coupling`, `coordinates`, `lost_energy`, `held_out`, `memory`, `solver` and `seed`. The
            same plan on the same machine with the same number of threads gives the same bits.

    Returns:
        The compressed network with its report.

    Raises:
        TypeError: if an argument is of the wrong type, such as integer inputs to a block.
        ValueError: if the model, the inputs or a block cannot be used; the message says what to do.
    """
    plan = Plan.of(blocks, settings)
    require_module(model)
    found = find_blocks(model, plan.blocks)
    report = on_progress or silent
    batches = [gather(model, inputs, plan.samples, plan.seed, report)]
    original, model = model, twin(model)  # which is run: the original stays as it is, and may be at work elsewhere
    require_samplable(model, batches[0])
    smaller = copied(original, batches[0])
    cuts = [find_cut(model, name, batches[0]) for name in found]
    require_disjoint(cuts)
    require_storable(model, [path for cut in cuts for path in cut.modules])
    plan = replace(plan, blocks={name: plan.blocks[pattern] for name, pattern in found.items()})
    done = _compressed((model, smaller), batches, cuts, plan, report)
    return replace(done, original=original)


def _compressed(
    copies: tuple[nn.Module, nn.Module], batches: list[Any], cuts: list[Cut], plan: Plan, report: OnProgress
) -> Compression:
    """Replace all blocks in the second of two copies of a network, from the front to the back."""
    model, smaller = copies
    began = time.perf_counter()
    originals, groups = capture(model, cuts, batches), groups_of_rows(*map(rows_of, batches))
    for cut in cuts:
        require_block(cut, *originals[cut.name])
    require_layers(model, cuts, originals, groups, plan)
    hooked = tuple(name for cut in cuts for name in hooked_below(smaller, cut.modules))
    blocks, replacements, solutions = [], [], dict[str, Solution]()
    for index, cut in enumerate(cuts):
        start = time.perf_counter()
        arriving, leaving = originals.pop(cut.name)
        if index > 0:
            arriving = arrivals(smaller, cut, batches)
        tell = _about(cut.name or "network", report)
        kept = sum(one.problem.samples.jacobians.nbytes for one in solutions.values())
        block = sampled_block(cut.function(model), arriving, leaving, groups, plan, tell, plan.memory - kept)
        choice = solved(block, cut.name, plan, tell, plan.memory - kept)
        solution = choice.solution
        layer = block.layer(solution)
        costs = cost(block.function, arriving), cost(layer, arriving)  # a layer alone: in its place it may be carried
        smaller = cut.replace_(smaller, layer)
        blocks.append(_told(cut.name, costs, choice, block, time.perf_counter() - start))
        solutions[cut.name] = solution
        replacements.append(Replacement(cut, layer_to_dict(layer)))
    smaller.eval()
    costs = cost(model, batches[0]), cost(smaller, batches[0])
    close = _closeness(smaller, model, batches)
    total = Report(tuple(blocks), *costs, time.perf_counter() - began, close, hooked)
    placed = (*placed_in(model), *replacements)
    remember_(smaller, placed)
    return Compression(smaller, total, plan, solutions, placed, model, Probe.of(batches[0]))


def _told(name: str, costs: tuple[Cost, Cost], choice: Chosen, block: SampledBlock, seconds: float) -> BlockReport:
    solution = choice.solution
    errors = solution.output_error, solution.jacobian_error
    return BlockReport(
        name, *costs, *errors, solution.result, seconds, solution.judged, block.projection_error, choice.settings
    )


def _closeness(smaller: nn.Module, model: nn.Module, batches: list[Any]) -> Fidelity | None:
    """The fidelity on the inputs that were used; None where outputs cannot be compared."""
    try:
        return fidelity(smaller, model, batches)
    except (TypeError, ValueError):  # such as outputs of whole numbers, or all the same: no reason to lose the work
        return None


def _about(task: str, report: OnProgress) -> OnProgress:
    return lambda progress: report(replace(progress, task=task))


def require_block(cut: Cut, arriving: Tensor, leaving: Tensor) -> None:
    """Raise unless a block's own inputs and outputs can be used."""
    require_floating(f"the input of block {cut.name!r}", arriving)
    require_finite(f"what arrives at block {cut.name!r}", arriving)
    require_finite(f"what leaves block {cut.name!r}", leaving)
    require_scale(f"what leaves block {cut.name!r}", leaving)


def require_layers(
    model: nn.Module, cuts: list[Cut], originals: Mapping[str, tuple[Tensor, Tensor]], groups: Tensor, plan: Plan
) -> None:
    """Raise unless the samples of every block are enough for its layers, and few enough for memory, before any work."""
    kept = 0
    for cut in cuts:
        asked = plan.blocks[cut.name]
        x, y, rows = block_rows(cut.function(model), *originals[cut.name], groups, plan)
        count, n, m = len(x), y[0].numel(), x[0].numel()
        fitted = len(split_samples(rows, plan.held_out).fitted)
        try:
            require_sizes(asked.ranks, asked.factor, asked.output_factor, (fitted, n, m))
            Budget(plan.memory - kept, n, m).require(count)
        except ValueError as error:
            raise ValueError(f"block {cut.name!r}: {error}") from None
        kept += 8 * count * n  # along one direction at least


@dataclass(frozen=True)
class SampledBlock:
    """A block with its samples, from which layers of any size can be solved for.

    Args:
        function: The block, as a module of its own.
        samples: What it does, in reduced coordinates.
        in_shape: The shape of one of its inputs.
        out_shape: The shape of one of its outputs.
        dtype: Of its inputs.
        projection_error: The relative error of its outputs when its inputs are projected on the directions that the
            samples kept.
    """

    function: nn.Module
    samples: Samples
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype
    projection_error: float

    def layer(self, solution: Solution) -> FlexibleLayer:
        """The layer of a solution, in the block's place."""
        return FlexibleLayer.from_factors(solution.factors, self.in_shape, self.out_shape, self.dtype).eval()


def sampled_block(
    function: nn.Module,
    arriving: Tensor,
    leaving: Tensor,
    groups: Tensor,
    plan: Plan,
    report: OnProgress,
    most_memory: int,
) -> SampledBlock:
    """Sample a block at what arrives at it, with what should leave it as target."""

    def tell(done: int, total: int) -> None:
        report(Progress("sample", done, total))

    x, y, groups = block_rows(function, arriving, leaving, groups, plan)
    samples = sample_block(
        function,
        x,
        y,
        coordinates=plan.coordinates,
        split=split_samples(groups, plan.held_out),
        lost_energy=plan.lost_energy,
        most_memory=most_memory,
        on_chunk=tell,
    )
    lost = projection_error(function, x[:PROJECTED], samples.reduction)
    return SampledBlock(function, samples, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype, lost)


PROJECTED = 512
"""So many samples tell what a projection costs as well as more do."""


@torch.no_grad()
def projection_error(function: nn.Module, x: Float[Tensor, "S *in"], reduction: Reduction | None) -> float:
    """The relative error of a block when its inputs are projected on the directions of a reduction."""
    if reduction is None:
        return 0.0
    projected = reduction.mean + reduction.inputs(x.flatten(1)) @ reduction.up.mT
    expected, found = (function(one).double().flatten(1) for one in (x.clone(), projected.to(x).view_as(x)))
    return float((found - expected).norm() / positive((expected - expected.mean(0)).norm()))


def block_rows(
    function: nn.Module, arriving: Tensor, leaving: Tensor, groups: Int[Tensor, " S"], plan: Plan
) -> tuple[Tensor, Tensor, Int[Tensor, " rows"]]:
    """The samples of a block: its examples, or all positions of them when each position is mapped on its own.

    The positions of an example are one group, together with those of equal examples.
    """
    if positions(function, arriving):
        arriving, leaving = arriving.flatten(0, -2), leaving.flatten(0, -2)
        groups = groups.repeat_interleave(len(arriving) // len(groups))
    if len(arriving) > plan.samples:
        generator = torch.Generator().manual_seed(plan.seed)
        chosen = torch.randperm(len(arriving), generator=generator, device="cpu")[: plan.samples].to(arriving.device)
        arriving, leaving, groups = arriving[chosen], leaving[chosen], groups.to(chosen.device)[chosen]
    return arriving, leaving, groups


def solved(block: SampledBlock, name: str, plan: Plan, report: OnProgress, most_memory: int = MOST_MEMORY) -> Chosen:
    """Solve for the layer that a plan asks for in the place of a block, and choose what it leaves to be chosen."""
    asked = plan.blocks[name]
    basis = asked.basis or plan.basis
    validation, test = block.samples.aside or (0, 0)
    fitted = len(block.samples) - validation - test
    problem = Problem(
        block.samples,
        asked.rank,
        basis,
        typical_coupling(fitted) if plan.coupling is None else plan.coupling,
        asked.factor,
        asked.output_factor,
        held_out=plan.held_out,
    )
    solution = decouple(problem, plan.solver, seed=plan.seed, on_progress=report)
    open_ = plan.solver is None
    shrinkage = typical_shrinkage(fitted) if open_ and plan.coordinates is None else None
    choice = Choice(open_ and plan.coupling is None, shrinkage, most_memory, plan.seed)
    return chosen(solution, choice, report)
