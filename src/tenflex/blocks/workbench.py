"""A block that is sampled once, to make layers of any size for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from tenflex.baselines.chen2021 import Spectrum
from tenflex.blocks.heads import output_root, require_parts
from tenflex.blocks.other import fitted_axes, own_layer, passed_in
from tenflex.blocks.rows import drawn_rows, never_fitted, require_block
from tenflex.blocks.sampled import TYPICAL, SampledBlock, sampled_block
from tenflex.blocks.solved import kept_solution
from tenflex.checkpoint import Checkpoints
from tenflex.coordinates.metric import OutputMetric
from tenflex.kept import Own
from tenflex.modes import Modes
from tenflex.planning.effort import PLACES
from tenflex.planning.kernels import FORMS, QUICK, Passage, thin_kernel
from tenflex.planning.low_rank import is_for_kernel, require_low_rank
from tenflex.planning.plan import Block, LowRank, Placed, Plan
from tenflex.planning.thrift import Coming
from tenflex.progress import OnProgress
from tenflex.reduction import matrix_of
from tenflex.sampling.capture import capture
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch
from tenflex.units import Drawn, Image

Passed = tuple[Drawn, tuple[Tensor, Tensor]]
"""Rows of a block, what arrives at them and what leaves them."""


SHARE, WIDE = 4, 8
"""What is taken ahead has such a share of the memory that is allowed, at so many bytes a number at most."""

USUAL, WHOLE, KERNEL = "usual", "whole", "kernel"
"""Kinds of rows: for most layers, for channels, and those that tell the second moments of patches."""


@dataclass(eq=False)
class Ahead:
    """What passes at blocks, taken in one run of the network for as many of the next ones as there is room for.

    Args:
        model: The network.
        batches: Its inputs, and changed copies of them.
        plan: The settings.
    """

    model: nn.Module
    batches: list[Batch]
    plan: Plan
    known: dict[str, Passed] = field(default_factory=dict)

    def passed(self, blocks: Sequence[Coming]) -> Passed:
        """The rows of the first block, and what passes there; those that follow are taken along.

        Raises:
            ValueError: if the first one's cannot be drawn.
        """
        name = blocks[0].cut.name
        if name not in self.known:
            rows = {name: self.drawn(blocks[0])}
            room = self.plan.memory // SHARE - len(rows[name]) * blocks[0].row * WIDE
            for one in blocks[1:]:
                try:
                    found = self.drawn(one)
                except ValueError:  # which is told when its turn comes
                    break
                room -= len(found) * one.row * WIDE
                if room < 0:
                    break
                rows[one.cut.name] = found
            cuts = [one.cut for one in blocks if one.cut.name in rows]
            ends = capture(self.model, cuts, self.batches, rows)
            self.known |= {one: (rows[one], ends[one]) for one in rows}
        return self.known.pop(name)

    def drawn(self, one: Coming) -> Drawn:
        """The rows of a block."""
        name = one.cut.name
        plan = replace(self.plan, samples=one.samples, blocks={name: TYPICAL})
        return drawn_rows(self.model, [one.cut], self.batches, plan, PLACES)[0][name]


class Workbench:
    """A block that is sampled once, at what the original network gives it, to make layers of any size for it."""

    def __init__(
        self,
        cut: Cut,
        model: nn.Module,
        batches: list[Any],
        plan: Plan,
        report: OnProgress,
        saved: Checkpoints,
        enough: Callable[[Placed], int] | None = None,
        taken: Callable[[], Passed] | None = None,
    ) -> None:
        """Take the block out.

        Args:
            cut: How it is taken out.
            model: The network.
            batches: Its inputs, and changed copies of them.
            plan: The settings.
            report: Told of every step.
            saved: What was solved before.
            enough: To how many samples at most a layer is fitted; all that are drawn if left out.
            taken: Gives the rows for a typical layer, and what passes there; the network is run if left out.

        Raises:
            ValueError: if the block has several outputs, and the plan a metric.
        """
        require_parts(cut, plan)
        self.taken = taken
        self.enough = enough
        self.cut, self.plan, self.report, self.saved = cut, plan, report, saved
        self.model, self.batches = model, batches
        self.function = cut.function(model)
        self.known: dict[str, Passed] = {}
        self.samples: dict[tuple[Modes | None, Modes | None], SampledBlock] = {}
        self.moments: Passage | None = None
        self.fewer: dict[tuple[str, int], Passed] = {}
        self.roots: dict[str, Tensor | None] = {}

    def counting(self, metric: OutputMetric | None) -> Workbench:
        """The same block with the same samples, where errors of outputs count otherwise."""
        if metric == self.plan.metric:
            return self
        about = self.cut, self.model, self.batches, replace(self.plan, metric=metric), self.report, self.saved
        other = Workbench(*about, self.enough, self.taken)
        other.known, other.fewer, other.moments = self.known, self.fewer, self.moments
        return other

    def passed(self, asked: Placed) -> Passed:
        """The rows that a layer is made of: of those that are drawn all that are held out, and enough to be fitted."""
        rows, (x, y) = self.drawn(asked)
        share = self.plan.held_out
        most = len(rows) if self.enough is None or isinstance(rows.unit, Image) else self.enough(asked)
        if len(rows.split(share).fitted) <= most or is_for_kernel(asked, self.function):
            return rows, (x, y)
        key = rows.unit.plural, most
        if key not in self.fewer:
            kept = rows.kept(most, share, self.plan.seed)
            self.fewer[key] = rows.some(kept, share), (x[kept.to(x.device)], y[kept.to(y.device)])
        return self.fewer[key]

    def drawn(self, asked: Placed) -> Passed:
        """The rows that are drawn for a layer; those for channels are whole images."""
        if is_for_kernel(asked, self.function):
            return self.known.get(KERNEL) or self.taken_of(self.rows_for(asked), KERNEL)
        if isinstance(asked, Block) and isinstance(asked.basis, Own):
            rows = self.rows_for(asked)
            if isinstance(rows.unit, Image):
                return self.known.get(WHOLE) or self.taken_of(rows, WHOLE)
        if USUAL not in self.known and self.taken is not None:
            passed = self.known[USUAL] = self.taken()
            require_block(self.cut, *passed[1])
        return self.known.get(USUAL) or self.taken_of(self.rows_for(TYPICAL), USUAL)

    def rows_for(self, asked: Placed) -> Drawn:
        """The rows for a layer, drawn."""
        name = self.cut.name
        return drawn_rows(self.model, [self.cut], self.batches, replace(self.plan, blocks={name: asked}), PLACES)[0][
            name
        ]

    def taken_of(self, rows: Drawn, kind: str) -> Passed:
        """Rows of a kind and what passes there; ValueError unless it can be used."""
        name = self.cut.name
        ends = capture(self.model, [self.cut], self.batches, {name: rows})[name]
        require_block(self.cut, *ends)
        self.known[kind] = rows, ends
        return self.known[kind]

    def held(self, wanted: Sequence[Placed]) -> Bool[Tensor, " S"]:
        """The inputs that are not fitted, whatever of these is made: twice as many as those that choose steps."""
        drawn = {id(one): one for one in (self.drawn(asked)[0] for asked in wanted)}
        return never_fitted(self.batches, drawn.values(), self.plan.held_out)

    def layer(self, asked: Placed) -> nn.Module:
        """A layer in the block's place."""
        name = self.cut.name
        if isinstance(asked, LowRank):
            dense = require_low_rank(name, self.function, asked)
            if isinstance(dense, nn.Linear):
                return self.axes.layer(max(asked.ranks))
            return thin_kernel(self.passage(asked), FORMS[asked.form], asked.rank, QUICK)[0]
        plan = replace(self.plan, blocks={name: asked})
        if isinstance(asked.basis, Own):
            rows, ends = self.passed(asked)
            root = self.root(rows, ends[1])
            root = None if root is None else matrix_of(root)
            return own_layer(rows.unit.function(self.function), name, (*ends, rows.groups), plan, self.report, root)[0]
        sampled = self.sampled(asked)
        return sampled.layer(kept_solution(sampled, name, plan, self.report, self.saved))

    def root(self, rows: Drawn, leaving: Float[Tensor, "S *row"]) -> Float[Tensor, "n *n"] | None:
        """The root of the metric in which outputs count, or its diagonal; None to count all alike."""
        unit = rows.unit.plural
        if unit not in self.roots:
            self.roots[unit] = output_root(self.model, self.cut, self.batches, self.plan, rows, leaving)
        return self.roots[unit]

    def sampled(self, asked: Block) -> SampledBlock:
        """The block with its samples, seen through the modes that are asked for."""
        through = asked.modes, asked.output_modes
        if through not in self.samples:
            rows, ends = self.passed(asked)
            like, memory = replace(TYPICAL, modes=asked.modes, output_modes=asked.output_modes), self.plan.memory
            root = self.root(rows, ends[1])
            known = sampled_block(self.function, ends, rows, self.plan, self.report, memory, like, root)
            self.samples = {through: known}
        return self.samples[through]

    @cached_property
    def axes(self) -> Spectrum:
        """The axes of a linear layer in which it can be cut."""
        rows, ends = self.drawn(TYPICAL)
        root = self.root(rows, ends[1])
        return fitted_axes(self.function, ends, rows, self.plan, None if root is None else matrix_of(root))

    def passage(self, asked: LowRank) -> Passage:
        """The moments of what passes a convolution."""
        if self.moments is None:
            dense = require_low_rank(self.cut.name, self.function, asked)
            rows, ends = self.passed(asked)
            self.moments = passed_in(dense, ends, rows, self.plan)
            self.known[KERNEL] = rows, (ends[0][:0].clone(), ends[1][:0].clone())  # the others are not needed any more
        return self.moments
