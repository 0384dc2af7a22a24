"""A plan for a budget: curves of error against size for every block, and the best choice over all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tenflex.bases import Basis
from tenflex.coordinates.base import require_varying
from tenflex.coordinates.metric import Downstream, OutputMetric
from tenflex.evaluate.planned import Curve, Planned, Tried
from tenflex.planning.candidates import AROUND, METHODS
from tenflex.planning.choices import EXAMPLES, FEWEST, Choices, Made, costs_of
from tenflex.planning.convolutions import convolutions, single_convolutions
from tenflex.planning.effort import PLACES, expected_plan_seconds, speed
from tenflex.planning.facts import Facts, form_of, require_flat_input
from tenflex.planning.followed import Followed, Offered, Probe, compared, probes
from tenflex.planning.joined import Joined, in_a_row
from tenflex.planning.plan import Placed, Plan
from tenflex.planning.survey import survey
from tenflex.planning.surveyed import Candidate
from tenflex.planning.thrift import AS_GOOD, LOST, Coming, Enough, Kind, beaten, kind_of, solved_for
from tenflex.progress import ESTIMATE, Progress
from tenflex.sampling.capture import capture
from tenflex.sampling.metric import are_followed
from tenflex.sums import alike
from tenflex.surgery import Cut, find_blocks, find_cut
from tenflex.surgery.batch import Batch, count_samples, take, tensors_in

MOST_SOLVES = 30
"""Flexible layers that are solved for in all: seconds to a minute each."""

TOLD, ROOM = 64, 2**28
"""So many tell what blocks are made of, or fewer where all that passes between blocks takes more bytes."""

BEHIND, BEHIND_PATCHES, SLACK = 4.0, 2.0, 0.05
"""Of a method no more sizes are tried when the first has so many times the squared error of another one that stores no
more, or more by such a share of the block. For patches the first is one in the middle: it tells more of the others."""

JUDGES, JUDGED = 32, 2**19
"""Curves are measured on so many held-out inputs at least, and on no more where their outputs are so many numbers."""

SMALLER_BY, TIMES = 1 / 4, 4
"""Where only an agreement is asked for, sizes are tried that are smaller by such a factor, so many times at most."""

CLOSER = 2
"""Then, for a block that is replaced alone, so many between the smallest that keeps it and the next that does not."""

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

    def counting(self, metric: OutputMetric | None) -> Bench:
        """The same block, with the same samples, where errors of outputs count otherwise."""
        ...


@dataclass(eq=False, kw_only=True)
class Planner(Choices):
    """The work of finding a plan: what `Choices` are between, and what these are told.

    Args:
        bench: Takes the first of some blocks out, with as many samples as are enough, to make layers for it.
        taken: Blocks that were taken out before their turn, by how errors of their outputs count.
    """

    bench: Callable[[Enough, Sequence[Coming]], Bench]
    taken: dict[str, dict[OutputMetric | None, Bench]] = field(default_factory=dict)
    kinds: dict[Kind, list[str]] = field(default_factory=dict)
    lost: dict[str, list[bool]] = field(default_factory=dict)
    looked: int = 0
    done: int = 0
    total: int = 0

    def planned(self) -> tuple[Plan, Planned]:
        """A plan, and what it was chosen from.

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
        self.require_decisions()
        require_varying(*tensors_in(self.batch))
        if all(map(alike, self.there)):
            raise ValueError(
                f"the network's outputs are the same for all of {count_samples(self.batch)} inputs: expected a network "
                f"whose outputs depend on its inputs"
            )
        known, self.rows = self.facts()
        rounds = {facts: self.rounds(facts) for facts in known}
        wanted = {facts: [one for several in asked for one in several] for facts, asked in rounds.items()}
        self.total = sum(map(len, wanted.values()))
        enough = {facts: self.enough_for(facts, [one for _, one in asked]) for facts, asked in wanted.items()}
        probed = probes(wanted) if self.metric_is_open(wanted) else []
        each = [(facts, method, one) for facts, asked in wanted.items() for method, one in asked]
        seconds = self.expected_seconds([*each, *2 * probed], enough)
        self.report(Progress(ESTIMATE, 0, 1, task="plan", seconds=seconds))
        coming = {one: self.coming(one, enough[one]) for one in wanted}
        self.followed = self.compared(probed, wanted, enough)
        for facts, asked in rounds.items():
            here = coming.pop(facts)
            others = ((other, one) for other, one in coming.items() if not other.kernel)  # that take other rows
            following = [one for other, one in others if other.name not in self.taken]
            self.measure(facts, asked, enough[facts], [here, *following])
        self.require_judges()
        self.rows = [one for one in self.rows if self.folds(one)]
        option, joint, checked = self.repaired(*self.checked(self.affordable(limits)), limits)
        metric = self.metric
        for better in [*self.ended(option, limits)] or self.kept(option, limits):
            option, joint, metric = better.option, better.joint, better.metric
        blocks, alone = self.asked(option), sum(self.error_of(name, option) for name, _ in option.choice)
        curves = tuple(Curve(name, tuple(one.tried for one in made)) for name, made in self.made.items())
        words = {name: self.why(name, option, metric) for name, _ in option.choice}
        solves = sum(solved_for(one.asked) for made in self.made.values() for one in made)
        seconds = time.perf_counter() - began
        told = self.budget.to_dict(), curves, words, alone, joint, checked, self.left_out, solves, seconds
        return replace(self.plan, blocks=blocks, metric=metric), Planned(*told, followed=self.followed)

    def measured(self, planned: Planned, network: nn.Module, held: Bool[Tensor, " S"]) -> Planned:
        """What is told of a plan, with what the network that was made of it in the end loses, and by which inputs."""
        error, lost = self.losses(network, held)
        judges, held_out = int(self.judging(held).sum()), int(held.sum()) >= FEWEST
        return replace(planned, error=error, lost_agreement=lost, judges=judges, held_out=held_out)

    def coming(self, facts: Facts, enough: Enough) -> Coming:
        """A block of which layers will be made."""
        return Coming(self.cuts[facts.name], enough.rows, facts.inputs + facts.outputs)

    def metric_is_open(self, wanted: Iterable[Facts]) -> bool:
        """Whether it is to be found out how errors of blocks should count, and can be.

        Where layers may be folded it is the network in the end that tells: what is behind mends errors.
        """
        asked = self.plan.metric is not None or self.rows
        return not asked and self.followed_by_all([self.cuts[one.name] for one in wanted])

    def compared(
        self, probed: Sequence[Probe], wanted: Mapping[Facts, Offered], enough: Mapping[Facts, Enough]
    ) -> Followed | None:
        """What a few layers tell of how errors should count; None where there are none."""

        def both(facts: Facts, asked: Placed) -> tuple[float, float]:
            self.report(Progress("compare", len(self.taken), len(probed)))
            name = facts.name
            if name not in self.taken:
                plain = self.bench(enough[facts], [self.coming(facts, enough[facts])])
                self.taken[name] = {Downstream(): plain.counting(Downstream()), None: plain}
            benches = self.taken[name]
            held = self.enough(benches[None].held([one for _, one in wanted[facts]]))
            layers = (bench.layer(asked) for bench in benches.values())
            one, other = (self.losses(self.together({name: layer}), held)[0] for layer in layers)
            return one, other

        return compared(both, probed)

    def followed_by_all(self, cuts: Sequence[Cut]) -> bool:
        """Whether errors of all blocks can be measured by what follows: one output each, from which gradients come."""
        if len(self.answers) > 1 or any(cut.several is not None for cut in cuts):
            return False
        try:
            return are_followed(self.model, cuts, take(self.batch, slice(EXAMPLES)), Downstream())
        except (ValueError, RuntimeError):  # such as a function that has no derivative
            return False

    def expected_seconds(self, each: Sequence[Probe], enough: Mapping[Facts, Enough]) -> float:
        """About how long it will take to make layers, each in its block."""
        count, device = count_samples(self.batch), next(iter(tensors_in(self.batch))).device

        def rows(facts: Facts, asked: Placed) -> int:
            return min(count * facts.each, enough[facts].of(asked))

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
                f"it out; of one score z, as of two classes, pass a network that gives torch.cat([0 * z, z], -1)"
            )

    def require_decisions(self) -> None:
        """Raise ValueError if an agreement is asked for that a constant answer would keep, as of rare decisions."""
        if self.budget.lost_agreement is None:
            return
        counts = self.answers[0].argmax(1).bincount()
        others = 1 - int(counts.max()) / int(counts.sum())
        if others <= self.budget.most_lost:
            raise ValueError(
                f"{self.words} is kept by a network that always answers {int(counts.argmax())}, as the original does "
                f"for all but {100 * others:.2f} % of the inputs: ask for less than that, pass inputs of all classes, "
                f"or allow a size instead"
            )

    def require_judges(self) -> None:
        """Raise ValueError if an agreement is asked for, and too few inputs are left of which no layer knows."""
        if self.budget.lost_agreement is None or not self.held:
            return
        held = int(torch.stack([*self.held.values()]).all(0).sum())
        if held < FEWEST:
            raise ValueError(
                f"lost_agreement needs at least {FEWEST} inputs to tell it that no block was fitted to, got {held} of "
                f"{count_samples(self.batch)}: pass more inputs, or allow a size instead"
            )

    @cached_property
    def candidates(self) -> list[Candidate]:
        """The blocks that can be replaced: single layers, outermost blocks of linear ones, and rows of convolutions.

        Each by its own name; single convolutions, which tell what rows of them are worth, come first.
        """
        example = take(self.batch, slice(EXAMPLES))
        able = [one for one in survey(self.model, example).candidates if one.obstacle is None and one.sizes is not None]
        suggested = {one.name for one in able if one.suggestion is not None}
        kept = [one for one in able if one.name in suggested or (one.layers == 1 and not holds_another(one, able))]
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

    def facts(self) -> tuple[list[Facts], list[Joined]]:
        """What is known of each block before anything is solved, and which of them may be folded."""
        known = [one for one in self.candidates if one.name in self.cuts and one.sizes is not None]
        outer = [one for one in known if not any(self.within(one.name, other.name) for other in known)]
        several = [one for one in outer if one.layers > 1]
        share, movable = self.share_left(outer), sum(one.parameters for one in outer)
        most, steps = round(share * movable), max(2, MOST_SOLVES // max(1, len(several)))
        some, ends = self.told([self.cuts[one.name] for one in known])
        require_flat_input(self.plan.shape, {name: tuple(one.shape[1:]) for name, (one, _) in ends.items()})
        shape = self.plan.shape
        answers = [one[: count_samples(some)] for one in self.answers]
        forms = {
            name: form_of(self.cuts[name].function(self.model), *pair, some, shape, answers)
            for name, pair in ends.items()
        }
        bodies = [name for name, form in forms.items() if form.own is not None and form.own.reads > 1]
        apart = [one for one in in_a_row(ends) if forms[one.first].patches and not forms[one.second].patches]
        rows, found = [one for one in apart if not self.within(one.first, one.second)], list[Facts]()
        for one in known:
            form = forms[one.name]
            channels = any(name == one.name or self.within(name, one.name) for name in bodies)
            about = one.name, form.inputs, form.outputs, one.parameters, one.layers, most, share
            alone = len(several) == 1 and len(outer) == 1
            told = form.shape, form.own, form.kernel, form.patches, channels, most // len(outer)
            arrives = next((row.given[0] for row in rows if row.second == one.name), 0)
            leads = any(row.first == one.name for row in rows)
            each = ends[one.name][0].numel() // (form.inputs * count_samples(some))
            found.append(
                Facts(*about, alone, self.basis, steps, *told, leads, arrives, form.output_shape, max(1, each))
            )
        return found, rows

    def share_left(self, outer: Sequence[Candidate]) -> float:
        """The share of the blocks that a budget leaves: of what it limits the scarcest, as the rest stays as it is."""
        whole = self.before._asdict()
        movable = {"parameters": sum(one.parameters for one in outer)}
        movable["bytes"] = int(movable["parameters"] * self.before.bytes / max(1, self.before.parameters))
        macs = [one.macs for one in outer if one.macs is not None]
        movable["macs"] = sum(macs) if len(macs) == len(outer) else self.before.macs
        limits = self.budget.limits(whole).items()
        left = [(limit - whole[name] + movable[name]) / max(1, movable[name]) for name, limit in limits]
        return min(1.0, max(0.0, min(left, default=1.0)))

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

    def rounds(self, facts: Facts) -> list[Offered]:
        """What to try for a block; where an agreement alone is asked for, ever smaller ones after that."""
        times = 1 if self.sized else TIMES
        each = [dict.fromkeys(offers(facts.smaller(SMALLER_BY**time))) for time in range(times)]
        return [
            [one for one in asked if not any(one in before for before in each[:at])] for at, asked in enumerate(each)
        ]

    def going_on(self, facts: Facts, rounds: Sequence[Offered], found: Sequence[Made]) -> Iterator[tuple[str, Placed]]:
        """What to try for a block: smaller sizes of those methods whose smallest one has kept what is asked for."""
        for at, asked in enumerate(rounds):
            lost = set() if at == 0 else {method for method, _ in asked if self.has_lost(method, found)}
            for place, (method, one) in enumerate(asked):
                task = f"plan {facts.name or 'network'}, {method}"
                self.report(Progress(SIZE, self.done + place, self.total, task=task))
                if method not in lost:
                    yield method, one
            self.done += len(asked)
        if facts.alone and not self.sized:
            for _ in range(CLOSER):
                yield from self.between(facts, found)

    def between(self, facts: Facts, found: Sequence[Made]) -> list[tuple[str, Placed]]:
        """For each method a size between the smallest that keeps the agreement and the largest below that does not."""
        more, rest = list[tuple[str, Placed]](), self.before.parameters - facts.parameters
        for method in dict.fromkeys(one.tried.method for one in found):
            ours = {one.tried.parameters - rest: one.tried for one in found if one.tried.method == method}
            least = min((size for size, one in ours.items() if self.keeps((one.error, one.lost_agreement))), default=0)
            below = max((size for size in ours if 0 < size < least), default=0)
            if below:
                middle = facts.smaller(math.sqrt(least * below) / facts.most)
                more += [pair for pair in offers(middle) if pair[0] == method][:1]
        known = [one.asked for one in found]
        return [(method, one) for method, one in more if one not in known]

    def has_lost(self, method: str, found: Sequence[Made]) -> bool:
        """Whether the smallest layer that was made by a method decides otherwise too often."""
        ours = [one.tried for one in found if one.tried.method == method]
        smallest = min(ours, key=lambda one: one.parameters, default=None)
        return smallest is not None and not self.keeps((smallest.error, smallest.lost_agreement))

    def measure(self, facts: Facts, rounds: Sequence[Offered], enough: Enough, coming: Sequence[Coming]) -> None:
        """Make the layers of a block, the first of those that are to come, and measure each in its place."""
        name, found = facts.name, list[Made]()
        bench: Bench | None = None
        for method, asked in self.going_on(facts, rounds, found):
            try:
                if self.lost_elsewhere(facts, method, asked) or self.behind(facts, method, found):
                    continue
                if bench is None:
                    known = self.taken.pop(name, {}).get(self.metric)
                    bench = known or self.bench(enough, coming).counting(self.metric)
                    self.held[name] = bench.held([one for asked in rounds for _, one in asked])
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

    def enough_for(self, facts: Facts, wanted: Sequence[Placed]) -> Enough:
        """The samples of a block that its curves are measured with."""
        return Enough.among(facts, self.plan.samples, max(facts.sizes([max(AROUND)])), wanted)

    def lost_elsewhere(self, facts: Facts, method: str, asked: Placed) -> bool:
        """Whether flexible layers, which take long, were beaten at every size in a block of the same kind.

        Of patches there are many kinds in one network; there it is enough that they were outdone in the first few.
        """
        if not solved_for(asked) or facts.leads:  # whose layers may store less than they do alone
            return False
        lost = self.lost.get(method, []) if facts.patches else []
        before = self.kinds.get(kind_of(facts), ())
        as_good = AS_GOOD if is_last(facts, asked) else 1.0
        same = any(beaten(method, [one.tried for one in self.made[name]], as_good=as_good) for name in before)
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
        if is_last(facts, ours[0].asked) and beaten(method, [one.tried for one in found], as_good=AS_GOOD):
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

    def enough(self, held: Bool[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """The first of the held-out inputs, as many as tell sizes apart: of long sequences, say, few do."""
        each = sum(one[0].numel() for one in self.answers)
        return held & (held.cumsum(0) <= max(JUDGES, JUDGED // each))


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


def holds_another(one: Candidate, others: Sequence[Candidate]) -> bool:
    """Whether a block is a smaller one with functions behind it: a thinner layer takes the place of that one."""
    return any(other.name.startswith(f"{one.name}.") and other.parameters == one.parameters for other in others)


def each_of(model: nn.Module, candidate: Candidate) -> Iterator[Candidate]:
    """The blocks that a candidate stands for, each by its own name."""
    for name in find_blocks(model, [candidate.name]):
        yield replace(candidate, name=name, count=1)
