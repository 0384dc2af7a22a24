"""The verb: sample, decouple, replace, report."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tenflex.blocks.estimate import warn_of
from tenflex.blocks.heads import output_root, require_parts
from tenflex.blocks.layers import Filled, Task, filled, keeps_nodes
from tenflex.blocks.rows import (
    border_error_of,
    drawn_rows,
    never_fitted,
    own_part,
    require_block,
    require_layers,
    sampled_units,
)
from tenflex.blocks.workbench import Ahead, Workbench
from tenflex.checkpoint import Checkpoints
from tenflex.checks import require_seed
from tenflex.coordinates.metric import OutputMetric
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import Fidelity, fidelity
from tenflex.evaluate.planned import Planned
from tenflex.evaluate.report import BlockReport, Report
from tenflex.families import ADD
from tenflex.finetune import Tuning, tuned
from tenflex.nn import FlexibleConv, FlexibleLayer, fold, layer_to_dict
from tenflex.nn.folded import PYTORCH
from tenflex.page.details import details_of
from tenflex.page.records import compared, timed
from tenflex.page.write import Recorded, write_page
from tenflex.planning.budget import Budget as Allowance
from tenflex.planning.plan import Block, Placed, Plan, foreign_settings
from tenflex.planning.planner import Planner
from tenflex.planning.thrift import Coming, Enough
from tenflex.progress import OnProgress, Progress, listening
from tenflex.result import Judged
from tenflex.sampling.capture import arrivals, capture
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.inputs import gather, precision
from tenflex.sampling.queries import Augment, changed
from tenflex.sampling.skips import Skips
from tenflex.scratch import allowing
from tenflex.shown import Reported
from tenflex.solution import Solution
from tenflex.storage.factory import Factory
from tenflex.storage.fingerprint import same_sums, sums_of
from tenflex.storage.network import (
    DAMAGE,
    Made,
    Replacement,
    details_in,
    load,
    made_by,
    original_in,
    placed_in,
    read_told,
    remember_,
    require_same_weights,
    save_compressed,
    weights_in,
    weights_of,
)
from tenflex.storage.probe import Probe
from tenflex.storage.state import require_storable
from tenflex.sums import divided
from tenflex.surgery import Cut, find_blocks, find_cut, require_disjoint
from tenflex.surgery.batch import Batch, count_samples, few
from tenflex.surgery.door import require_module
from tenflex.surgery.hooks import hooked_below
from tenflex.surgery.twin import copied, duplicate, twin
from tenflex.units.fold import folds_

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        made_by: The name of the function that makes the original architecture, where a file that was loaded told it.
        details: What the page shows besides, where a file that was loaded told it; None to tell it of the solutions.
        unread: Settings of a file that was loaded which are of no family that is known here, in plain values: the plan
            is without them, and files have them again.

    Example:
        >>> result = compress(model, inputs, {"": Block(rank=3)})
        >>> print(result.evaluate(torch.randn(50, 6)))  # doctest: +ELLIPSIS
        relative output error: ...
        >>> result.write_report("report.html")
        >>> result.save("small")
        >>> Compression.load("small", model).plan == result.plan
        True
    """

    model: nn.Module
    report: Report
    plan: Plan
    solutions: Mapping[str, Solution]
    replacements: tuple[Replacement, ...]
    original: nn.Module
    probe: Probe | None = None
    made_by: str | None = None
    details: Mapping[str, Any] | None = None
    unread: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        known = weights_in(self.model)
        changed = known is not None and not same_sums(known, sums_of(self.model))
        return str(replace(self.report, changed=self.report.changed or changed))

    def write_report(
        self, path: str | Path, *, comparison: Recorded | None = None, timings: Recorded | None = None
    ) -> None:
        """Write all there is to know as one HTML page that needs nothing else; an earlier file is replaced as a whole.

        It warns if weights have changed since the report was made.

        Args:
            path: The file to write, ending in `.html`.
            comparison: What `tenflex.compare` gave for the same network, to be shown too.
            timings: What `tenflex.export.bench.bench` gave, to be shown too.

        Raises:
            OSError: if the file cannot be written.
            TypeError: if `comparison` or `timings` is something else.
            ValueError: if it does not end in `.html`, or is a file of another program.
        """
        for name, given, verb in (("comparison", comparison, "compare"), ("timings", timings, "export.bench.bench")):
            if given is not None and not isinstance(given, Recorded):
                raise TypeError(f"{name} must be what tenflex.{verb} gave, got {given!r}")
        write_page(
            path,
            self.made.now(self.model),
            command=f"from tenflex import *\ncompress(model, inputs, {self.plan!r})",
            comparison=[] if comparison is None else compared(comparison.to_dict()),
            latencies=[] if timings is None else timed(timings.to_dict()),
        )

    def plot(self, path: str | Path | None = None, *, block: str | None = None, most: int = 20) -> Figure:
        """Draw the activations of a block's flexible layer with the samples that they go through.

        Args:
            path: The file to write; its ending chooses the format (png, pdf, svg). None to write none.
            block: Its name; may be left out where there is one only.
            most: The most nodes that are drawn, the largest ones.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            PlotsUnavailableError: if matplotlib is not installed.
            ValueError: if there is no solution for such a block, or there are several and none is named.
        """
        known = [one for name, one in self.solutions.items() if block in (None, name)]
        if len(known) != 1:
            got = "none was named" if block is None else f"got {block!r}"
            raise ValueError(f"expected block= as one of {list(self.solutions)}, {got}")
        return known[0].plot(path, most=most)

    def evaluate(self, inputs: Any, labels: Int[Tensor, " S"] | None = None) -> Fidelity:
        """How close the compressed network stays to the original one on other inputs.

        Args:
            inputs: Whatever `compress` takes; all of it is used (see `tenflex.evaluate.fidelity`).
            labels: The classes, for the accuracy.

        Raises:
            TypeError: if inputs or labels are no tensors of the right kind.
            ValueError: if they do not fit each other.
        """
        return fidelity(self.model, self.original, inputs, labels, mask=self.plan.mask)

    def folded(self, tolerance: float | None = None, *, batch: int = PYTORCH.samples) -> nn.Module:
        """The compressed network in the form in which it runs: a new network of standard parts, for use, not training.

        It is not saved: fold what `load` gives.

        Args:
            tolerance: The largest error of any output of a layer, of its largest output, on the range of the samples;
                the fastest form that keeps it is taken. None for the same function, up to rounding. Layers of an
                earlier compression are folded exactly.
            batch: How many samples will run at once, which tells the fastest form; any other number runs, too.

        Raises:
            ValueError: if the tolerance is not a positive number, or the batch is below 1.
        """
        device = next((one.device for one in self.model.parameters()), torch.device("cpu"))
        example = None if self.probe is None else self.probe.batch(device)
        return fold(self.model, tolerance, self.arrived(), example=example, pace=PYTORCH.at(batch))

    def arrived(self) -> dict[str, Tensor]:
        """What was seen at the layers, by their names: the inputs of the samples."""
        cuts = {one.cut.name: one.cut.place for one in self.replacements}
        whole = {name: one for name, one in self.solutions.items() if self._sees_all(name)}
        return {cuts[name]: one.problem.samples.original_inputs for name, one in whole.items()}

    def _sees_all(self, name: str) -> bool:
        """Whether a block's samples are in its own coordinates, and not in those of modes."""
        asked = self.plan.blocks[name]
        return isinstance(asked, Block) and asked.modes is None

    def save(self, folder: str | Path, *, made_by: Factory | None = None) -> None:
        """Write `model.safetensors`, `config.json` and `report.json`; a run that dies leaves the previous result.

        The report warns if weights have changed since it was made. The page of another result in the folder goes, and
        so do the settings that made it.

        Args:
            folder: Where to write.
            made_by: A function or a class without arguments that makes the original architecture, or its name
                "package.module:function": the file holds the name, and `tenflex.load(folder, trust=...)` then needs
                no model.

        Raises:
            OSError: if the folder cannot be made or written.
            TypeError: if a layer is made of a basis or modes of your own that no `add_` made known, or what a module's
                `get_extra_state` gives is something else than tensors and plain values.
            ValueError: if the folder holds other files than a previous result, or no other program could import
                `made_by` by its name.
        """
        save_compressed(folder, self.model, self.made.now(self.model).by(made_by))

    @property
    def made(self) -> Made:
        """How the network was made, in plain values."""
        details = details_of(self.solutions) if self.details is None else self.details
        told = {**self.plan.to_dict(), **self.unread}, self.report.to_dict(), self.probe, details, self.made_by
        known = original_in(self.model) or original_in(self.original)
        return Made(self.replacements, *told, weights_in(self.model), known or weights_of(self.original))

    @classmethod
    def load(cls, folder: str | Path, model: nn.Module) -> Compression:
        """A saved compression with its report, to be trained further and saved again; it has no solutions.

        A solver, coordinates or another setting of the user's own that is not known here is left out of the plan, with
        a warning: the network does not need it.

        Args:
            folder: Where `save` wrote it.
            model: The original network, with its weights; it is not changed.

        Raises:
            FileNotFoundError: if there is no result in `folder`.
            TypeError: if `model` is not a module.
            ValueError: if the file is damaged, of another program or of an earlier version, or the model has another
                architecture, other weights or another precision.
        """
        smaller = load(folder, model)
        kinds = precision(smaller), precision(model)
        if None not in kinds and kinds[0] != kinds[1]:
            saved, got = (str(one).removeprefix("torch.") for one in kinds)
            raise ValueError(f"expected a model of {saved}, as {folder} was saved, got {got}: convert it, then load")
        require_same_weights(folder, model)
        plan, report, probe = read_told(folder)
        unread = foreign_settings(plan)
        try:
            plan = {name: one for name, one in plan.items() if name not in unread}
            told = Plan.from_dict(plan), Report.from_dict(report), Probe.from_dict(probe) if probe else None
        except DAMAGE as error:
            raise ValueError(f"{folder} has a damaged header ({error}): compress the network again") from None
        for name, one in unread.items():
            warnings.warn(
                f"{one['family']}, the {name} that {folder} was made with, is not known here: the plan has none in its "
                f"place; import the module that makes it known by {ADD}",
                stacklevel=2,
            )
        placed, details = placed_in(smaller), details_in(smaller)
        return cls(smaller, told[1], told[0], {}, placed, model, told[2], made_by(smaller), details, unread)

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
        given = self.model, self.original, inputs, tuning, listening(on_progress)
        network, told, batch = tuned(*given, self.plan.mask)
        close = _closeness(network, twin(self.original), [batch], self.plan.mask)
        seconds, tunings = self.report.seconds + told.seconds, (*self.report.tunings, told)
        report = replace(self.report, fidelity=close, seconds=seconds, tunings=tunings, changed=False)
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
            arguments. A tuple by itself is one batch only of a network of several arguments: pass `[(inputs, labels)]`.
            Of more than `samples` of them as many are drawn at random. Iterables that know their length are read to the
            end; of others, such as a generator, the first `100 * samples` inputs are read.
        blocks: What to replace: a module ("encoder.layer.3.mlp"), a span of modules that feed each other ("fc1:fc3"),
            the whole network (""), or wildcards ("encoder.layer.*.mlp"), each with its layer. Or a whole plan, such as
            that of an earlier compression, which is repeated. Left out where a budget chooses.
        budget: In the place of blocks, what the network may store, compute and lose: "5%" of its parameters, or a
            `Budget`. What to replace, and by what, is then chosen by errors on held-out inputs, measured for several
            sizes of every block; the report shows them, and `plan` repeats the choice without them.
        checkpoints: A folder where everything that was solved for is kept as the work goes on: the same call after one
            that died solves for the rest, and gives the same bits. It is not removed. With a solver or a basis of your
            own something is kept only if it is known by its name (`add_`), and a change of its code needs a new folder.
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

    Example:
        >>> result = compress(model, inputs, {"": Block(rank=4, factor=3)})
        >>> result.report.after.parameters < result.report.before.parameters
        True
        >>> again = compress(model, inputs, result.plan)
        >>> torch.equal(result.model(inputs), again.model(inputs))
        True
    """
    allowed = None if budget is None else read_budget(budget, blocks)
    plan = with_copies(Plan.of(blocks or {} if allowed is None else UNPLANNED, settings), augment)
    require_module(model)
    require_seed(plan.seed)
    report, saved = listening(on_progress), Checkpoints.of(checkpoints)
    with allowing(plan.memory):
        return _asked_for((model, inputs, augment), allowed, plan, report, saved)


def _asked_for(
    given: tuple[nn.Module, Any, Augment | None],
    allowed: Allowance | None,
    plan: Plan,
    report: OnProgress,
    saved: Checkpoints,
) -> Compression:
    """A network compressed by a plan, or within a budget."""
    model, inputs, augment = given
    found = {} if allowed is not None else find_blocks(model, plan.blocks)
    batches = with_changed(gather(model, inputs, plan.samples, plan.seed, report), augment, plan)
    original, model = model, twin(model)  # which is run: the original stays as it is, and may be at work elsewhere
    require_samplable(model, batches[0])
    smaller = copied(original, batches[0])
    planned, planner = None, None
    if allowed is not None:
        plan, planned, planner = _planned(model, batches, allowed, plan, report, saved)
        found = find_blocks(model, plan.blocks)
    cuts = [find_cut(model, name, batches[0]) for name in found]
    require_disjoint(cuts)
    require_storable(model, [path for cut in cuts for path in cut.modules])
    plan = replace(plan, blocks={name: plan.blocks[pattern] for name, pattern in found.items()})
    done = _compressed((model, smaller), batches, cuts, plan, report, saved)
    if planned is None or planner is None:
        return replace(done, original=original)
    drawn, _ = drawn_rows(model, cuts, batches, plan)
    planned = planner.measured(planned, done.model, never_fitted(batches, drawn.values(), plan.held_out))
    told, seconds = tuple(map(chosen_by, done.report.blocks)), planned.seconds + done.report.seconds
    return replace(done, original=original, report=replace(done.report, planned=planned, blocks=told, seconds=seconds))


def chosen_by(block: BlockReport) -> BlockReport:
    """What is reported of a block when all that was not fitted chose its layer."""
    return replace(block, judged=Judged.VALIDATION) if block.judged is Judged.TEST else block


UNPLANNED: Mapping[str, Placed] = {"": Block(1)}
"""What stands for the blocks of a plan while they are not chosen."""


def read_budget(budget: Any, blocks: object) -> Allowance:
    """The budget, if there are no blocks besides."""
    if blocks is not None:
        raise ValueError("budget chooses the blocks: expected one of the two, got both; leave one out")
    if divided():
        raise ValueError("budget is not divided over processes: name blocks, or use one process")
    return Allowance.of(budget)


def _planned(
    model: nn.Module, batches: list[Any], budget: Allowance, plan: Plan, report: OnProgress, saved: Checkpoints
) -> tuple[Plan, Planned, Planner]:
    """What to replace by what, within a budget, and who chose it."""
    ahead = Ahead(model, batches, plan)

    def bench(enough: Enough, coming: Sequence[Coming]) -> Workbench:
        about = coming[0].cut, model, batches, replace(plan, samples=enough.rows), report, saved
        return Workbench(*about, enough.of, lambda: ahead.passed(coming))

    def whole(blocks: Mapping[str, Placed], metric: OutputMetric | None) -> tuple[nn.Module, Bool[Tensor, " S"]]:
        found = find_blocks(model, blocks)
        asked = replace(plan, blocks={name: blocks[pattern] for name, pattern in found.items()}, metric=metric)
        cuts = [find_cut(model, name, batches[0]) for name in found]
        done = _compressed((model, duplicate(model)), batches, cuts, asked, report, saved)
        drawn, _ = drawn_rows(model, cuts, batches, asked)
        return done.model, never_fitted(batches, drawn.values(), plan.held_out)

    planner = Planner(model, batches[0], plan, budget, whole, report, bench=bench)
    return *planner.planned(), planner


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
    for cut in cuts:
        require_parts(cut, plan)
    drawn, tried = drawn_rows(model, cuts, batches, plan)
    if divided():
        drawn, batches = own_part(drawn, tried, batches, plan)
    with Skips(model, [cut for cut in cuts[1:] if mends(plan, cut)], drawn) as around:
        originals = capture(model, cuts, batches, drawn, on_progress=report)
    for cut in cuts:
        require_block(cut, *originals[cut.name])
    require_layers(model, cuts, originals, drawn, plan)
    hooked = tuple(name for cut in cuts for name in hooked_below(smaller, cut.modules))
    blocks, made = [], dict[str, Filled]()
    for cut in cuts:
        start = time.perf_counter()
        passed = originals.pop(cut.name)
        if made:
            passed = arriving_now(smaller, cut, batches, passed[1], around)
        one, whole, rows = tried[cut.name], cut.function(model), drawn[cut.name]
        root = output_root(model, cut, batches, plan, rows, passed[1])
        room = plan.memory - sum(bytes_kept(known) for known in made.values())
        tell = _about(cut.name or "network", report)
        about = passed, rows, plan, tell, saved, room, root, cut.several, bool(made)
        found = made[cut.name] = filled(Task(cut.name, whole, *about))
        each = len(one) // count_samples(few(batches[0]))
        costs = cost(whole, one).times(each), cost(found.layer, one).times(each)  # in its place it may be carried
        smaller = cut.replace_(smaller, found.layer)
        units = sampled_units(rows, border_error_of(rows, whole, one), plan.held_out)
        blocks.append(BlockReport(cut.name, *costs, seconds=time.perf_counter() - start, sampled=units, **found.told))
    smaller.eval()
    layers = {name: found.layer for name, found in made.items()}
    blocks = _folded_(smaller, blocks, layers, batches[0], tried)
    replacements = [Replacement(cut, layer_to_dict(layers[cut.name])) for cut in cuts]
    costs = cost(model, batches[0]), cost(smaller, batches[0])
    close = _closeness(smaller, model, batches[:1], plan.mask)
    total = Report(tuple(blocks), *costs, time.perf_counter() - began, close, hooked)
    solutions = {name: found.solution for name, found in made.items() if found.solution is not None}
    placed = (*placed_in(model), *replacements)
    done = Compression(smaller, total, plan, solutions, placed, model, Probe.of(batches[0]), made_by(model))
    remember_(smaller, done.made)
    return done


def bytes_kept(made: Filled) -> int:
    """What a block keeps of memory when its layer is made."""
    return 0 if made.solution is None else made.solution.problem.samples.bytes_of_jacobians


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
            ours, theirs = (len(tried[name]) // count_samples(few(batch)) for name in (first, second))
            told[first] = replace(told[first], after=cost(one, tried[first]).times(ours), folded=True)
            arriving = tried[second].new_zeros(1, *other.in_shape)
            told[second] = replace(told[second], after=cost(other, arriving).times(theirs))
    return list(told.values())


def mends(plan: Plan, cut: Cut) -> bool:
    """Whether the layer of a block also makes up for what earlier ones lost: of one tensor that leaves it once."""
    asked = keeps_nodes(plan.blocks[cut.name]) if plan.mend is None else plan.mend
    return asked and cut.parts is None and cut.calls == 1


def arriving_now(
    smaller: nn.Module, cut: Cut, batches: list[Any], leaving: Tensor, around: Skips
) -> tuple[Tensor, Tensor]:
    """What arrives at a later block in the network as it is now, and what should leave it.

    Where the block's output y is added to an x that goes around it, the sum is what is to be as in the original: now
    that x has become another, y has to bring the difference.
    """
    original = around.of(cut.name) if cut.name in around.parts else None
    rows = around.rows.get(cut.name)
    if original is None:
        return arrivals(smaller, cut, batches, rows), leaving
    with Skips(smaller, [cut], around.rows) as skips:
        arriving = arrivals(smaller, cut, batches, rows)
    now = skips.of(cut.name)
    return arriving, leaving if now is None or now.shape != leaving.shape else leaving + (original - now)


def _closeness(smaller: nn.Module, model: nn.Module, batches: list[Any], mask: str | None) -> Fidelity | None:
    """The fidelity on the inputs that were used; None where outputs cannot be compared."""
    try:
        return fidelity(smaller, model, batches, mask=mask)
    except (TypeError, ValueError):  # such as outputs of whole numbers, or all the same: no reason to lose the work
        return None


def _about(task: str, report: OnProgress) -> OnProgress:
    """A report of what is done for a task; of hours it is warned, whoever listens."""

    def tell(progress: Progress) -> None:
        if progress.seconds is not None:
            warn_of(task, progress.seconds)
        report(replace(progress, task=task))

    return tell
