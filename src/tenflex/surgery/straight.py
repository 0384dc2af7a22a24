"""Networks for use alone: the functions inside blocks that were replaced are taken out of the forward pass.

They cost more than the layer in the block's place where that is small. What is left is a graph, which is taken over
only where it gives the same as the module that it was read from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tenflex.surgery.batch import Batch, call, clone
from tenflex.surgery.carry import Begin, Passage, Passed, Size, carried
from tenflex.surgery.hooks import hooks_of
from tenflex.surgery.paths import ancestors, get_module, set_module_, smallest_parent
from tenflex.surgery.quiet import passing
from tenflex.surgery.rewrite import Rewritten, settle_
from tenflex.surgery.trace import InOneThread


@dataclass(eq=False)
class Call:
    """One call of a module.

    Args:
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        outputs: What it gave.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any


def straightened(model: nn.Module, example: Batch) -> nn.Module:
    """A network whose replaced blocks cost nothing but their layers; where that cannot be written, it stays.

    Args:
        model: The network, which is changed.
        example: A few inputs of it, on which both are compared.
    """
    for parent in sorted(_parents(model), key=len, reverse=True):
        seen = _called(model, parent, example)
        made = None if seen is None else _rewritten(get_module(model, parent), seen)
        if made is not None:
            model = set_module_(model, parent, made)
    return model


def _parents(model: nn.Module) -> set[str]:
    """The modules whose forward passes hold blocks with functions inside."""
    begins = {path: _begin(module) for path, module in model.named_modules() if _begin(module) is not None}
    ends = [(path, module.way) for path, module in model.named_modules() if isinstance(module, Passed) and module.last]
    return {
        smallest_parent(model, path, end)
        for path, begin in begins.items()
        for end, way in ends
        if begin is not None and begin.way is way
    }


def _begin(module: nn.Module) -> Begin | None:
    """The hook that lets a layer begin a block, if it has one."""
    return next((one for one in module._forward_hooks.values() if isinstance(one, Begin)), None)


def _called(model: nn.Module, path: str, example: Batch) -> Call | None:
    """The call of a module in a forward pass; None if there is none, or more than one."""
    calls: list[Call] = []
    handle = get_module(model, path).register_forward_hook(
        lambda _, args, kwargs, outputs: calls.append(Call(args, kwargs, outputs)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            call(model, clone(example))
    finally:
        handle.remove()
    return calls[0] if len(calls) == 1 else None


@dataclass(eq=False)
class Reading:
    """What reading a module takes: modules that are read through, and layers that begin blocks.

    Args:
        through: Those that hold parts of a block.
        layers: The layers.
    """

    through: set[nn.Module] = field(default_factory=set)
    layers: dict[nn.Module, Begin] = field(default_factory=dict)


class Straight(InOneThread):
    """Reads a forward pass: what is called with something that is carried leaves no trace.

    Unpickling reads what was read, and so makes one for which nothing is carried.
    """

    proxy_buffer_attributes = True

    def __init__(self, reading: Reading | None = None) -> None:
        super().__init__()
        self.reading = Reading() if reading is None else reading

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.reading.through and not isinstance(m, Passed)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        begin, found = self.reading.layers.get(m), super().call_module(m, forward, args, kwargs)
        if self.passing or begin is None or begin.way is None:
            return found
        (first,) = vars(m)["shadow"]
        return carried(Passage(begin.way, found, found), (first, tuple(map(Size.of, args)), {}))


def _rewritten(module: nn.Module, seen: Call) -> nn.Module | None:
    """The module as a graph; None if it cannot be written as one, or gives something else."""
    reading = _reading(module)
    if any(True for one in reading.through for _ in hooks_of(one)):
        return None
    with passing(module):  # one thread at a time
        try:
            graph = _own_checks(Straight(reading).trace(module, _constants(module, seen)))
        except Exception:  # whatever a forward pass may raise when it meets a proxy
            return None
        made = Rewritten(module, graph, type(module).__name__)
        settle_(module, made)
        hooks = {layer: dict(layer._forward_hooks) for layer in reading.layers}
        for layer, begin in reading.layers.items():
            _without(layer, begin)
        if _gives(made, seen):
            return _named_as(module, made)
    for layer, kept in hooks.items():
        layer._forward_hooks.clear()
        layer._forward_hooks.update(kept)
    return None


def _own_checks(graph: fx.Graph) -> fx.Graph:
    """The graph with a check of ours for arguments that were left out: that of `fx` breaks what unpickles it."""
    for node in graph.nodes:
        if node.target is vars(fx._symbolic_trace)["_assert_is_none"]:
            node.target = require_none
    return graph


def require_none(value: object, message: str) -> None:
    """Raise ValueError for an argument with which the graph was not read."""
    if isinstance(value, fx.Proxy):  # unpickling reads the graph anew
        value.tracer.create_proxy("call_function", require_none, (value, message), {})
    elif value is not None:
        raise ValueError(message)


def _gives(made: nn.Module, seen: Call) -> bool:
    """Whether a module, called alike, gives the same."""
    args, kwargs = tree_map_only(Tensor, lambda one: one.detach().clone(), (seen.args, seen.kwargs))
    try:
        return _same(made(*args, **kwargs), seen.outputs)
    except Exception:  # a graph has no place for arguments that it does not need
        return False


def _reading(module: nn.Module) -> Reading:
    layers = {one: begin for one in module.modules() if (begin := _begin(one)) is not None}
    parts = [path for path, one in module.named_modules() if isinstance(one, Passed) or one in layers]
    around = {outer for path in parts for outer in ancestors(path)}
    return Reading({get_module(module, path) for path in around}, layers)


def _constants(module: nn.Module, seen: Call) -> dict[str, Any]:
    """The arguments that are no tensors, which a graph is for."""
    known = signature(module.forward)
    bound = known.bind(*seen.args, **seen.kwargs)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if not isinstance(value, Tensor)}


def _without(layer: nn.Module, begin: Begin) -> None:
    for key in [key for key, hook in layer._forward_hooks.items() if hook is begin]:
        del layer._forward_hooks[key]


def _same(found: Any, expected: Any) -> bool:
    one, other = tree_leaves(found), tree_leaves(expected)
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(one, other, strict=True)
    )


def _named_as(module: nn.Module, made: nn.Module) -> nn.Module:
    """What else the module has, as attributes that others read."""
    for name, value in vars(module).items():
        if not hasattr(made, name):
            vars(made)[name] = value
    return made.eval()
