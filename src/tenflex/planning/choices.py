"""A choice over all blocks: what layers do in a network together, and the best of them within a budget."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenflex.coordinates.metric import Downstream, OutputMetric
from tenflex.evaluate.cost import cost, stored_bytes
from tenflex.evaluate.fidelity import Unpadded, agreement, outputs_of
from tenflex.evaluate.planned import Tried, misled
from tenflex.planning.budget import Budget
from tenflex.planning.choice import Option, Region, frontier
from tenflex.planning.followed import BETTER, Followed
from tenflex.planning.joined import Joined
from tenflex.planning.plan import Placed, Plan
from tenflex.progress import OnProgress, Progress
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch, take
from tenflex.surgery.paths import encloses
from tenflex.surgery.twin import duplicate, twin
from tenflex.units.fold import folds_
from tenflex.units.mask import find_mask

FEWEST = 8
"""Held-out inputs that can judge; of fewer, all inputs do."""

EXAMPLES = 4
"""So many inputs say how tensors flow."""

CHECKED = 8
"""So many plans are put together and measured: those whose single errors add up to the least."""

ENDED, MENDED = 4, 0.4
"""Where layers can be folded so many plans are gone through to the end, and such a share of a convolution's squared
error is expected to be left then."""

ROUNDS = 3
"""Times that a plan of which the sum misled is exchanged for a better one."""


class Costs(NamedTuple):
    """What a network costs, by the names of a budget."""

    parameters: int
    macs: int
    bytes: int


class Ended(NamedTuple):
    """A plan by which the network was compressed: its squared error, other decisions, what counted."""

    option: Option
    joint: float
    lost: float | None
    metric: OutputMetric | None


@dataclass(frozen=True)
class Made:
    """A layer that was made for a block, and what it does there."""

    asked: Placed
    layer: nn.Module
    tried: Tried


@dataclass(eq=False)
class Choices(ABC):
    """A network, layers that were made for its blocks, and the plans of them within a budget.

    Args:
        model: The network, which is not changed.
        batch: Its inputs.
        plan: The settings of every compression.
        budget: What is allowed.
        whole: Compresses the network by a plan from the front to the back, with errors of outputs in some metric, and
            tells which inputs were not fitted.
        report: Told of every step.
        made: The layers that were made for each block.
        held: The inputs of which none of these knows.
        left_out: Why no layer was made for others.
        rows: The blocks of which layers may be folded into those of the blocks behind.
        left: The share of the squared error of a convolution that is folded which counts, as what is behind mends it.
        followed: What layers tell that were made with errors measured by what follows, and without.
    """

    model: nn.Module
    batch: Batch
    plan: Plan
    budget: Budget
    whole: Callable[[Mapping[str, Placed], OutputMetric | None], tuple[nn.Module, Bool[Tensor, " S"]]]
    report: OnProgress
    made: dict[str, list[Made]] = field(default_factory=dict)
    held: dict[str, Bool[Tensor, " S"]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    rows: list[Joined] = field(default_factory=list)
    left: float = 1.0
    followed: Followed | None = None

    @property
    def metric(self) -> OutputMetric | None:
        """How errors of outputs count: as the plan asks or, where it leaves that open, as is better."""
        better = self.followed is not None and self.followed.ratio < BETTER
        return Downstream() if self.plan.metric is None and better else self.plan.metric

    @property
    @abstractmethod
    def cuts(self) -> Mapping[str, Cut]:
        """How each of the blocks is taken out."""

    @property
    def words(self) -> str:
        """The budget in words."""
        return "the budget of " + ", ".join(f"{name} {value}" for name, value in self.budget.to_dict().items())

    @cached_property
    def before(self) -> Costs:
        """What the network costs."""
        return costs_of(self.model, self.batch)

    @property
    def sized(self) -> bool:
        """Whether a size is limited, not only what may be lost."""
        return bool(self.budget.limits(self.before._asdict()))

    def within(self, inner: str, outer: str) -> bool:
        """Whether all modules of one block lie in another one, which is larger."""
        ours, theirs = self.cuts[inner].modules, self.cuts[outer].modules
        inside = all(any(encloses(two, one) for two in theirs) for one in ours)
        return inner != outer and inside and not all(any(encloses(one, two) for one in ours) for two in theirs)

    def together(self, layers: Mapping[str, nn.Module]) -> nn.Module:
        """The network with layers in the places of blocks, to be run: what stays in it is the original's."""
        network = twin(self.model)
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

    @cached_property
    def there(self) -> list[Tensor]:
        """The original's outputs where there is no padding, in a file where they are large."""
        if find_mask(self.model, self.batch, self.plan.mask) is None:
            return self.answers
        return outputs_of((self.model,), [self.batch], unpadded=Unpadded(self.plan.mask))[0]

    @staticmethod
    def judging(held: Bool[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """The held-out inputs, or all where these are too few to judge."""
        return held if held.sum() >= FEWEST else torch.ones_like(held)

    def losses(self, network: nn.Module, held: Bool[Tensor, " S"]) -> tuple[float, float | None]:
        """The relative squared error, and the share of other decisions, on held-out inputs."""
        held = self.judging(held)
        batch, unpadded = take(self.batch, held), Unpadded(self.plan.mask)
        found = outputs_of((network,), [batch], unpadded=unpadded)[0]
        every = {place: one[held.to(one.device)] for place, one in enumerate(self.answers)}
        wanted = list(unpadded.of(self.model, batch, every).values())
        errors = map(relative_square, found, wanted, self.there)
        error = sum(errors) / len(wanted)  # none drowns another by its units
        scores = wanted[0].ndim == 2 and wanted[0].shape[1] > 1
        lost = round(1 - agreement(found[0], wanted[0]), 12) if scores else None  # 0.05, where 1 - 0.95 is above it
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
        if not saved:
            return whole
        mended = sum((1 - self.left) * self.error_of(row.first, whole) for row, _ in self.folded_in(whole))
        costs = tuple(a - b for a, b in zip(whole.costs, saved, strict=True))
        return replace(whole, costs=costs, error=whole.error - mended)

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
        """The plans within the budget, the best one first; where no size is limited, the smallest one.

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
                f"what can be, and why not; other blocks can be named by hand, such as blocks={{'': Block(8)}}"
            )
        if not found:
            least = min((one.costs[0] for one in whole), default=0) + getattr(self.before, names[0])
            raise ValueError(
                f"nothing that was tried is within {self.words}: the smallest has {least:,} {names[0]} of "
                f"{getattr(self.before, names[0]):,}{self.excuse}; allow more"
            )
        if limits:
            return sorted(found, key=lambda one: one.error)
        return ever_closer(found)

    @property
    def excuse(self) -> str:
        """Why blocks were left out, for messages."""
        return "".join(f"; {name or 'the whole network'} was left out: {why}" for name, why in self.left_out.items())

    def checked(self, options: Sequence[Option]) -> tuple[Option, float, int]:
        """The best of a few plans when all their layers are put in together, its error, and how many these are.

        Raises:
            ValueError: if none of them keeps the agreement that the budget asks for.
        """
        losses = self.of_the_first(options) if self.sized else self.of_the_smallest(options)
        good = [place for place in losses if self.keeps(losses[place])]
        if not good:
            least = min(lost or 0.0 for _, lost in losses.values())
            raise ValueError(
                f"nothing that was tried is within {self.words}: of {len(losses)} plans the best decides otherwise for "
                f"{100 * least:.2f} % of the held-out inputs{self.excuse}; allow more, or pass more inputs"
            )
        best = min(good, key=lambda place: losses[place][0] if self.sized else place)
        return options[best], losses[best][0], len(losses)

    def of_the_first(self, options: Sequence[Option]) -> dict[int, tuple[float, float | None]]:
        """What the first few plans lose, by their places."""
        return {place: self.losses_of(options[place], place, CHECKED) for place in range(min(CHECKED, len(options)))}

    def of_the_smallest(self, options: Sequence[Option]) -> dict[int, tuple[float, float | None]]:
        """What plans lose that are ever closer to the smallest one that keeps the agreement, by their places.

        The first of them is where it should be by sums, which may mislead; then each halves what is left.

        Args:
            options: From the smallest plan on, each with a smaller error than the one before by sums.
        """
        found: dict[int, tuple[float, float | None]] = {}
        low, high = 0, len(options)
        place = next((at for at, one in enumerate(options) if one.lost_agreement <= self.budget.most_lost), high - 1)
        while low < high:
            found[place] = self.losses_of(options[place], len(found), len(options).bit_length() + 1)
            low, high = (low, place) if self.keeps(found[place]) else (place + 1, high)
            place = (low + high) // 2
        return found

    def losses_of(self, option: Option, place: int, total: int) -> tuple[float, float | None]:
        """What a plan loses when all its layers are put in together: one of some that are checked."""
        self.report(Progress("check", place, total))
        return self.losses(self.together(self.layers_of(option)), self.judges(option))

    def keeps(self, losses: tuple[float, float | None]) -> bool:
        """Whether the agreement that the budget asks for is kept."""
        return (losses[1] or 0.0) <= self.budget.most_lost

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

    def ended(self, option: Option, limits: Mapping[str, int]) -> Iterator[Ended]:
        """Where layers can be folded, the best of a few plans when the network is compressed by each.

        What is behind a convolution is fitted to what arrives from it, and makes up for some of what it loses. So the
        plan that is the best one by sums is followed by that which would be when a share of the convolution's error is
        left, and by others as that share is measured, for as long as it leads to other plans. The best one is tried
        once more with errors as what follows uses them, where no metric is asked for.
        """
        tried: dict[tuple[tuple[str, int], ...], Ended] = {}
        self.left = MENDED
        while limits and self.rows and len(tried) < ENDED:
            found = option if not tried else next(filter(self.is_folded, self.affordable(limits)), option)
            if found.choice in tried:
                break
            self.report(Progress("check", len(tried), ENDED))
            one = tried[found.choice] = self.end_of(found, self.plan.metric)
            folded = sum(self.error_of(row.first, found) for row, _ in self.folded_in(found))
            others = sum(self.error_of(name, found) for name, _ in found.choice) - folded
            self.left = min(1.0, max(0.0, (one.joint - others) / folded)) if folded else MENDED
        good = [one for one in tried.values() if (one.lost or 0.0) <= self.budget.most_lost]
        for best in sorted(good, key=lambda one: one.joint)[:1]:
            try:
                other = self.end_of(best.option, Downstream()) if self.plan.metric is None else best
            except ValueError:  # such as outputs from which no gradient leads back, or several of one block
                other = best
            yield other if other.joint < best.joint and (other.lost or 0.0) <= self.budget.most_lost else best

    def kept(self, option: Option, limits: Mapping[str, int]) -> Iterator[Ended]:
        """Where an agreement is asked for, the first plan by which a compressed network keeps it: this or a larger one.

        Layers are made anew, each for what arrives at it, of all samples; so they may decide otherwise more often than
        those did that were put together.

        Raises:
            ValueError: if none of a few keeps it.
        """
        if self.budget.lost_agreement is None:
            return
        options = self.affordable(limits)
        others = [one for one in options if one.choice != option.choice]
        if not limits:
            place = next((at for at, one in enumerate(options) if one.choice == option.choice), 0)
            others = [options[at] for at in (place + 2**step for step in range(CHECKED)) if at < len(options)]
        least, several = 1.0, [option, *others[: ENDED - 1]]
        for one in several:
            found = self.end_of(one, self.metric)
            if self.keeps((found.joint, found.lost)):
                yield found
                return
            least = min(least, found.lost or 0.0)
        raise ValueError(
            f"nothing that was tried is within {self.words}: of {len(several)} networks that were compressed by plans "
            f"the best decides otherwise for {100 * least:.2f} % of the held-out inputs; allow more, or pass others too"
        )

    def end_of(self, option: Option, metric: OutputMetric | None) -> Ended:
        """What comes of a plan when the network is compressed by it."""
        network, held = self.whole(self.asked(option), metric)
        return Ended(option, *self.losses(network, held), metric)

    def is_folded(self, option: Option) -> bool:
        """Whether layers of a plan are folded."""
        return any(self.folded_in(option))

    def error_of(self, name: str, option: Option) -> float:
        """The squared error of what a plan puts in the place of a block, alone."""
        return self.made[name][dict(option.choice)[name]].tried.error

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

    def why(self, name: str, option: Option, metric: OutputMetric | None = None) -> str:
        """What a plan takes for a block, beside the best of the others in its place that is no larger."""
        one = self.made[name][dict(option.choice)[name]].tried
        words = f"{one.method}, {one.size}, error {one.error**0.5:.3f}"
        for row, _ in self.folded_in(option):
            if row.first == name:
                words += f", last map in {row.second}" + ("" if metric is None else f", errors by {metric!r}")
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


def ever_closer(options: Iterable[Option]) -> list[Option]:
    """The plans than which no smaller one has as small an error by sums, the smallest first."""
    found: list[Option] = []
    for one in sorted(options, key=lambda one: (one.costs, one.error)):
        if not found or one.error < found[-1].error:
            found.append(one)
    return found


def relative_square(
    found: Float[Tensor, "s *n"], wanted: Float[Tensor, "s *n"], all_of: Float[Tensor, "S *n"]
) -> float:
    """The squared error of an output for each sample, relative to how much it varies over all of them."""
    whole = all_of.double()
    spread = (whole - whole.mean(0)).square().sum().item() / len(whole) or 1.0
    return (found.double() - wanted.double()).square().sum().item() / max(1, len(wanted)) / spread


def costs_of(network: nn.Module, batch: Batch) -> Costs:
    """What a network costs."""
    found = cost(network, batch)
    return Costs(found.parameters, found.macs, stored_bytes(network))
