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
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.report import BlockReport, Report, Sampled
from tenflex.factors import Factors
from tenflex.kept import Own
from tenflex.kept.descent import ITERATIONS, Rows
from tenflex.kept.fit import fitted_nodes, judged_nodes, require_own
from tenflex.kept.recognise import own_nodes
from tenflex.kept.start import kept_factors
from tenflex.modes import Modes, Multilinear
from tenflex.nn import FeedForward, FlexibleConv, FlexibleLayer, layer_to_dict
from tenflex.nn.feed_forward import Nodes
from tenflex.page.details import details_of
from tenflex.page.write import write_page
from tenflex.planning.plan import Block, Plan
from tenflex.problem import Problem, require_scale, require_sizes
from tenflex.progress import OnProgress, Progress, silent
from tenflex.reduction import Reduction
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.sampling.capture import arrivals, capture
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.inputs import gather
from tenflex.sampling.jacobian import BatchMap, Seen, sample_block, some_jacobians
from tenflex.sampling.memory import Budget
from tenflex.sampling.metric import in_metric, metric_root, out_of_metric
from tenflex.sampling.skips import Skips
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
        solutions: For each block, its solution; none for layers of a block's own nodes.
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
            are used, `mask`, `basis`, `coupling`, `coordinates`, `lost_energy`, `held_out`, `memory`, `solver`, `seed`,
            `metric` and `mend`. The same plan on the same machine with the same number of threads gives the same bits.

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
    with Skips(model, [cut for cut in cuts[1:] if mends(plan, cut.name)], drawn) as around:
        originals = capture(model, cuts, batches, drawn)
    for cut in cuts:
        require_block(cut, *originals[cut.name])
    require_layers(model, cuts, originals, drawn, plan)
    hooked = tuple(name for cut in cuts for name in hooked_below(smaller, cut.modules))
    blocks, layers, solutions = [], dict[str, FlexibleLayer | FlexibleConv | FeedForward](), dict[str, Solution]()
    for index, cut in enumerate(cuts):
        start = time.perf_counter()
        arriving, leaving = originals.pop(cut.name)
        if index > 0:
            arriving, leaving = arriving_now(smaller, cut, batches, leaving, around)
        tell = _about(cut.name or "network", report)
        whole, rows, asked = cut.function(model), drawn[cut.name], plan.blocks[cut.name]
        root = (
            None if plan.metric is None else metric_root(model, cut, batches, plan.metric, rows.unit.every, plan.seed)
        )
        layer: FlexibleLayer | FlexibleConv | FeedForward
        if isinstance(asked.basis, Own):
            layer, told = own_layer(
                rows.unit.function(whole), cut.name, (arriving, leaving, rows.groups), plan, tell, root
            )
        else:
            kept = sum(one.problem.samples.jacobians.nbytes for one in solutions.values())
            block = sampled_block(whole, (arriving, leaving), rows, plan, tell, plan.memory - kept, asked.modes, root)
            solution = solutions[cut.name] = solved(block, cut.name, plan, tell)
            layer, told = block.layer(solution), _told(solution, block.projection_error)
            told["input_macs"] = layer.input_macs if isinstance(layer, FlexibleLayer) else None
        layers[cut.name], one = layer, tried[cut.name]
        costs = cost(whole, one), cost(layer, one)  # a layer alone: in its place it may be carried
        smaller = cut.replace_(smaller, layer)
        units = sampled_units(rows, border_error_of(rows, whole, one))
        blocks.append(BlockReport(cut.name, *costs, seconds=time.perf_counter() - start, sampled=units, **told))
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
    layers: Mapping[str, nn.Module],
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


def sampled_units(rows: Drawn, border: float) -> Sampled:
    """What was sampled, as reports tell it."""
    return Sampled(str(rows.unit), rows.unit.plural, len(rows), rows.total, rows.left_out, border)


def mends(plan: Plan, name: str) -> bool:
    """Whether the layer of a block also makes up for what earlier ones lost."""
    return isinstance(plan.blocks[name].basis, Own) if plan.mend is None else plan.mend


def arriving_now(
    smaller: nn.Module, cut: Cut, batches: list[Any], leaving: Tensor, around: Skips
) -> tuple[Tensor, Tensor]:
    """What arrives at a later block in the network as it is now, and what should leave it.

    Where the block's output y is added to an x that goes around it, the sum is what is to be as in the original: now
    that x has become another, y has to bring the difference.
    """
    original = around.of(cut.name) if cut.name in around.parts else None
    rows = around.rows[cut.name]
    if original is None:
        return arrivals(smaller, cut, batches, rows), leaving
    with Skips(smaller, [cut], around.rows) as skips:
        arriving = arrivals(smaller, cut, batches, rows)
    now = skips.of(cut.name)
    return arriving, leaving if now is None or now.shape != leaving.shape else leaving + (original - now)


def _told(solution: Solution, projection_error: float) -> dict[str, Any]:
    return {
        "output_error": solution.output_error,
        "jacobian_error": solution.jacobian_error,
        "result": solution.result,
        "judged": solution.judged,
        "projection_error": projection_error,
    }


def own_layer(
    function: nn.Module,
    name: str,
    rows: tuple[Tensor, Tensor, Tensor],
    plan: Plan,
    report: OnProgress,
    root: Float[Tensor, "n n"] | None = None,
) -> tuple[FeedForward, dict[str, Any]]:
    """The layer of a block's own nodes that a plan asks for, and what is told of it.

    Args:
        function: The block.
        name: Its name.
        rows: Its inputs, the outputs that it should have, and their groups.
        plan: The plan.
        report: Told of every step.
        root: That of the metric of its outputs; None to count all alike.
    """
    x, y, groups = rows
    ranks = plan.blocks[name].ranks
    nodes = require_own(name, function, x, ranks)
    split, flat = split_samples(groups, plan.held_out), Rows(x.flatten(1), y.flatten(1))

    def tell(done: int, error: float) -> None:
        report(Progress("refine", done, ITERATIONS, error))

    found = fitted_nodes(nodes, ranks, flat, split, root, ITERATIONS, tell)
    error, slopes, judged = judged_nodes(lambda one: function(one.view(-1, *x.shape[1:])), found, flat, split)
    layer = FeedForward.from_nodes(found, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype).eval()
    told = {"output_error": error, "jacobian_error": slopes, "result": Result.MOST_STEPS, "judged": judged}
    return layer, told


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
    model: nn.Module,
    cuts: list[Cut],
    originals: Mapping[str, tuple[Tensor, Tensor]],
    drawn: Mapping[str, Drawn],
    plan: Plan,
) -> None:
    """Raise unless the samples of every block are enough for its layers, and few enough for memory, before any work."""
    kept = 0
    for cut in cuts:
        asked = plan.blocks[cut.name]
        x, y = originals[cut.name]
        if isinstance(asked.basis, Own):
            require_own(cut.name, drawn[cut.name].unit.function(cut.function(model)), x, asked.ranks)
            continue
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
    passed: tuple[Tensor, Tensor],
    rows: Drawn,
    plan: Plan,
    report: OnProgress,
    most_memory: int,
    modes: Modes | None = None,
    root: Float[Tensor, "n n"] | None = None,
) -> SampledBlock:
    """Sample a block at its rows, what arrives at it and what should leave it, perhaps through modes or in a metric."""
    x, y = passed

    def tell(done: int, total: int) -> None:
        report(Progress("sample", done, total))

    function = rows.unit.function(function)
    split = split_samples(rows.groups, plan.held_out)
    frames = None if modes is None else chosen_modes(modes, function, x[split.fitted], y[0].numel(), most_memory)
    measured = function if root is None else in_metric(function, root)
    samples = sample_block(
        measured if frames is None else Seen(measured, frames),
        x,
        y if root is None else y.flatten(1) @ root.to(y),
        coordinates=plan.coordinates,
        split=split,
        lost_energy=plan.lost_energy,
        most_memory=most_memory,
        on_chunk=tell,
    )
    if root is not None:
        samples = out_of_metric(samples, root)
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
    """Solve for the layer that a plan asks for in the place of a block, from each start that comes into question.

    The error on the validation samples chooses among them.
    """
    asked = plan.blocks[name]
    basis = plan.basis if asked.basis is None or isinstance(asked.basis, Own) else asked.basis
    problem = Problem(
        block.samples,
        asked.rank,
        basis,
        plan.coupling,
        asked.factor,
        asked.output_factor,
        held_out=plan.held_out,
    )
    found = []
    if asked.start != "kept":
        found.append(decouple(problem, plan.solver, seed=plan.seed, on_progress=report))
    alone = asked.start == "cpd" or (asked.start is None and plan.solver is not None)
    start = None if alone else kept_start(block, name, asked, problem)
    if start is not None:
        found.append(decouple(problem, plan.solver, start=start, seed=plan.seed, on_progress=report))
    return min(found, key=lambda one: one.validation_error)


def kept_start(block: SampledBlock, name: str, asked: Block, problem: Problem) -> Factors | None:
    """Layers made of a block's own nodes, in the coordinates of a solution's factors; None where that is not asked for.

    Raises:
        ValueError: if it is asked for, and the block is not of such a form.
    """
    if block.modes is not None:
        return None
    samples, fitted = block.samples, problem.split.fitted
    x, y = samples.original_inputs[fitted], samples.original_outputs[fitted]
    inputs = x.view(-1, *block.in_shape).to(block.dtype)
    nodes = own_nodes(block.function, inputs)
    if asked.start is None and not (nodes is not None and one_layer_of(nodes, asked.ranks)):
        return None
    nodes = require_own(name, block.function, inputs, asked.ranks)
    metric = None if samples.reduction is None else samples.reduction.output_down
    return kept_factors(nodes.to(x), asked.ranks, problem.basis, x, y, metric)


def one_layer_of(nodes: Nodes, ranks: tuple[int, ...]) -> bool:
    """Whether a block is one layer of nodes, of which as many can be kept as are asked for."""
    (first, *others), (rank, *more) = nodes.stages, ranks
    return not others and not more and len(first.V) == 1 and rank <= first.width
