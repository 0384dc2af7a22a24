"""A block that is sampled once, to make layers of any size for it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tenflex.baselines.chen2021 import Spectrum
from tenflex.blocks.other import fitted_axes, own_layer
from tenflex.blocks.rows import drawn_rows, groups_in, require_block
from tenflex.blocks.sampled import SampledBlock, sampled_block
from tenflex.blocks.solved import kept_solution
from tenflex.checkpoint import Checkpoints
from tenflex.kept import Own
from tenflex.planning.low_rank import require_linear
from tenflex.planning.plan import LowRank, Placed, Plan
from tenflex.progress import OnProgress
from tenflex.sampling.capture import capture
from tenflex.split import split_samples
from tenflex.surgery import Cut
from tenflex.surgery.batch import count_samples


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
