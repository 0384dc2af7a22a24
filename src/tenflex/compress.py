"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.baselines.chen2021 import Spectrum
from tenflex.bases.base import positive
from tenflex.checkpoint import Checkpoints
from tenflex.checks import require_finite, require_floating
from tenflex.decouple import decouple
from tenflex.evaluate.cost import Cost, cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.planned import Planned
from tenflex.evaluate.report import BlockReport, Report
from tenflex.finetune import Tuning, tuned
from tenflex.nn import FlexibleLayer, layer_to_dict
from tenflex.nn.low_rank import ThinLinear
from tenflex.planning.budget import Budget as Allowance
from tenflex.planning.low_rank import linear_in, low_rank_axes, require_linear
from tenflex.planning.plan import Block, LowRank, Placed, Plan
from tenflex.planning.planner import Planner
from tenflex.problem import Problem, require_scale, require_sizes
from tenflex.progress import OnProgress, Progress, silent
from tenflex.reduction import Reduction
from tenflex.result import Judged, Result
from tenflex.samples import Samples
from tenflex.sampling.capture import arrivals, capture, positions
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.inputs import gather
from tenflex.sampling.jacobian import sample_block
from tenflex.sampling.memory import Budget
from tenflex.sampling.queries import Augment, changed, joined
from tenflex.solution import Solution
from tenflex.split import groups_of_rows, split_samples
from tenflex.storage.network import DAMAGE, Replacement, load, placed_in, read_told, remember_, save_compressed
from tenflex.storage.probe import Probe
from tenflex.storage.state import require_storable
from tenflex.surgery import Cut, find_blocks, find_cut, require_disjoint
from tenflex.surgery.batch import Batch, count_samples, rows_of
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

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Compression:
        """A saved compression with its report, to be trained further and saved again; it has no solutions.

        Args:
            folder: Where `save` wrote it.
            model: The original network, with its weights; it is not changed.

        Raises:
            FileNotFoundError: if there is no result in `folder`.
            TypeError: if `model` is not a module.
            ValueError: if the file is damaged, of another program or of an earlier version, or of another architecture.
        """
        smaller = load(folder, model)
        plan, report, probe = read_told(folder)
        try:
            told = Plan.from_dict(plan), Report.from_dict(report), Probe.from_dict(probe) if probe else None
        except DAMAGE as error:
            raise ValueError(f"{folder} has a damaged header ({error}): compress the network again") from None
        return cls(smaller, told[1], told[0], {}, placed_in(smaller), model, told[2])

    def finetune(self, inputs: Any, *, on_progress: OnProgress | None = None, **settings: Any) -> Compression:
        r"""Train the compressed network further, to the original's answers without labels, or by a loss of your own.

        .. math:: \frac{\|O - R\|^2}{\|R - \bar R\|^2} + T^2 \, \mathrm{KL}(\mathrm{softmax}(R / T),
                  \mathrm{softmax}(O / T))

        is what becomes small, with the outputs O, the original's R and a temperature T; without its second term where
        outputs are no scores of classes. Training ends when held-out inputs, copies of inputs always together, no
        longer gain, and the best network on them is kept. Modules stay in eval mode. In a loop of your own
        `result.model` trains like any other network, and `save` writes what it has become.

        Args:
            inputs: Whatever `compress` takes. With a `loss`, a loader of tensors, of tuples such as (inputs, labels)
                or of mappings.
            on_progress: Called now and then.
            **settings: `loss`, a function of a network's output and the batch; `train`, "replaced", "all" or names of
                parameters and modules; `steps`, `batch`, `rate` (found by short trials if left out), `temperature`,
                `mix`, `noise` and `augment` for queries beside the inputs, `samples`, `held_out` and `seed`: see
                `tenflex.finetune.Tuning`.

        Returns:
            A compression with the tuned network, whose report goes on; this one stays as it is.

        Raises:
            TypeError: if a setting is unknown, or something is of the wrong kind.
            ValueError: if a number is out of its range, or the inputs cannot be used.

        Example:
            >>> model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 2)).eval()
            >>> inputs = torch.randn(200, 6)
            >>> result = compress(model, inputs, {"": Block(rank=3)})
            >>> better = result.finetune(inputs, steps=50)
            >>> better.report.after == result.report.after
            True
        """
        tuning = Tuning.of(settings)
        network, told, batch = tuned(self.model, self.original, inputs, tuning, on_progress or silent)
        remember_(network, self.replacements)
        close = _closeness(network, twin(self.original), [batch])
        seconds, tunings = self.report.seconds + told.seconds, (*self.report.tunings, told)
        return replace(
            self, model=network, report=replace(self.report, fidelity=close, seconds=seconds, tunings=tunings)
        )


@torch.inference_mode(False)
def compress(
    model: nn.Module,
    inputs: Any,
    blocks: Mapping[str, Placed] | Plan | None = None,
    *,
    budget: Any = None,
    checkpoints: str | Path | None = None,
    augment: Augment | None = None,
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
            that of an earlier compression, which is repeated. Left out where a budget chooses.
        budget: In the place of blocks, what the network may store, compute and lose: "5%" of its parameters, or a
            `Budget`. What to replace, and by what, is then chosen by errors on held-out inputs, measured for several
            sizes of every block; the report shows them, and `plan` repeats the choice without them.
        checkpoints: A folder where everything that was solved for is kept as the work goes on: the same call after one
            that died solves for the rest, and gives the same bits. It is not removed.
        augment: Makes changed inputs of inputs, such as shifted images, at which the blocks are sampled too: a function
            from a batch, as the network is called with it, to one of the same form. `copies` of each input are made, 1
            if not given; a copy is held out where its origin is. What it draws from the generators of torch, NumPy
            and Python follows from `seed`.
        on_progress: Called while sampling and after every step of a solver.
        **settings: Those of a `Plan` besides its blocks: `samples`, the most inputs (or positions of sequences) that
            are used, `basis`, `coupling`, `coordinates`, `lost_energy`, `held_out`, `memory`, `solver`, `seed` and
            `copies`. The same plan on the same machine with the same number of threads gives the same bits.

    Returns:
        The compressed network with its report.

    Raises:
        TypeError: if an argument is of the wrong type, such as integer inputs to a block.
        ValueError: if the model, the inputs or a block cannot be used; the message says what to do.
    """
    allowed = None if budget is None else read_budget(budget, blocks)
    plan = with_copies(Plan.of(blocks or {} if allowed is None else UNPLANNED, settings), augment)
    require_module(model)
    found = {} if allowed is not None else find_blocks(model, plan.blocks)
    report, saved = on_progress or silent, Checkpoints(None if checkpoints is None else Path(checkpoints))
    batches = with_changed(gather(model, inputs, plan.samples, plan.seed, report), augment, plan)
    original, model = model, twin(model)  # which is run: the original stays as it is, and may be at work elsewhere
    require_samplable(model, batches[0])
    smaller = copied(original, batches[0])
    planned = None
    if allowed is not None:
        blocks, planned = _planned(model, batches, allowed, plan, report, saved)
        plan, found = replace(plan, blocks=blocks), {name: name for name in blocks}
    cuts = [find_cut(model, name, batches[0]) for name in found]
    require_disjoint(cuts)
    require_storable(model, [path for cut in cuts for path in cut.modules])
    plan = replace(plan, blocks={name: plan.blocks[pattern] for name, pattern in found.items()})
    done = _compressed((model, smaller), batches, cuts, plan, report, saved)
    return replace(done, original=original, report=replace(done.report, planned=planned))


UNPLANNED: Mapping[str, Placed] = {"": Block(1)}
"""What stands for the blocks of a plan while they are not chosen."""


def read_budget(budget: Any, blocks: object) -> Allowance:
    """The budget, if there are no blocks besides."""
    if blocks is not None:
        raise ValueError("budget chooses the blocks: expected one of the two, got both; leave one out")
    return Allowance.of(budget)


def _planned(
    model: nn.Module, batches: list[Any], budget: Allowance, plan: Plan, report: OnProgress, saved: Checkpoints
) -> tuple[dict[str, Placed], Planned]:
    """What to replace, within a budget."""
    groups = groups_in(batches)

    def bench(cut: Cut) -> Workbench:
        return Workbench(cut, model, batches, groups, plan, report, saved)

    return Planner(model, batches[0], plan, budget, bench, report).planned()


class Workbench:
    """A block that is sampled once, at what the original network gives it, to make layers of any size for it.

    Attributes:
        held: The inputs that chose starts and steps, and were not fitted.
    """

    def __init__(
        self,
        cut: Cut,
        model: nn.Module,
        batches: list[Any],
        groups: Int[Tensor, " S"],
        plan: Plan,
        report: OnProgress,
        saved: Checkpoints,
    ) -> None:
        self.cut, self.plan, self.report, self.saved, self.groups = cut, plan, report, saved, groups
        self.function = cut.function(model)
        self.ends = capture(model, [cut], batches)[cut.name]
        require_block(cut, *self.ends)
        _, _, rows = block_rows(self.function, *self.ends, groups, plan)
        validation = rows[split_samples(rows, plan.held_out).validation].unique()
        self.held = torch.isin(groups[: count_samples(batches[0])], validation)

    def layer(self, asked: Placed) -> nn.Module:
        """A layer in the block's place."""
        name = self.cut.name
        if isinstance(asked, LowRank):
            require_linear(name, self.function, asked.rank)
            return self.axes.layer(asked.rank)
        plan = replace(self.plan, blocks={name: asked})
        return self.sampled.layer(kept_solution(self.sampled, name, plan, self.report, self.saved))

    @cached_property
    def sampled(self) -> SampledBlock:
        """The block with its samples."""
        return sampled_block(self.function, *self.ends, self.groups, self.plan, self.report, self.plan.memory)

    @cached_property
    def axes(self) -> Spectrum:
        """The axes of a linear layer in which it can be cut."""
        return fitted_axes(self.function, *self.ends, self.groups, self.plan)


def fitted_axes(
    function: nn.Module, arriving: Tensor, leaving: Tensor, groups: Int[Tensor, " S"], plan: Plan
) -> Spectrum:
    """The axes of a linear layer, for the samples that are fitted."""
    linear = linear_in(function)
    if linear is None:
        raise ValueError("only a single nn.Linear has axes to cut")
    x, y, rows = block_rows(function, arriving, leaving, groups, plan)
    fitted = split_samples(rows, plan.held_out).fitted
    return low_rank_axes(linear, x[fitted], y[fitted])


def kept_solution(block: SampledBlock, name: str, plan: Plan, report: OnProgress, saved: Checkpoints) -> Solution:
    """The solution that a plan asks for in the place of a block; one that is kept is not solved for again."""
    settings = replace(plan, blocks={"": plan.blocks[name]}).to_dict()
    return saved.solution(block.samples, settings, lambda: solved(block, name, plan, report))


def _thin(
    cut: Cut, function: nn.Module, ends: tuple[Tensor, Tensor], groups: Int[Tensor, " S"], plan: Plan, asked: LowRank
) -> tuple[ThinLinear, BlockReport]:
    """Two thin layers in the place of a linear one, and what they do."""
    start = time.perf_counter()
    linear = require_linear(cut.name, function, asked.rank)
    layer = fitted_axes(function, *ends, groups, plan).thin(asked.rank)
    x, y, rows = block_rows(function, *ends, groups, plan)
    split = split_samples(rows, plan.held_out)
    judged, told = next(
        (kind, one)
        for kind, one in zip(
            (Judged.TEST, Judged.VALIDATION, Judged.FITTED), (split.test, split.validation, split.fitted), strict=True
        )
        if len(one)
    )
    with torch.no_grad():
        lost = (layer(x[told]) - y[told]).double().norm() / positive((y - y.mean(0)).double()[told].norm())
        bent = (layer.weight - linear.weight).norm() / positive(linear.weight.norm())
    costs, seconds = (cost(function, ends[0]), cost(layer, ends[0])), time.perf_counter() - start
    return layer, BlockReport(cut.name, *costs, float(lost), float(bent), Result.CONVERGED, seconds, judged)


def with_copies(plan: Plan, augment: Augment | None) -> Plan:
    """The plan with a number of changed copies, if something makes them.

    Raises:
        ValueError: if there are to be copies and nothing makes them.
    """
    if augment is None and plan.copies:
        raise ValueError(f"copies={plan.copies} needs an augment that makes them: pass it, or set copies=0")
    return replace(plan, copies=1) if augment is not None and not plan.copies else plan


def with_changed(batch: Batch, augment: Augment | None, plan: Plan) -> list[Batch]:
    """A batch, and changed copies of it."""
    if augment is None:
        return [batch]
    return [batch, *(changed(augment, batch, plan.seed + copy) for copy in range(plan.copies))]


def groups_in(batches: list[Batch]) -> Int[Tensor, " S"]:
    """The group of every example: equal ones, and changed copies with their origins, are together."""
    groups = groups_of_rows(*map(rows_of, batches))
    return groups if len(batches) == 1 else joined(groups, count_samples(batches[0]))


def _compressed(
    copies: tuple[nn.Module, nn.Module],
    batches: list[Any],
    cuts: list[Cut],
    plan: Plan,
    report: OnProgress,
    saved: Checkpoints,
) -> Compression:
    """Replace all blocks in the second of two copies of a network, from the front to the back."""
    model, smaller = copies
    began = time.perf_counter()
    originals, groups = capture(model, cuts, batches), groups_in(batches)
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
        asked = plan.blocks[cut.name]
        if isinstance(asked, LowRank):
            thin, row = _thin(cut, cut.function(model), (arriving, leaving), groups, plan, asked)
            smaller = cut.replace_(smaller, thin)
            blocks.append(row)
            replacements.append(Replacement(cut, layer_to_dict(thin)))
            continue
        kept = sum(one.problem.samples.jacobians.nbytes for one in solutions.values())
        block = sampled_block(cut.function(model), arriving, leaving, groups, plan, tell, plan.memory - kept)
        solution = kept_solution(block, cut.name, plan, tell, saved)
        layer = block.layer(solution)
        costs = cost(block.function, arriving), cost(layer, arriving)  # a layer alone: in its place it may be carried
        smaller = cut.replace_(smaller, layer)
        told = _told(cut.name, costs, solution, block.projection_error, time.perf_counter() - start)
        blocks.append(_of_linear(told, block.function))
        solutions[cut.name] = solution
        replacements.append(Replacement(cut, layer_to_dict(layer)))
    smaller.eval()
    costs = cost(model, batches[0]), cost(smaller, batches[0])
    close = _closeness(smaller, model, batches[:1])
    total = Report(tuple(blocks), *costs, time.perf_counter() - began, close, hooked)
    placed = (*placed_in(model), *replacements)
    remember_(smaller, placed)
    return Compression(smaller, total, plan, solutions, placed, model, Probe.of(batches[0]))


def _told(
    name: str, costs: tuple[Cost, Cost], solution: Solution, projection_error: float, seconds: float
) -> BlockReport:
    errors = solution.output_error, solution.jacobian_error
    return BlockReport(name, *costs, *errors, solution.result, seconds, solution.judged, projection_error)


def _of_linear(row: BlockReport, function: nn.Module) -> BlockReport:
    """The report of a block, which may be a single linear map."""
    return row if linear_in(function) is None else replace(row, linear=True)


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
        if isinstance(asked, LowRank):
            require_linear(cut.name, cut.function(model), asked.rank)
            continue
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
    if len(arriving) > plan.most_rows:
        generator = torch.Generator().manual_seed(plan.seed)
        chosen = torch.randperm(len(arriving), generator=generator, device="cpu")[: plan.most_rows].to(arriving.device)
        arriving, leaving, groups = arriving[chosen], leaving[chosen], groups.to(chosen.device)[chosen]
    return arriving, leaving, groups


def solved(block: SampledBlock, name: str, plan: Plan, report: OnProgress) -> Solution:
    """Solve for the layer that a plan asks for in the place of a block."""
    asked = plan.blocks[name]
    if isinstance(asked, LowRank):
        raise TypeError(f"block {name!r} is to be two thin layers, for which nothing is solved")
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
