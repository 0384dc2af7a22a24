"""A network in the form that files have: tensors in order, samples first, and one tensor of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, Signature, signature
from keyword import iskeyword
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.checks import require_finite
from tenflex.evaluate.fidelity import answers_in
from tenflex.export.formats import Inputs
from tenflex.surgery.batch import arguments, call, describe

INSIDE = "network"
"""Where the network stands in its plain form."""


class Plain(nn.Module):
    """A network whose inputs come in order, and whose output is the only tensor that it gives, or its logits.

    Args:
        network: In eval mode.
        names: The names by which it takes its inputs; empty where it takes them in order.
    """

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.network, self.names = network, tuple(names)
        self.training = network.training

    def forward(self, *inputs: Tensor) -> Tensor:
        """The outputs, one row a sample."""
        output = self.network(**dict(zip(self.names, inputs, strict=True))) if self.names else self.network(*inputs)
        return only_output(output)


def plain(network: nn.Module, inputs: Any) -> tuple[nn.Module, Inputs]:
    """A network in the form that files have, with its inputs as copies on the processor; itself if it has that form.

    Args:
        network: In eval mode.
        inputs: A tensor, a tuple of them, or a mapping from the names of its arguments.

    Raises:
        TypeError: if the inputs are something else.
        ValueError: if there is no input, or one is not finite; or if several tensors leave the network.
    """
    positional, named = arguments(inputs)
    given = tuple(one.detach().cpu().clone() for one in (*positional, *named.values()))
    for one in given:
        if not one.ndim or not len(one):
            raise ValueError(f"expected a batch of at least one input, got the shape {tuple(one.shape)}")
        if one.is_floating_point():
            require_finite("inputs", one)
    place = next((one.device for one in (*network.parameters(), *network.buffers())), given[0].device)
    there = [one.to(place, copy=True) for one in given]
    with torch.no_grad():
        output = call(network, dict(zip(named, there, strict=True)) if named else tuple(there))
    taken = _taken(network, [*named], len(given))
    if isinstance(output, Tensor) and not named and taken is not None:
        return network, given
    only_output(output)
    names = taken or [f"input_{place}" for place in range(len(given))]
    return _kind(names, type(network).__name__)(network, [*named]), given


def only_output(output: Any) -> Tensor:
    """The only tensor of real numbers among what a network gives, or what it calls its logits.

    Raises:
        ValueError: if there are none or several.
    """
    if isinstance(output, Tensor):
        return output
    found = answers_in(output)
    if len(found) != 1:
        raise ValueError(
            f"expected a network of one output, or with logits among them, got {describe(output)}: wrap it in a module "
            f"that returns the tensor which is needed"
        )
    return found[0]


def _taken(network: nn.Module, named: Sequence[str], count: int) -> list[str] | None:
    """The names by which a forward pass takes its first inputs; None where it has none that a file can take over."""
    several = Parameter.VAR_POSITIONAL
    first = [one.name for one in signature(network.forward).parameters.values() if one.kind is not several][:count]
    names = list(named) or first
    good = len(names) == count and all(one.isidentifier() and not iskeyword(one) for one in names)
    return names if good else None


def _kind(names: Sequence[str], name: str) -> type[Plain]:
    """The class of such networks whose forward passes take inputs of these names, as files call them then."""

    class Named(Plain):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs)

    ordered = [Parameter(one, Parameter.POSITIONAL_OR_KEYWORD) for one in ("self", *names)]
    Named.forward.__signature__ = Signature(ordered)  # type: ignore[attr-defined]
    Named.__name__ = name
    return Named
