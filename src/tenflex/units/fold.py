"""The last map of a flexible convolution and the first of a flexible layer that follows, as one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tenflex.nn import FlexibleConv, FlexibleLayer
from tenflex.nn.maps import linear_maps
from tenflex.surgery.batch import Batch, call, clone, nearly_equal


def folds_(model: nn.Module, convolution: nn.Module, layer: nn.Module, batch: Batch) -> bool:
    """Fold the last map of a convolution into the layer that its outputs alone go to, in place, if that stores less.

    The network computes the same, up to rounding.

    Args:
        model: The network, in eval mode.
        convolution: A module of it; nothing is done unless it is a `FlexibleConv` with a last map.
        layer: Another one; nothing is done unless it is a `FlexibleLayer` whose inputs are the convolution's outputs.
        batch: A few inputs, with which that is tried.

    Returns:
        Whether they were folded.
    """
    if not isinstance(convolution, FlexibleConv) or not isinstance(layer, FlexibleLayer) or convolution.folded:
        return False
    if layer.modes is not None:  # which see the channels that the last map makes
        return False
    with torch.no_grad():
        given = _feeds(model, convolution, layer, batch)
        if given is None or saved_by_folding(convolution, layer, given).parameters <= 0:
            return False
        before = call(model, clone(batch))
        kept = (convolution.maps[-1], layer.maps[0], layer.in_shape)
        _fold_(convolution, layer, given)
        try:
            same = nearly_equal(call(model, clone(batch)), before)
        except ValueError:  # something between knows how many channels there are
            same = False
        if not same:
            convolution.maps[-1], layer.maps[0], layer.in_shape = kept
    return same


class Saved(NamedTuple):
    """What a network no longer stores and computes."""

    parameters: int
    macs: int


def saved_by_folding(convolution: FlexibleConv, layer: FlexibleLayer, given: torch.Size) -> Saved:
    """What is saved when the last map goes, and the first matrix of the layer gets another number of rows.

    Args:
        convolution: One with a last map.
        layer: The layer behind it.
        given: The shape of the convolution's outputs for one example, channels first.
    """
    last, first = convolution.maps[-1], linear_maps(layer.maps[0])[0]
    channels, places = len(convolution.flexible[-1].coefficients), given[1:].numel()
    fewer = (given[0] - channels) * places * len(first.weight)
    weights = sum(one.numel() for one in last.parameters() if one.ndim > 1)
    return Saved(sum(one.numel() for one in last.parameters()) + fewer, places * weights + fewer)


def _feeds(model: nn.Module, convolution: nn.Module, layer: nn.Module, batch: Batch) -> torch.Size | None:
    """The shape of the convolution's outputs for one example, if they go to the layer in a row and nowhere else."""
    seen: dict[str, Tensor] = {}

    def saw(name: str) -> Callable[..., None]:
        return lambda module, args, *output: seen.update({name: (output or args)[0].clone()})

    def gives(value: Tensor) -> Callable[..., Any]:
        return lambda module, args, output: value

    def arrives(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen["arrived"] = args[0]
        return (seen["arriving"],)

    with ExitStack() as hooks:
        hooks.callback(convolution.register_forward_hook(saw("leaving"), prepend=True).remove)
        hooks.callback(layer.register_forward_pre_hook(saw("arriving"), prepend=True).remove)
        before = call(model, clone(batch))
    leaving, arriving = seen["leaving"], seen["arriving"]
    if not _in_a_row(leaving, arriving):
        return None
    noise = torch.randn(leaving.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(leaving)
    with ExitStack() as hooks:
        hooks.callback(convolution.register_forward_hook(gives(noise), prepend=True).remove)
        hooks.callback(layer.register_forward_pre_hook(arrives, prepend=True).remove)
        after = call(model, clone(batch))
    alone = nearly_equal(after, before) and _in_a_row(noise, seen["arrived"])
    return leaving.shape[1:] if alone else None


def _in_a_row(leaving: Tensor, arriving: Tensor) -> bool:
    return len(leaving) == len(arriving) and torch.equal(leaving.flatten(1), arriving.flatten(1))


def _fold_(convolution: FlexibleConv, layer: FlexibleLayer, given: torch.Size) -> None:
    """The same function with another first matrix, `(W x I)^T B`, and what it makes of b in the shifts."""
    last, factors = convolution.factors(), layer.factors()
    W, (first, *rest) = last.W.double(), factors.maps[0]  # (n, r)
    B = first.double().unflatten(0, given).flatten(1, -2)  # (n, places, q)
    matrix = torch.einsum("nr,npq->rpq", W, B).flatten(0, 1).to(first)
    shift = torch.einsum("n,npq->q", last.bias.double(), B)
    for one in rest:
        shift = shift @ one.double()
    shift = (factors.activations[0].shift + shift).to(first)
    folded = replace(factors.with_activations(0, shift=shift), maps=((matrix, *rest), *factors.maps[1:]))
    layer.maps[0] = FlexibleLayer.from_factors(folded, out_shape=layer.out_shape).maps[0].train(layer.training)
    layer.in_shape = (len(matrix) // given[1:].numel(), *given[1:]) if layer.in_shape == given else (len(matrix),)
    convolution.maps[-1] = nn.Identity().train(convolution.training)
