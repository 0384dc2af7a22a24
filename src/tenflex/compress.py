"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.baselines.chen2021 import Spectrum
from tenflex.bases.base import positive
from tenflex.checkpoint import Checkpoints
from tenflex.checks import require_finite, require_floating
from tenflex.coordinates.sensitivity import typical_shrinkage
from tenflex.decouple import decouple
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.planned import Planned
from tenflex.evaluate.report import BlockReport, Report, Sampled
from tenflex.factors import Factors
from tenflex.finetune import Tuning, tuned
from tenflex.kept import Own
from tenflex.kept.descent import ITERATIONS, Rows
from tenflex.kept.fit import fitted_nodes, judged_nodes, require_own
from tenflex.kept.recognise import own_nodes
from tenflex.kept.start import kept_factors
from tenflex.modes import Modes, Multilinear
from tenflex.nn import FeedForward, FlexibleConv, FlexibleLayer, fold, layer_to_dict
from tenflex.nn.feed_forward import Nodes
from tenflex.nn.low_rank import ThinLinear
from tenflex.page.details import details_of
from tenflex.page.write import write_page
from tenflex.planning.budget import Budget as Allowance
from tenflex.planning.held_out import Choice, Chosen, chosen, typical_coupling
from tenflex.planning.low_rank import linear_in, low_rank_axes, require_linear
from tenflex.planning.plan import Block, LowRank, Placed, Plan
from tenflex.planning.planner import Planner
from tenflex.problem import Problem, require_scale, require_sizes
from tenflex.progress import OnProgress, Progress, silent
from tenflex.reduction import Reduction, matrix_of
from tenflex.result import Judged, Result
from tenflex.samples import Samples
from tenflex.sampling.capture import arrivals, capture
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.inputs import gather
from tenflex.sampling.jacobian import BatchMap, Seen, sample_block, some_jacobians
from tenflex.sampling.memory import WIDE, Budget
from tenflex.sampling.metric import in_metric, metric_root, out_of_metric
from tenflex.sampling.queries import Augment, changed, joined
from tenflex.sampling.skips import Skips
from tenflex.sampling.views import sample_views, views_for
from tenflex.shown import Reported
from tenflex.solution import Solution
from tenflex.split import groups_of_rows, split_samples
from tenflex.storage.network import DAMAGE, Made, Replacement, load, placed_in, read_told, remember_, save_compressed
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

    def folded(self, tolerance: float | None = None) -> nn.Module:
        """The compressed network in the form in which it runs: a new network of standard parts, for use, not training.

        It is not saved: fold what `load` gives.

        Args:
            tolerance: The largest error of any output of a layer, of the root mean square deviation of its outputs, on
                the range of the samples; the fastest form that keeps it is taken. None for the same function, up to
                rounding. Layers of an earlier compression are folded exactly.

        Raises:
            ValueError: if the tolerance is not a positive number.
        """
        cuts = {one.cut.name: one.cut.first for one in self.replacements}
        whole = {name: one for name, one in self.solutions.items() if self._sees_all(name)}
        seen = {cuts[name]: one.problem.samples.original_inputs for name, one in whole.items()}
        return fold(self.model, tolerance, seen)

    def _sees_all(self, name: str) -> bool:
        """Whether a block's samples are in its own coordinates, and not in those of modes."""
        asked = self.plan.blocks[name]
        return isinstance(asked, Block) and asked.modes is None

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
        close = _closeness(network, twin(self.original), [batch])
        seconds, tunings = self.report.seconds + told.seconds, (*self.report.tunings, told)
        report = replace(self.report, fidelity=close, seconds=seconds, tunings=tunings)
        found = replace(self, model=network, report=report)
        remember_(network, found.made)
        return found


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
            are used, `mask`, `basis`, `coupling`, `coordinates`, `lost_energy`, `held_out`, `memory`, `solver`, `seed`,
            `metric`, `mend` and `copies`. The same plan on the same machine with the same number of threads gives the
            same bits.

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

    def bench(cut: Cut) -> Workbench:
        return Workbench(cut, model, batches, plan, report, saved)

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
        plan: Plan,
        report: OnProgress,
        saved: Checkpoints,
    ) -> None:
        self.cut, self.plan, self.report, self.saved = cut, plan, report, saved
        self.function = cut.function(model)
        drawn, _ = drawn_rows(model, [cut], batches, plan)
        self.rows, self.ends = drawn[cut.name], capture(model, [cut], batches, drawn)[cut.name]
        require_block(cut, *self.ends)
        groups = self.rows.groups
        validation = groups[split_samples(groups, plan.held_out).validation].unique()
        self.held = torch.isin(groups_in(batches)[: count_samples(batches[0])], validation)

    def layer(self, asked: Placed) -> nn.Module:
        """A layer in the block's place."""
        name = self.cut.name
        if isinstance(asked, LowRank):
            require_linear(name, self.function, asked.rank)
            return self.axes.layer(asked.rank)
        plan = replace(self.plan, blocks={name: asked})
        if isinstance(asked.basis, Own):
            passed = (*self.ends, self.rows.groups)
            return own_layer(self.rows.unit.function(self.function), name, passed, plan, self.report)[0]
        return self.sampled.layer(kept_solution(self.sampled, name, plan, self.report, self.saved))

    @cached_property
    def sampled(self) -> SampledBlock:
        """The block with its samples."""
        return sampled_block(self.function, self.ends, self.rows, self.plan, self.report, self.plan.memory)

    @cached_property
    def axes(self) -> Spectrum:
        """The axes of a linear layer in which it can be cut."""
        return fitted_axes(self.function, self.ends, self.rows, self.plan)


def fitted_axes(function: nn.Module, passed: tuple[Tensor, Tensor], rows: Drawn, plan: Plan) -> Spectrum:
    """The axes of a linear layer, for the samples that are fitted."""
    linear = linear_in(function)
    if linear is None:
        raise ValueError("only a single nn.Linear has axes to cut")
    x, y = passed
    fitted = split_samples(rows.groups, plan.held_out).fitted
    return low_rank_axes(linear, x[fitted], y[fitted])


def kept_solution(block: SampledBlock, name: str, plan: Plan, report: OnProgress, saved: Checkpoints) -> Solution:
    """The solution that a plan asks for in the place of a block; one that is kept is not solved for again."""
    coupling = typical_coupling(fitted_in(block)) if plan.coupling is None else plan.coupling
    resolved = replace(plan, coupling=coupling)
    settings = replace(resolved, blocks={"": plan.blocks[name]}).to_dict()
    return saved.solution(block.samples, settings, lambda: solved(block, name, resolved, report))


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
    return chosen(solution, choice, report)


def fitted_in(block: SampledBlock) -> int:
    """The samples of a block that are fitted."""
    return len(block.samples) - sum(block.samples.aside or (0,))


def thin_layer(
    name: str, function: nn.Module, passed: tuple[Tensor, Tensor], rows: Drawn, plan: Plan, rank: int
) -> tuple[ThinLinear, dict[str, Any]]:
    """Two thin layers in the place of a linear one, and what is told of them."""
    linear = require_linear(name, function, rank)
    layer = fitted_axes(function, passed, rows, plan).thin(rank)
    if not isinstance(layer, ThinLinear):
        raise TypeError(f"expected block {name!r} to be a linear layer, got {linear}")
    x, y = passed
    split = split_samples(rows.groups, plan.held_out)
    uses = (Judged.TEST, split.test), (Judged.VALIDATION, split.validation), (Judged.FITTED, split.fitted)
    judged, index = next((kind, one) for kind, one in uses if len(one))
    with torch.no_grad():
        lost = (layer(x[index]) - y[index]).double().norm() / positive((y - y.mean(0)).double()[index].norm())
        bent = (layer.weight - linear.weight).norm() / positive(linear.weight.norm())
    errors = {"output_error": float(lost), "jacobian_error": float(bent)}
    return layer, {**errors, "result": Result.CONVERGED, "judged": judged}


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


InPlace: TypeAlias = FlexibleLayer | FlexibleConv | FeedForward | ThinLinear
"""What may stand in the place of a block."""


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
    drawn, tried = drawn_rows(model, cuts, batches, plan)
    with Skips(model, [cut for cut in cuts[1:] if mends(plan, cut.name)], drawn) as around:
        originals = capture(model, cuts, batches, drawn)
    for cut in cuts:
        require_block(cut, *originals[cut.name])
    require_layers(model, cuts, originals, drawn, plan)
    hooked = tuple(name for cut in cuts for name in hooked_below(smaller, cut.modules))
    blocks, layers, solutions = [], dict[str, InPlace](), dict[str, Solution]()
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
        layer: InPlace
        if isinstance(asked, LowRank):
            layer, told = thin_layer(cut.name, whole, (arriving, leaving), rows, plan, asked.rank)
        elif isinstance(asked.basis, Own):
            layer, told = own_layer(
                rows.unit.function(whole), cut.name, (arriving, leaving, rows.groups), plan, tell, root
            )
        else:
            kept = sum(one.problem.samples.bytes_of_jacobians for one in solutions.values())
            block = sampled_block(whole, (arriving, leaving), rows, plan, tell, plan.memory - kept, asked, root)
            choice = chosen_solution(block, cut.name, plan, tell, saved, plan.memory - kept)
            solution = solutions[cut.name] = choice.solution
            layer, told = block.layer(solution), _told(solution, block.projection_error)
            told["chosen"] = choice.settings
            told["linear"] = linear_in(whole) is not None
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
    close = _closeness(smaller, model, batches[:1])
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
    asked = plan.blocks[name]
    return isinstance(asked, Block) and isinstance(asked.basis, Own) if plan.mend is None else plan.mend


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
    model: nn.Module, cuts: list[Cut], batches: list[Batch], plan: Plan
) -> tuple[dict[str, Drawn], dict[str, Tensor]]:
    """The rows that are sampled of each block, and what arrives at it for a few examples."""
    some = few(batches[0])
    groups, seen = groups_in(batches), capture(model, cuts, [some])
    masks = [find_mask(model, batch, plan.mask) for batch in batches]
    known = [one for one in masks if one is not None]
    mask = torch.cat(known) if len(known) == len(masks) else None
    drawn: dict[str, Drawn] = {}
    for cut in cuts:
        arriving, _ = seen[cut.name]
        require_floating(f"the input of block {cut.name!r}", arriving)
        try:
            asked = plan.blocks.get(cut.name)
            named = asked if isinstance(asked, Block) else None
            unit = find_unit(cut.function(model), arriving, None if named is None else named.unit)
            if isinstance(unit, Patch) and named is not None and named.modes is not None:
                raise ValueError("modes are for blocks that are not sampled patch by patch: leave them out")
            each = len(arriving) // count_samples(some)
            shown = mask_for(unit, each, mask, plan.mask)
            drawn[cut.name] = draw(unit, each, groups, plan.most_rows, plan.seed, shown)
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
        if isinstance(asked, LowRank):
            require_linear(cut.name, cut.function(model), asked.rank)
            continue
        x, y = originals[cut.name]
        if isinstance(asked.basis, Own):
            require_own(cut.name, drawn[cut.name].unit.function(cut.function(model)), x, asked.ranks)
            continue
        count, n = len(x), y[0].numel()
        fitted = len(split_samples(drawn[cut.name].groups, plan.held_out).fitted)
        try:
            m = x[0].numel() if asked.modes is None else asked.modes.core_size(tuple(x.shape[1:]))
            views = views_of(plan, asked, (fitted, n, m), plan.memory - kept)
            require_sizes(asked.ranks, asked.factor, asked.output_factor, (fitted, n, m), views)
            Budget(plan.memory - kept, n, m, views).require(count)
        except ValueError as error:
            unit = drawn[cut.name].unit
            raise ValueError(f"block {cut.name!r}: {error} (one sample is {unit})") from None
        kept += 8 * count * (n if views is None else views * (1 + n))  # along one direction at least


def views_of(plan: Plan, asked: Block, sizes: tuple[int, int, int], most_memory: int) -> int | None:
    """The views of each Jacobian that are sampled, from fitted samples, outputs and inputs; None for whole ones.

    An algorithm that was named may need whole ones, and through modes they are small.
    """
    if plan.views is not None or plan.solver is not None or asked.modes is not None:
        return plan.views if isinstance(plan.views, int) else None
    return views_for(*sizes, max(asked.ranks), most_memory)


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
    asked: Block | None = None,
    root: Float[Tensor, "n n"] | None = None,
) -> SampledBlock:
    """Sample a block at its rows, what arrives at it and what should leave it, perhaps through modes or in a metric.

    What is asked for tells its modes, and whether views of the Jacobians will do; `TYPICAL` for layers of many sizes.
    """
    (x, y), asked = passed, asked or TYPICAL

    def tell(done: int, total: int) -> None:
        report(Progress("sample", done, total))

    function, modes = rows.unit.function(function), asked.modes
    split, n = split_samples(rows.groups, plan.held_out), y[0].numel()
    frames = None if modes is None else chosen_modes(modes, function, x[split.fitted], n, most_memory)
    turned = function if root is None else in_metric(function, root)
    targets = y if root is None else y.flatten(1) @ root.to(y)
    how: dict[str, Any] = {"coordinates": plan.coordinates, "split": split, "lost_energy": plan.lost_energy}
    m = x[0].numel()
    views = views_of(plan, asked, (len(split.fitted), n, m), most_memory)
    if frames is not None or (views is None and n * m <= WIDE):
        seen = turned if frames is None else Seen(turned, frames)
        samples = sample_block(seen, x, targets, most_memory=most_memory, on_chunk=tell, **how)
    else:
        samples = sample_views(turned, x, targets, Budget(most_memory, n, m, views), on_chunk=tell, **how)
    if root is not None:
        samples = out_of_metric(samples, root)
    lost = projection_error(function, x[:PROJECTED], samples.reduction, frames)
    through = None if modes is None or frames is None else (modes.of(tuple(x.shape[1:])), frames)
    return SampledBlock(rows.unit, function, samples, tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype, lost, through)


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


def solved(block: SampledBlock, name: str, plan: Plan, report: OnProgress) -> Solution:
    """Solve for the layer that a plan asks for in the place of a block, from each start that comes into question.

    The error on the validation samples chooses among them.
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
        found.append(decouple(problem, plan.solver, seed=plan.seed, on_progress=report))
    factored = asked.factor is not None or asked.output_factor is not None  # what is left of nodes then is not theirs
    alone = asked.start == "cpd" or (asked.start is None and (factored or plan.solver is not None))
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
    metric = None if samples.reduction is None else matrix_of(samples.reduction.output_down)
    return kept_factors(nodes.to(x), asked.ranks, problem.basis, x, y, metric)


def one_layer_of(nodes: Nodes, ranks: tuple[int, ...]) -> bool:
    """Whether a block is one layer of nodes, of which as many can be kept as are asked for."""
    (first, *others), (rank, *more) = nodes.stages, ranks
    return not others and not more and len(first.V) == 1 and rank <= first.width
