"""One budget of stored numbers for several layers, each of which may become smaller in steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.linear import put_
from tenflex.baselines.ranks import Ladder, Steps, choose_steps
from tenflex.evaluate.fidelity import predict, relative_error

SCORED_INPUTS = 1000
"""At most so many of the calibration inputs score an allocation of ranks, spread evenly over them."""

EVALUATIONS = 100
"""At most so many allocations of ranks are scored."""


class Shrinkable(Protocol):
    """A layer, with what may take its place."""

    def ladder(self) -> Ladder:
        """Its ranks, with what each stores and loses; the layer as it is at the end."""

    def layer(self, rank: int | None) -> nn.Module:
        """What takes its place at a rank; the layer as it is for None."""


def allocated_(
    scratch: nn.Module,
    layers: Mapping[str, Shrinkable],
    parameters: int,
    inputs: Tensor,
    outputs: Float[Tensor, "S *n"],
) -> tuple[nn.Module, dict[str, int | None]]:
    """Put layers of the best ranks found in their places, in place; returns the possibly new root, and the ranks.

    Args:
        scratch: A copy of the model.
        layers: Those that may shrink, by name.
        parameters: The most numbers that they may store together.
        inputs: Calibration inputs, of which some score an allocation by the error of the model's outputs.
        outputs: The original outputs for them.
    """
    ladders = [one.ladder() for one in layers.values()]
    stride = -(-len(inputs) // SCORED_INPUTS)

    def ranks(steps: Steps) -> dict[str, int | None]:
        return {name: one.ranks[step] for name, one, step in zip(layers, ladders, steps, strict=True)}

    def build(steps: Steps) -> nn.Module:
        return put_(scratch, {name: layers[name].layer(rank) for name, rank in ranks(steps).items()})

    def score(steps: Steps) -> float:
        return relative_error(predict(build(steps), inputs[::stride]), outputs[::stride])

    steps = choose_steps(ladders, parameters, score, EVALUATIONS)
    return build(steps), ranks(steps)
