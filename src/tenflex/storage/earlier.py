"""What earlier versions wrote, in the form of today: files are read for as long as they exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tenflex.bases import Basis
from tenflex.factors import Activations, Factors, transposed
from tenflex.nn import FlexibleLayer
from tenflex.storage.state import same_bits

Matrices = tuple[Tensor, ...]


def factors_of_one_layer(
    inner: Matrices, outer: Matrices, coefficients: Tensor, shift: Tensor, bias: Tensor, basis: Basis
) -> Factors:
    """`Factors` of the first format: `(V,)` or `(B, A)`, and `(W,)` or `(D, E)`."""
    return Factors.single(inner, outer, Activations(coefficients, shift, basis), bias)


def factors_of_two_layers(
    inner: Matrices,
    hidden: Tensor,
    outer: Matrices,
    coefficients: Matrices,
    shifts: Matrices,
    bias: Tensor,
    bases: tuple[Basis, Basis],
) -> Factors:
    """`LayeredFactors` of the first format, whose map between the layers acted from the left."""
    parts = zip(coefficients, shifts, bases, strict=True)
    activations = tuple(Activations(*one) for one in parts)
    return Factors((inner, (hidden.mT,), transposed(outer)), activations, bias)


def renamed(state: Mapping[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a network of the first format, in which the parts of flexible layers had names of their own."""
    names: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, FlexibleLayer):
            last = len(module.activations)
            parts = {"inner": "maps.0", "outer": f"maps.{last}", "hidden": "maps.1"}
            parts.update(activation="activations.0", first="activations.0", second="activations.1")
            start = f"{path}." if path else ""
            names.update({f"{start}{old}.": f"{start}{new}." for old, new in parts.items()})
    return {_renamed(name, names): one for name, one in state.items()}


def tied_alike(state: Mapping[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights of a file that held a copy for every name, with one tensor for what is the same one in the model."""
    first: dict[int, str] = {}
    found = dict(state)
    for name, one in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(one), name)
        if name in found and other in found and same_bits(found[name], found[other]):
            found[name] = found[other]
    return found


def _renamed(name: str, names: Mapping[str, str]) -> str:
    old = next((one for one in names if name.startswith(one)), None)
    return name if old is None else names[old] + name[len(old) :]


def kinds_of_first_format(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of a solution of the first format may hold."""
    return {**kinds, "Factors": factors_of_one_layer, "LayeredFactors": factors_of_two_layers}
