"""The linear layers of a model: which there are, what they store, and putting others in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from tenflex.checks import near_names, require_whole


def put_(root: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Put modules at their names in `root`, and return the root, a new one if its own name "" is among them."""
    if "" in modules:
        return modules[""]
    for name, module in modules.items():
        root.set_submodule(name, module)
    return root


def stored(linear: nn.Linear, rank: int | None) -> int:
    """The numbers that a layer stores at a rank, or as it is."""
    n, m = linear.weight.shape
    if rank is None:
        return n * m + (n if linear.bias is not None else 0)
    return rank * (m + n) + n


def linear_layers(model: nn.Module, layers: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The linear layers of these names, all of them for None; no subclasses, which may compute something else.

    Raises:
        TypeError: if `layers` is a single string.
        ValueError: if there are no linear layers, or a name is none of theirs.
    """
    known = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    if not known:
        raise ValueError(f"expected a model with nn.Linear layers to factor, got none in this {type(model).__name__}")
    if layers is None:
        return known
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got the string {layers!r}: write [{layers!r}]")
    if not layers:
        raise ValueError("layers must name at least one layer, got none: leave it out for all nn.Linear layers")
    for name in layers:
        if name not in known:
            raise ValueError(f"there is no nn.Linear named {name!r} in the model{near_names(name, known)}")
    return {name: linear for name, linear in known.items() if name in layers}


def require_unshared(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Raise ValueError if a parameter of the layers has a second name: factoring splits what is stored once."""
    uses = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    for name, linear in layers.items():
        if any(uses[id(one)] > 1 for one in linear.parameters()):
            raise ValueError(
                f"the layer {name!r} shares its parameters with another module, so factoring it would store more, not "
                "less: name the other layers in `layers`"
            )


def require_budget(parameters: int, layers: Mapping[str, nn.Linear]) -> None:
    """Raise ValueError unless the budget is between rank 1 everywhere and the layers as they are."""
    require_whole("parameters", parameters, at_least=1)
    now = sum(stored(linear, None) for linear in layers.values())
    least = sum(min(stored(linear, 1), stored(linear, None)) for linear in layers.values())
    if parameters < least:
        raise ValueError(
            f"parameters must be at least {least}, which rank 1 stores in the {len(layers)} layers, got {parameters}: "
            "allow more, or name fewer layers"
        )
    if parameters > now:
        raise ValueError(
            f"parameters must be at most {now}, which the {len(layers)} layers store now, got {parameters}: "
            "there is nothing to compress"
        )
