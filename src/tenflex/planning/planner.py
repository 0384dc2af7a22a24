"""A plan for a budget: curves of error against size for every block, and the best choice over all of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import combinations, product
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenflex.bases import Basis
from tenflex.coordinates.base import require_varying
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import agreement, outputs_of
from tenflex.evaluate.planned import Curve, Planned, Tried, misled
from tenflex.planning.budget import Budget
from tenflex.planning.candidates import AROUND, METHODS
from tenflex.planning.choice import Option, Region, frontier
from tenflex.planning.convolutions import convolutions, single_convolutions
from tenflex.planning.effort import PLACES, expected_plan_seconds, speed
from tenflex.planning.facts import Facts, form_of, require_flat_input
from tenflex.planning.joined import Joined, in_a_row
from tenflex.planning.plan import Placed, Plan
from tenflex.planning.survey import survey
from tenflex.planning.surveyed import Candidate
from tenflex.planning.thrift import LOST, Kind, beaten, enough_rows, kind_of, solved_for
from tenflex.progress import ESTIMATE, OnProgress, Progress
from tenflex.sampling.capture import capture
from tenflex.surgery import Cut, find_blocks, find_cut
from tenflex.surgery.batch import Batch, count_samples, take, tensors_in
from tenflex.surgery.paths import encloses
from tenflex.surgery.twin import duplicate
from tenflex.units.fold import folds_

MOST_SOLVES = 30
"""Flexible layers that are solved for in all: seconds to a minute each."""

CHECKED = 8
"""So many plans are put together and measured: those whose single errors add up to the least."""

ENDED = 4
"""Plans of which layers are folded that are gone through to the end."""

ROUNDS = 3
"""Times that a plan of which the sum misled is exchanged for a better one."""

EXAMPLES = 4
"""So many inputs say how tensors flow."""

TOLD, ROOM = 64, 2**28
"""So many tell what blocks are made of, or fewer where all that passes between blocks takes more bytes."""

FEWEST = 8
"""Held-out inputs that can judge; of fewer, all inputs do."""

BEHIND, BEHIND_PATCHES, SLACK = 4.0, 2.0, 0.05
"""Of a method no more sizes are tried when the first has so many times the squared error of another one that stores no
more, or more by such a share of the block. For patches the first is one in the middle: it tells more of the others."""

JUDGES, JUDGED = 64, 2**20
"""Curves are measured on so many held-out inputs at least, and on no more where their outputs are so many numbers."""

SIZE = "size"
"""The stage of progress that counts the sizes that are tried, of all that will be."""


class Bench(Protocol):
    """A block that was taken out, of which layers are made."""

    def held(self, wanted: Sequence[Placed]) -> Bool[Tensor, " S"]:
        """The inputs of which none of such layers knows anything."""
        ...

    def layer(self, asked: Placed) -> nn.Module:
        """A layer in its place; ValueError if there can be none."""
        ...


class Costs(NamedTuple):
    """What a network costs, by the names of a budget."""

    parameters: int
    macs: int
    bytes: int


class Ended(NamedTuple):
    """A plan by which the network was compressed, one of some, with its squared error and share of other decisions."""

    option: Option
    joint: float
    lost: float | None
    tried: int


@dataclass(frozen=True)
class Made:
    """A layer that was made for a block, and what it does there."""

    asked: Placed
    layer: nn.Module
    tried: Tried


@dataclass(eq=False)
class Planner:
    """The work of finding a plan.

    Args:
        model: The network, which is not changed.
        batch: Its inputs.
        plan: The settings of every compression.
        budget: What is allowed.
        bench: Takes a block out of the network with so many samples at most, to make layers for it.
        whole: Compresses the network by a plan from the front to the back, and tells which inputs were not fitted.
        report: Told of every step.
    """

    model: nn.Module
    batch: Batch
    plan: Plan
    budget: Budget
    bench: Callable[[Cut, int], Bench]
    whole: Callable[[Mapping[str, Placed]], tuple[nn.Module, Bool[Tensor, " S"]]]
    report: OnProgress
    made: dict[str, list[Made]] = field(default_factory=dict)
    held: dict[str, Bool[Tensor, " S"]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    kinds: dict[Kind, list[str]] = field(default_factory=dict)
    lost: dict[str, list[bool]] = field(default_factory=dict)
    rows: list[Joined] = field(default_factory=list)
    looked: int = 0
    done: int = 0
    total: int = 0

    def planned(self) -> tuple[dict[str, Placed], Planned]:
        """What to put in the place of which blocks, and what that was chosen from.

        Raises:
            TypeError: if the outputs cannot be compared.
            ValueError: if the network is within the budget as it is, or nothing that was tried is.
        """
        began = time.perf_counter()
        before = self.before._asdict()
        limits = self.budget.limits(before)
        if limits and all(before[name] <= limit for name, limit in limits.items()):
            raise ValueError(f"the network is within {self.words} as it is: there is nothing to compress")
        self.require_scores()
        require_varying(*tensors_in(self.batch))
        wanted = {facts: offers(facts) for facts in self.facts}
        self.total = sum(map(len, wanted.values()))
        self.report(Progress(ESTIMATE, 0, 1, task="plan", seconds=self.expected_seconds(wanted)))
        for facts, asked in wanted.items():
            self.measure(facts, asked)
        self.rows = [one for one in self.rows if self.folds(one)]
        options = self.affordable(limits)
        option, joint, checked = self.repaired(*self.checked(options), limits)
        lost = self.losses(self.together(self.layers_of(option)), self.judges(option))[1]
        for better in self.ended([option, *options], limits):
            option, joint, lost, checked = better.option, better.joint, better.lost, checked + better.tried
        blocks = self.asked(option)
        curves = tuple(Curve(name, tuple(one.tried for one in made)) for name, made in self.made.items())
        words = {name: self.why(name, option) for name, _ in option.choice}
        solves = sum(solved_for(one.asked) for made in self.made.values() for one in made)
        seconds = time.perf_counter() - began
        told = self.budget.to_dict(), curves, words, option.error, joint, checked, self.left_out, solves, seconds
        held = self.judges(option)
        return blocks, Planned(*told, int(self.judging(held).sum()), int(held.sum()) >= FEWEST, lost)

    def expected_seconds(self, wanted: Mapping[Facts, Sequence[tuple[str, Placed]]]) -> float:
        """About how long it will take to try all that is wanted."""
        each = [(facts, method, asked) for facts, several in wanted.items() for method, asked in several]
        rows = {facts: min(count_samples(self.batch), self.rows_for(facts)) for facts in wanted}
        device = next(iter(tensors_in(self.batch))).device
        return expected_plan_seconds(each, rows, PLACES, speed(device))

    def require_scores(self) -> None:
        """Raise ValueError if an agreement is asked for that the outputs do not have, or too few inputs tell."""
        first, held = self.answers[0], round(self.plan.held_out * count_samples(self.batch))
        if self.budget.lost_agreement is not None and held < FEWEST:
            raise ValueError(
                f"lost_agreement needs at least {FEWEST} held-out inputs to tell it, got {held} of "
                f"{count_samples(self.batch)} inputs: pass more inputs, or allow a size instead"
            )
        if self.budget.lost_agreement is not None and (first.ndim != 2 or first.shape[1] < 2):
            raise ValueError(
                f"lost_agreement needs outputs (S, classes) with at least two classes, got {tuple(first.shape)}: leave "
                f"it out"
            )

    @property
    def words(self) -> str:
        """The budget in words."""
        return "the budget of " + ", ".join(f"{name} {value}" for name, value in self.budget.to_dict().items())

    @cached_property
    def before(self) -> Costs:
        """What the network costs."""
        return costs_of(self.model, self.batch)

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The blocks that can be replaced: single layers, outermost blocks of linear ones, and rows of convolutions.

        Each by its own name; single convolutions, which tell what rows of them are worth, come first.
        """
        example = take(self.batch, slice(EXAMPLES))
        able = [one for one in survey(self.model, example).candidates if one.obstacle is None and one.sizes is not None]
        suggested = {one.name for one in able if one.suggestion is not None}
        kept = [one for one in able if one.layers == 1 or one.name in suggested]
        found = [one for kept_one in kept for one in each_of(self.model, kept_one)]
        single = single_convolutions(self.model, self.find)
        return [*single, *found, *convolutions(self.model, example, self.find)]

    @cached_property
    def find(self) -> Callable[[str], Cut]:
        """How a block is taken out, which is found out once; in all that may take minutes, and is told of."""
        modules = sum(1 for _ in self.model.modules())

        def found(name: str) -> Cut:
            self.looked += 1
            self.report(Progress("look", self.looked, max(self.looked, modules)))
            return find_cut(self.model, name, self.batch)

        return cache(found)

    @cached_property
    def cuts(self) -> dict[str, Cut]:
        """How each of them is taken out; of two that are the same modules one is enough."""
        found: dict[str, Cut] = {}
        for one in self.candidates:
            cut = self.find(one.name)
            if set(cut.modules) not in [set(other.modules) for other in found.values()]:
                found[one.name] = cut
        return found

    @property
    def facts(self) -> Iterator[Facts]:
        """What is known of each block before anything is solved."""
        known = [one for one in self.candidates if one.name in self.cuts and one.sizes is not None]
        outer = [one for one in known if not any(self.within(one.name, other.name) for other in known)]
        several = [one for one in outer if one.layers > 1]
        movable = sum(one.parameters for one in outer)
        limit = self.budget.limits(self.before._asdict()).get("parameters", self.before.parameters)
        most = max(0, limit - (self.before.parameters - movable))
        share, steps = min(1.0, most / max(1, movable)), max(2, MOST_SOLVES // max(1, len(several)))
        some, ends = self.told([self.cuts[one.name] for one in known])
        require_flat_input(self.plan.shape, {name: tuple(one.shape[1:]) for name, (one, _) in ends.items()})
        shape = self.plan.shape
        forms = {name: form_of(self.cuts[name].function(self.model), *pair, some, shape) for name, pair in ends.items()}
        bodies = [name for name, form in forms.items() if form.own is not None and form.own.reads > 1]
        apart = [one for one in in_a_row(ends) if forms[one.first].patches and not forms[one.second].patches]
        self.rows = [one for one in apart if not self.within(one.first, one.second)]
        for one in known:
            form = forms[one.name]
            channels = any(name == one.name or self.within(name, one.name) for name in bodies)
            about = one.name, form.inputs, form.outputs, one.parameters, one.layers, most, share
            alone = len(several) == 1 and len(outer) == 1
            told = form.shape, form.own, form.kernel, form.patches, channels, most // len(outer)
            arrives = next((row.given[0] for row in self.rows if row.second == one.name), 0)
            leads = any(row.first == one.name for row in self.rows)
            yield Facts(*about, alone, self.basis, steps, *told, leads, arrives)

    def told(self, cuts: Sequence[Cut]) -> tuple[Batch, dict[str, tuple[Tensor, Tensor]]]:
        """A few inputs, and what arrives at blocks and leaves them then; fewer where there is no room for that."""
        few = take(self.batch, slice(EXAMPLES))
        ends = capture(self.model, cuts, [few])
        each = sum(one.numel() * one.element_size() for pair in ends.values() for one in pair) // count_samples(few)
        count = min(TOLD, ROOM // max(1, each))
        if count <= EXAMPLES:
            return few, ends
        some = take(self.batch, slice(count))
        return some, capture(self.model, cuts, [some])

    @property
    def basis(self) -> Basis:
        """The functions of activations."""
        return self.plan.basis

    def within(self, inner: str, outer: str) -> bool:
        """Whether all modules of one block lie in another one, which is larger."""
        ours, theirs = self.cuts[inner].modules, self.cuts[outer].modules
        inside = all(any(encloses(two, one) for two in theirs) for one in ours)
        return inner != outer and inside and not all(any(encloses(one, two) for one in ours) for two in theirs)

    def measure(self, facts: Facts, wanted: Sequence[tuple[str, Placed]]) -> None:
        """Make the layers of a block, and measure each in its place."""
        name, found = facts.name, list[Made]()
        bench: Bench | None = None
        for method, asked in wanted:
            task = f"plan {name or 'network'}, {method}"
            self.report(Progress(SIZE, self.done, self.total, task=task))
            self.done += 1
            try:
                if self.lost_elsewhere(facts, method, asked) or self.behind(facts, method, found):
                    continue
                if bench is None:
                    bench = self.bench(self.cuts[name], self.rows_for(facts))
                    self.held[name] = bench.held([one for _, one in wanted])
                layer = bench.layer(asked)
            except ValueError as error:  # such as too many numbers for memory, or for so few inputs
                self.left_out[name] = " ".join(str(error).split())
                if bench is None:
                    return
                continue
            found.append(Made(asked, layer, self.tried(name, method, asked, layer)))
        if found:
            self.made[name] = found
            self.left_out.pop(name, None)
            self.kinds.setdefault(kind_of(facts), []).append(name)
            for method in {one.tried.method for one in found if facts.patches and solved_for(one.asked)}:
                self.lost.setdefault(method, []).append(self.outdone(name, method, found))

    def rows_for(self, facts: Facts) -> int:
        """The samples of a block that its curves are measured with."""
        return enough_rows(facts, self.plan.samples, facts.sizes([max(AROUND)]))

    def lost_elsewhere(self, facts: Facts, method: str, asked: Placed) -> bool:
        """Whether flexible layers, which take long, were beaten at every size in a block of the same kind.

        Of patches there are many kinds in one network; there it is enough that they were outdone in the first few.
        """
        if not solved_for(asked) or facts.leads:  # whose layers may store less than they do alone
            return False
        lost = self.lost.get(method, []) if facts.patches else []
        before = self.kinds.get(kind_of(facts), ())
        same = any(beaten(method, [one.tried for one in self.made[name]]) for name in before)
        return same or (len(lost) >= LOST and all(lost))

    def outdone(self, name: str, method: str, found: Sequence[Made]) -> bool:
        """Whether at every size of a method something else that stores no more did better, layers one by one too."""
        return beaten(method, [one.tried for one in found], lambda most: (error for _, error in self.parts(name, most)))

    def behind(self, facts: Facts, method: str, found: Sequence[Made]) -> bool:
        """Whether the first size of a method is far behind something else that is hardly larger.

        Of what comes last it is enough, too, that something else, no larger, did better at all sizes until then.
        """
        ours = [one for one in found if one.tried.method == method]
        if not ours:
            return False
        if is_last(facts, ours[0].asked) and beaten(method, [one.tried for one in found]):
            return True
        first = ours[0].tried
        most = first.parameters + int(SLACK * facts.parameters)
        others = [one for one in found if one.tried.method != method and one.tried.parameters <= most]
        rivals = [one.tried.error for one in others if solved_for(one.asked) or not facts.leads]
        rivals += [] if facts.leads else [error for _, error in self.parts(facts.name, most)]
        return bool(rivals) and (BEHIND_PATCHES if facts.patches else BEHIND) * min(rivals) < first.error

    def tried(self, name: str, method: str, asked: Placed, layer: nn.Module) -> Tried:
        """What a layer does in the place of a block."""
        network = self.together({name: layer})
        error, lost = self.losses(network, self.enough(self.held[name]))
        settings = Plan({name: asked}).to_dict()["blocks"][name]
        settings = {key: value for key, value in settings.items() if value is not None}
        costs = costs_of(network, self.batch)
        return Tried(method, settings, costs.parameters, costs.macs, costs.bytes, error, lost)

    def together(self, layers: Mapping[str, nn.Module]) -> nn.Module:
        """The network with layers in the places of blocks."""
        network = duplicate(self.model)
        layers = {name: copy.deepcopy(one) for name, one in layers.items()}  # which may be given a hook
        return self.with_these(network, layers)

    def with_these(self, network: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
        """A copy of the network with these very layers in the places of blocks."""
        for name, cut in self.cuts.items():
            if name in layers:
                network = cut.replace_(network, layers[name])
        return network.eval()

    def folds(self, row: Joined) -> bool:
        """Whether the last map of some layer for a block does become part of one for the block behind it."""
        pairs = product(self.made.get(row.first, ()), self.made.get(row.second, ()))
        layers = next(((one.layer, two.layer) for one, two in pairs if row.saved(one.layer, two.layer)), None)
        if layers is None:
            return False
        first, second = map(copy.deepcopy, layers)
        network = self.with_these(duplicate(self.model), {row.first: first, row.second: second})
        return folds_(network, first, second, take(self.batch, slice(EXAMPLES)))

    @cached_property
    def answers(self) -> list[Tensor]:
        """The original's outputs."""
        return outputs_of((self.model,), [self.batch])[0]

    @staticmethod
    def judging(held: Bool[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """The held-out inputs, or all where these are too few to judge."""
        return held if held.sum() >= FEWEST else torch.ones_like(held)

    def enough(self, held: Bool[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """The first of the held-out inputs, as many as tell sizes apart: of long sequences, say, few do."""
        each = sum(one[0].numel() for one in self.answers)
        return held & (held.cumsum(0) <= max(JUDGES, JUDGED // each))

    def losses(self, network: nn.Module, held: Bool[Tensor, " S"]) -> tuple[float, float | None]:
        """The relative squared error, and the share of other decisions, on held-out inputs."""
        held = self.judging(held)
        found = outputs_of((network,), [take(self.batch, held)])[0]
        wanted = [one[held.to(one.device)] for one in self.answers]
        error = sum(map(relative_square, found, wanted, self.answers)) / len(wanted)  # none drowns another by its units
        scores = wanted[0].ndim == 2 and wanted[0].shape[1] > 1
        lost = 1 - agreement(found[0], wanted[0]) if scores else None
        return (error if error < float("inf") else float("inf")), lost

    def options(self, name: str, names: Sequence[str]) -> list[Option]:
        """What was made for a block, as ways to treat it."""
        found = []
        for place, one in enumerate(self.made.get(name, ())):
            saved = tuple(getattr(one.tried, each) - getattr(self.before, each) for each in names)
            found.append(Option(((name, place),), saved, one.tried.error, one.tried.lost_agreement or 0.0))
        return found

    def regions(self, names: Sequence[str], inside: str | None = None) -> list[Region]:
        """The blocks, each with those that lie in it."""
        here = [one for one in self.cuts if inside is None or self.within(one, inside)]
        outer = [one for one in here if not any(self.within(one, other) for other in here)]
        each = {one: Region(self.options(one, names), self.regions(names, one)) for one in outer}
        for row in self.rows:
            if row.first in each and row.second in each:
                apart = each.pop(row.first), each[row.second]
                whole = [self.sum_of(names, pair) for pair in product(*(one.options for one in apart))]
                each[row.second] = Region([one for one in whole if self.saved(names, one)], apart)
        return list(each.values())

    def sum_of(self, names: Sequence[str], options: Iterable[Option]) -> Option:
        """Ways to treat several blocks together: what these cost, less what is saved where layers are folded."""
        whole = sum(options, Option(costs=(0,) * len(names)))
        saved = self.saved(names, whole)
        return replace(whole, costs=tuple(a - b for a, b in zip(whole.costs, saved, strict=True))) if saved else whole

    def saved(self, names: Sequence[str], option: Option) -> tuple[int, ...]:
        """What is saved as layers are folded; empty if none is."""
        found = [tuple(less[name] for name in names) for _, less in self.folded_in(option)]
        return tuple(map(sum, zip(*found, strict=True)))

    def folded_in(self, option: Option) -> Iterator[tuple[Joined, Mapping[str, int]]]:
        """The blocks of a plan of which layers are folded, and what each of these pairs saves."""
        layers = self.layers_of(option)
        for row in self.rows:
            if row.first in layers and row.second in layers:
                less = row.saved(layers[row.first], layers[row.second])
                yield from [(row, less)] if less else []

    def affordable(self, limits: Mapping[str, int]) -> list[Option]:
        """The plans within the budget, the best one first.

        Raises:
            ValueError: if there is none.
        """
        names = [*limits] or ["parameters"]
        whole = frontier(self.regions(names), len(names), self.budget.lost_agreement is not None)
        room = [limits.get(name, self.before.parameters) - getattr(self.before, name) for name in names]
        found = [one for one in whole if one.choice and all(a <= b for a, b in zip(one.costs, room, strict=True))]
        if not self.made:
            raise ValueError(
                f"no block could be replaced, so nothing is within {self.words}{self.excuse}: tenflex.inspect tells "
                f"what can be, and why not"
            )
        if not found:
            least = min((one.costs[0] for one in whole), default=0) + getattr(self.before, names[0])
            raise ValueError(
                f"nothing that was tried is within {self.words}: the smallest has {least:,} {names[0]} of "
                f"{getattr(self.before, names[0]):,}{self.excuse}; allow more"
            )
        if limits:
            return sorted(found, key=lambda one: one.error)
        good = [one for one in found if one.lost_agreement <= self.budget.most_lost]
        return sorted(good, key=lambda one: one.costs) + sorted(
            (one for one in found if one not in good), key=lambda one: one.lost_agreement
        )

    @property
    def excuse(self) -> str:
        """Why blocks were left out, for messages."""
        return "".join(f"; {name or 'the whole network'} was left out: {why}" for name, why in self.left_out.items())

    def checked(self, options: Sequence[Option]) -> tuple[Option, float, int]:
        """The best of the first few plans when all their layers are put in together, its error, and how many these are.

        Raises:
            ValueError: if none of them keeps the agreement that the budget asks for.
        """
        first = options[:CHECKED]
        losses = []
        for place, one in enumerate(first):
            self.report(Progress("check", place, len(first)))
            losses.append(self.losses(self.together(self.layers_of(one)), self.judges(one)))
        good = [place for place, (_, lost) in enumerate(losses) if (lost or 0.0) <= self.budget.most_lost]
        if not good:
            least = min(lost or 0.0 for _, lost in losses)
            raise ValueError(
                f"nothing that was tried is within {self.words}: of {len(first)} plans the best decides otherwise for "
                f"{100 * least:.2f} % of the held-out inputs{self.excuse}; allow more, or pass more inputs"
            )
        sized = bool(self.budget.limits(self.before._asdict()))
        best = min(good, key=lambda place: losses[place][0] if sized else first[place].costs[0])
        return first[best], losses[best][0], len(first)

    def repaired(
        self, option: Option, joint: float, checked: int, limits: Mapping[str, int]
    ) -> tuple[Option, float, int]:
        """A plan whose error together is far from the sum of single errors, exchanged for a better one near it.

        Near are plans that treat one or two of its blocks otherwise, within the budget. Those with the least sums are
        put together and measured, and again from the best of them, as long as one is better.
        """
        if not limits or not misled(joint, option.error) or len(option.choice) < 2:
            return option, joint, checked
        known = {option.choice}
        for _ in range(ROUNDS):
            near = [one for one in self.near(option, limits) if one.choice not in known][:CHECKED]
            known |= {one.choice for one in near}
            good = []
            for one in near:
                error, lost = self.losses(self.together(self.layers_of(one)), self.judges(one))
                good += [(error, one)] if (lost or 0.0) <= self.budget.most_lost and error < joint else []
            checked += len(near)
            if not good:
                break
            joint, option = min(good, key=lambda pair: pair[0])
        return option, joint, checked

    def ended(self, options: Sequence[Option], limits: Mapping[str, int]) -> Iterator[Ended]:
        """Where layers of a plan are folded, the best of a few when the network is compressed by each.

        What is behind a convolution makes up for what that loses, the more the larger it is, of which no sum tells. So
        they are the best plans for each of a few layers behind; where one is left, there is nothing to choose.

        Args:
            options: The plan, and others, the best one first.
            limits: What is allowed.
        """
        rivals: dict[tuple[int, ...], Option] = {}
        for one in options if limits and any(self.folded_in(options[0])) else ():
            behind = [row.second for row, _ in self.folded_in(one)]
            if behind:
                rivals.setdefault(tuple(dict(one.choice)[name] for name in behind), one)
        few, losses = list(rivals.values())[:ENDED], list[Ended]()
        for place, one in enumerate(few if len(few) > 1 else ()):
            self.report(Progress("check", place, len(few)))
            losses.append(Ended(one, *self.losses(*self.whole(self.asked(one))), len(few)))
        good = [one for one in losses if (one.lost or 0.0) <= self.budget.most_lost]
        yield from sorted(good, key=lambda one: one.joint)[:1]

    def asked(self, option: Option) -> dict[str, Placed]:
        """What a plan puts in the places of blocks."""
        return {name: self.made[name][place].asked for name, place in option.choice}

    def near(self, option: Option, limits: Mapping[str, int]) -> list[Option]:
        """The plans within the budget that treat one or two blocks of a plan otherwise, the least sum first."""
        names = list(limits)
        room = [limits[name] - getattr(self.before, name) for name in names]
        each = [(Option(costs=(0,) * len(names)), *self.options(name, names)) for name, _ in option.choice]
        now = [ways[1 + place] for ways, (_, place) in zip(each, option.choice, strict=True)]
        found: dict[tuple[tuple[str, int], ...], Option] = {}
        for first, second in combinations(range(len(now)), 2):
            for one, other in product(each[first], each[second]):
                ways = [*now[:first], one, *now[first + 1 : second], other, *now[second + 1 :]]
                whole = self.sum_of(names, ways)
                if whole.choice and all(a <= b for a, b in zip(whole.costs, room, strict=True)):
                    found[whole.choice] = whole
        return sorted(found.values(), key=lambda one: one.error)

    def layers_of(self, option: Option) -> dict[str, nn.Module]:
        """The layers of a plan."""
        return {name: self.made[name][which].layer for name, which in option.choice}

    def judges(self, option: Option) -> Bool[Tensor, " S"]:
        """The inputs of which none of the layers of a plan knows."""
        held = [self.held[name] for name, _ in option.choice]
        return torch.stack(held).all(0)

    def why(self, name: str, option: Option) -> str:
        """What a plan takes for a block, beside the best of the others in its place that is no larger."""
        one = self.made[name][dict(option.choice)[name]].tried
        words = f"{one.method}, {one.size}, error {one.error**0.5:.3f}"
        words += "".join(f", last map in {row.second}" for row, _ in self.folded_in(option) if row.first == name)
        found = [*self.parts(name, one.parameters), *self.wholes(name, option)]
        if not found:
            return words
        what, least = min(found, key=lambda pair: pair[1])
        return f"{words}; {what} {least**0.5:.3f}"

    def parts(self, name: str, most: int) -> Iterator[tuple[str, float]]:
        """The best of what could be put in the place of a block's layers one by one."""
        for one in frontier(self.regions(["parameters"], name), 1):
            if one.choice and one.costs[0] <= most - self.before.parameters:
                yield "its layers one by one, no larger:", one.error

    def wholes(self, name: str, option: Option) -> Iterator[tuple[str, float]]:
        """The best of what could be put in the place of a larger block of which a plan replaces parts."""
        for outer, made in self.made.items():
            if self.within(name, outer):
                parts = [self.made[one][place].tried for one, place in option.choice if self.within(one, outer)]
                saved = sum(self.before.parameters - one.parameters for one in parts)
                for one in made:
                    if one.tried.parameters <= self.before.parameters - saved:
                        yield f"all of {outer or 'the network'}, no larger: {one.tried.method},", one.tried.error


def relative_square(
    found: Float[Tensor, "s *n"], wanted: Float[Tensor, "s *n"], all_of: Float[Tensor, "S *n"]
) -> float:
    """The squared error of an output for each sample, relative to how much it varies over all of them."""
    whole = all_of.double()
    spread = (whole - whole.mean(0)).square().sum().item() / len(whole) or 1.0
    return (found.double() - wanted.double()).square().sum().item() / len(wanted) / spread


def offers(facts: Facts) -> list[tuple[str, Placed]]:
    """What to try for a block, with the method that each is of.

    One size of every method comes before all others: the largest one, for patches one in the middle. Where there are
    other blocks flexible layers, which take long, come last, from the smallest, where functions of their own pay most.
    """
    each = {name: list(method(facts)) for name, method in METHODS.items()}
    last = {name: several for name, several in each.items() if several and is_last(facts, several[0])}
    first = [
        (name, asked.pop(len(asked) // 2 if facts.patches else 0))
        for name, asked in each.items()
        if asked and name not in last
    ]
    others = [(name, asked) for name, several in each.items() if name not in last for asked in several]
    return [*first, *others, *((name, one) for name, several in last.items() for one in reversed(several))]


def is_last(facts: Facts, asked: Placed) -> bool:
    """Whether it is tried only where nothing quick is as good."""
    return solved_for(asked) and not facts.alone and not facts.patches


def each_of(model: nn.Module, candidate: Candidate) -> Iterator[Candidate]:
    """The blocks that a candidate stands for, each by its own name."""
    for name in find_blocks(model, [candidate.name]):
        yield replace(candidate, name=name, count=1)


def costs_of(network: nn.Module, batch: Batch) -> Costs:
    """What a network costs."""
    found = cost(network, batch)
    held = {one.data_ptr(): one for one in (*network.parameters(), *network.buffers())}
    return Costs(found.parameters, found.macs, sum(one.numel() * one.element_size() for one in held.values()))
