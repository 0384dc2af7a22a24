"""Blocks whose outputs are images or signals: what the modes tell of these, and what is lost besides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.modes import Modes, Multilinear
from tenflex.planning.plan import Block, Plan
from tenflex.sampling.metric import symmetric_root
from tenflex.sums import mean_of, over_samples
from tenflex.surgery import Cut
from tenflex.units import Drawn, Patch


class Narrowed(nn.Module):
    """What modes tell of a block's outputs."""

    def __init__(self, function: nn.Module, modes: Multilinear) -> None:
        super().__init__()
        self.function, self.multilinear = function, modes

    def forward(self, x: Float[Tensor, "S *in"]) -> Float[Tensor, "S k"]:
        """Flat."""
        return self.multilinear.narrow(self.function(x).flatten(1))


class WholeErrors(NamedTuple):
    """Relative errors of all that a block gives, not of what the modes tell of it.

    Args:
        layer: That of the layer.
        modes: That of the block's own outputs, once they are projected: no layer with such modes does better.
    """

    layer: float
    modes: float


def require_output_modes(cut: Cut, plan: Plan, rows: Drawn, out_shape: tuple[int, ...]) -> None:
    """Raise ValueError if modes of outputs are asked for that a block does not have."""
    asked = plan.blocks[cut.name]
    if not isinstance(asked, Block) or asked.output_modes is None:
        return
    if cut.several is not None:
        raise ValueError(f"block {cut.name!r} has several outputs, which share no axes: leave output_modes out")
    if isinstance(rows.unit, Patch):
        raise ValueError(
            f"block {cut.name!r} is sampled by patches, whose outputs are the channels at one place: leave "
            f"output_modes out, or take unit='example' for whole images"
        )
    try:
        asked.output_modes.of(out_shape)
    except ValueError as error:
        raise ValueError(f"block {cut.name!r}: output_modes: {error}") from None


def chosen_output_modes(modes: Modes, y: Float[Tensor, "S *out"]) -> tuple[Modes, Multilinear]:
    """The modes with all axes and sizes, and their directions, from outputs that will be fitted."""
    whole = modes.of(tuple(y.shape[1:]))
    return whole, whole.choose_outputs(y)


def narrowed_root(root: Float[Tensor, "n *n"] | None, modes: Multilinear) -> Float[Tensor, "k k"] | None:
    """The root of a metric of outputs, for what the modes tell of them: that of `P^T R^T R P`."""
    if root is None:
        return None
    P = modes.matrix().to(root)
    turned = root[:, None] * P if root.ndim == 1 else root @ P
    return symmetric_root(turned.mT @ turned)


@torch.no_grad()
def whole_errors(
    layer: nn.Module, modes: Multilinear, passed: tuple[Tensor, Tensor], rows: Drawn, plan: Plan
) -> WholeErrors:
    """The errors of all outputs, on the samples that choose nothing, as far as there are such."""
    (x, y), split = passed, rows.split(plan.held_out)
    _, index = split.judging
    wanted, mean = y[index].double().flatten(1), mean_of(y[split.fitted].double().flatten(1))
    found, best = layer(x[index]).double().flatten(1), modes.widen(modes.narrow(wanted))
    lost = (over_samples((one - wanted).square().sum()) for one in (found, best))
    spread = positive(over_samples((wanted - mean).square().sum()))
    return WholeErrors(*(float((one / spread).sqrt()) for one in lost))
