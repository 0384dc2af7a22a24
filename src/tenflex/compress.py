"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.checks import require_finite, require_floating
from tenflex.decouple import decouple
from tenflex.evaluate.cost import Cost, cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.report import BlockReport, Report, Sampled
from tenflex.modes import Modes, Multilinear
from tenflex.nn import FlexibleConv, FlexibleLayer, layer_to_dict
from tenflex.page.details import details_of
from tenflex.page.write import write_page
from tenflex.planning.plan import Block, Plan
from tenflex.problem import Problem, require_scale, require_sizes
from tenflex.progress import OnProgress, Progress, silent
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sampling.capture import arrivals, capture
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.inputs import gather
from tenflex.sampling.jacobian import BatchMap, Seen, sample_block, some_jacobians
from tenflex.sampling.memory import Budget
from tenflex.shown import Reported
from tenflex.solution import Solution
from tenflex.split import groups_of_rows, split_samples
from tenflex.storage.network import Made, Replacement, placed_in, remember_, save_compressed
from tenflex.storage.probe import Probe
from tenflex.storage.state import require_storable
from tenflex.surgery import Cut, find_blocks, find_cut, require_disjoint
from tenflex.surgery.batch import Batch, count_samples, few, rows_of
from tenflex.surgery.door import require_module
from tenflex.surgery.hooks import hooked_below
from tenflex.surgery.twin import copied, twin
from tenflex.units import Drawn, Patch, Unit, draw, find_mask, find_unit
from tenflex.units.fold import folds_
from tenflex.units.mask import mask_for
from tenflex.units.patch import border_error


@dataclass(frozen=True, repr=False)
class Compression(Reported):
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

    def __str__(self) -> str:
        return str(self.report)

    def write_report(self, path: str | Path) -> None:
        """Write all there is to know as one HTML page that needs nothing else; an earlier file is replaced as a whole.

        Raises:
            OSError: if the file cannot be written.
            ValueError: if it does not end in `.html`, or is a file of another program.
        """
        write_page(path, self.made)

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
        save_compressed(folder, self.model, self.made)

    @property
    def made(self) -> Made:
        """How the network was made, in plain values."""
        details = details_of(self.solutions)
        return Made(self.replacements, self.plan.to_dict(), self.report.to_dict(), self.probe, details)


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
            are used, `mask`, `basis`, `coupling`, `coordinates`, `lost_energy`, `held_out`, `memory`, `solver` and
            `seed`. The same plan on the same machine with the same number of threads gives the same bits.

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
    drawn, tried = drawn_rows(model, cuts, batches[0], plan)
    originals = capture(model, cuts, batches, drawn)
    for cut in cuts:
        require_block(cut, *originals[cut.name])
    require_layers(cuts, originals, drawn, plan)
    hooked = tuple(name for cut in cuts for name in hooked_below(smaller, cut.modules))
    blocks, layers, solutions = [], dict[str, FlexibleLayer | FlexibleConv](), dict[str, Solution]()
    for index, cut in enumerate(cuts):
        start = time.perf_counter()
        arriving, leaving = originals.pop(cut.name)
        if index > 0:
            arriving = arrivals(smaller, cut, batches, drawn[cut.name])
        tell = _about(cut.name or "network", report)
        kept = sum(one.problem.samples.jacobians.nbytes for one in solutions.values())
        whole, rows = cut.function(model), drawn[cut.name]
        asked = plan.blocks[cut.name].modes
        block = sampled_block(whole, arriving, leaving, rows, plan, tell, plan.memory - kept, asked)
        solution = solved(block, cut.name, plan, tell)
        layers[cut.name] = layer = block.layer(solution)
        one = tried[cut.name]
        costs = cost(whole, one), cost(layer, one)  # a layer alone: in its place it may be carried
        smaller = cut.replace_(smaller, layer)
        seconds = time.perf_counter() - start
        told = _told(cut.name, costs, solution, block, (rows, border_error_of(rows, whole, one)), seconds)
        blocks.append(replace(told, input_macs=layer.input_macs if isinstance(layer, FlexibleLayer) else None))
        solutions[cut.name] = solution
    smaller.eval()
    blocks = _folded_(smaller, blocks, layers, batches[0], tried)
    replacements = [Replacement(cut, layer_to_dict(layers[cut.name])) for cut in cuts]
    costs = cost(model, batches[0]), cost(smaller, batches[0])
    close = _closeness(smaller, model, batches)
    total = Report(tuple(blocks), *costs, time.perf_counter() - began, close, hooked)
    placed = (*placed_in(model), *replacements)
    done = Compression(smaller, total, plan, solutions, placed, model, Probe.of(batches[0]))
    remember_(smaller, done.made)
    return done


def _folded_(
    model: nn.Module,
    blocks: list[BlockReport],
    layers: Mapping[str, FlexibleLayer | FlexibleConv],
    batch: Batch,
    tried: Mapping[str, Tensor],
) -> list[BlockReport]:
    """The reports after the last maps of convolutions became part of layers that follow, in place, where they can."""
    told = {block.name: block for block in blocks}
    for first, second in pairwise(layers):
        one, other = layers[first], layers[second]
        if isinstance(one, FlexibleConv) and isinstance(other, FlexibleLayer) and folds_(model, one, other, few(batch)):
            told[first] = replace(told[first], after=cost(one, tried[first]), folded=True)
            told[second] = replace(told[second], after=cost(other, tried[second].new_zeros(1, *other.in_shape)))
    return list(told.values())


def _told(
    name: str,
    costs: tuple[Cost, Cost],
    solution: Solution,
    block: SampledBlock,
    sampled: tuple[Drawn, float],
    seconds: float,
) -> BlockReport:
    errors = solution.output_error, solution.jacobian_error
    rows, border = sampled
    units = Sampled(str(rows.unit), rows.unit.plural, len(rows), rows.total, rows.left_out, border)
    return BlockReport(name, *costs, *errors, solution.result, seconds, solution.judged, block.projection_error, sampled=units)


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
    require_finite(f"what arrives at block {cut.name!r}", arriving)
    require_finite(f"what leaves block {cut.name!r}", leaving)
    require_scale(f"what leaves block {cut.name!r}", leaving)


def drawn_rows(
    model: nn.Module, cuts: list[Cut], batch: Batch, plan: Plan
) -> tuple[dict[str, Drawn], dict[str, Tensor]]:
    """The rows that are sampled of each block, and what arrives at it for a few examples."""
    some = few(batch)
    groups, seen, mask = (
        groups_of_rows(rows_of(batch)),
        capture(model, cuts, [some]),
        find_mask(model, batch, plan.mask),
    )
    drawn: dict[str, Drawn] = {}
    for cut in cuts:
        arriving, _ = seen[cut.name]
        require_floating(f"the input of block {cut.name!r}", arriving)
        try:
            unit = find_unit(cut.function(model), arriving, plan.blocks[cut.name].unit)
            if isinstance(unit, Patch) and plan.blocks[cut.name].modes is not None:
                raise ValueError("modes are for blocks that are not sampled patch by patch: leave them out")
            each = len(arriving) // count_samples(some)
            shown = mask_for(unit, each, mask, plan.mask)
            drawn[cut.name] = draw(unit, each, groups, plan.samples, plan.seed, shown)
        except ValueError as error:
            raise ValueError(f"block {cut.name!r}: {error}") from None
    return drawn, {name: arriving for name, (arriving, _) in seen.items()}


def border_error_of(rows: Drawn, function: nn.Module, inputs: Tensor) -> float:
    """What zeros outside of patches cost, on a few inputs; nothing of other units."""
    return border_error(rows.unit, function, inputs[:FEW_BORDERS]) if isinstance(rows.unit, Patch) else 0.0


FEW_BORDERS = 4
"""So many inputs tell what zeros at borders cost."""


def require_layers(
    cuts: list[Cut], originals: Mapping[str, tuple[Tensor, Tensor]], drawn: Mapping[str, Drawn], plan: Plan
) -> None:
    """Raise unless the samples of every block are enough for its layers, and few enough for memory, before any work."""
    kept = 0
    for cut in cuts:
        asked = plan.blocks[cut.name]
        x, y = originals[cut.name]
        count, n = len(x), y[0].numel()
        fitted = len(split_samples(drawn[cut.name].groups, plan.held_out).fitted)
        try:
            m = x[0].numel() if asked.modes is None else asked.modes.core_size(tuple(x.shape[1:]))
            require_sizes(asked.ranks, asked.factor, asked.output_factor, (fitted, n, m))
            Budget(plan.memory - kept, n, m).require(count)
        except ValueError as error:
            unit = drawn[cut.name].unit
            raise ValueError(f"block {cut.name!r}: {error} (one sample is {unit})") from None
        kept += 8 * count * n  # along one direction at least


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
    """

    unit: Unit
    function: nn.Module
    samples: Samples
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: torch.dtype
    projection_error: float
    modes: tuple[Modes, Multilinear] | None = None

    def layer(self, solution: Solution) -> FlexibleLayer | FlexibleConv:
        """The layer of a solution, in the block's place."""
        return self.unit.layer(solution.factors, self.in_shape, self.out_shape, self.dtype, self.modes).eval()


def sampled_block(
    function: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Drawn,
    plan: Plan,
    report: OnProgress,
    most_memory: int,
    modes: Modes | None = None,
) -> SampledBlock:
    """Sample a block at the rows that were drawn of what arrives at it, with what should leave it as target."""

    def tell(done: int, total: int) -> None:
        report(Progress("sample", done, total))

    function = rows.unit.function(function)
    split = split_samples(rows.groups, plan.held_out)
    frames = None if modes is None else chosen_modes(modes, function, x[split.fitted], y[0].numel(), most_memory)
    samples = sample_block(
        function if frames is None else Seen(function, frames),
        x,
        y,
        coordinates=plan.coordinates,
        split=split,
        lost_energy=plan.lost_energy,
        most_memory=most_memory,
        on_chunk=tell,
    )
    lost = projection_error(function, x[:PROJECTED], samples.reduction, frames)
    chosen = None if modes is None or frames is None else (modes.of(tuple(x.shape[1:])), frames)
    return SampledBlock(rows.unit, function, samples, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype, lost, chosen)


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


def solved(block: SampledBlock, name: str, plan: Plan, report: OnProgress) -> Solution:
    """Solve for the layer that a plan asks for in the place of a block."""
    asked = plan.blocks[name]
    basis = asked.basis or plan.basis
    problem = Problem(
        block.samples,
        asked.rank,
        basis,
        plan.coupling,
        asked.factor,
        asked.output_factor,
        held_out=plan.held_out,
    )
    return decouple(problem, plan.solver, seed=plan.seed, on_progress=report)
