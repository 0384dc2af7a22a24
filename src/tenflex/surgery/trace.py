"""The graph of a module, traced once with an example and afterwards without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import get_ident
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from tenflex.surgery.arguments import bind, name_arguments, named, placeholders
from tenflex.surgery.batch import describe, tensors_in
from tenflex.surgery.facts import Facts, Plain, digest, is_number, is_plain, is_steady
from tenflex.surgery.fused import Unpadded
from tenflex.surgery.hooks import hooks_of
from tenflex.surgery.paths import ancestors, below, encloses, get_module, join, title
from tenflex.surgery.quiet import undisturbed


class UntraceableError(ValueError):
    """A module whose forward pass cannot be written as a graph."""


@dataclass(frozen=True)
class Traced:
    """The graph of a module.

    Args:
        path: The module in the network.
        root: Stands for the module and shares all of it; holds besides what tracing added, such as constants.
        graph: The graph.
        facts: With which the module can be traced again.
        values: What every node was in the forward pass that was traced; empty without an example.
    """

    path: str
    root: nn.Module
    graph: fx.Graph
    facts: Facts
    values: dict[fx.Node, Any]


def trace(module: nn.Module, parent: str, ends: tuple[str, str], facts: Facts) -> Traced:
    """Trace a module again, from facts alone; the arguments are those of `trace_example`."""
    return _trace(Tracer(parent, ends, facts, None), module, parent)


def trace_example(
    module: nn.Module, parent: str, ends: tuple[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Traced:
    """Trace a module with the arguments of one of its calls.

    Args:
        module: The module.
        parent: Its path in the network.
        ends: The paths of the first and the last module of a block in it. What holds them is traced through; every
            other submodule becomes one node.
        args: The positional arguments.
        kwargs: The keyword arguments.

    Raises:
        UntraceableError: if its forward pass cannot be written as a graph.
    """
    try:
        given = name_arguments(module.forward, args, kwargs)
        facts = _facts(module.forward, given)
    except TraceError as error:
        raise _untraceable(module, parent, str(error)) from None
    return _trace(Tracer(parent, ends, facts, given), module, parent)


def _trace(tracer: Tracer, module: nn.Module, parent: str) -> Traced:
    _require_no_hooks(tracer, module, parent)
    root = _shell(module)
    try:
        with undisturbed(module):  # the same control flow with an example and without; one thread at a time
            graph = tracer.trace(root)
    except Exception as error:  # whatever a forward pass may raise when it meets a proxy
        if tracer.last is None:
            raise _untraceable(module, parent, f"{error or type(error).__name__}{_where(error)}") from None
        graph = tracer.graph  # what comes after the block need not be a graph
    _drop_answered(graph)
    facts = replace(tracer.facts, answers=tuple(tracer.answers.items()), digest=digest(graph, tracer.last))
    return Traced(parent, root, graph, facts, {node: tracer.values.get(node) for node in graph.nodes})


def _require_no_hooks(tracer: Tracer, module: nn.Module, parent: str) -> None:
    """Refuse hooks of what becomes a graph: they would be called with nodes, and then be lost."""
    for path in sorted(set(tracer.through) - {""}):  # the module itself stays
        if any(not isinstance(one, Unpadded) for one in hooks_of(get_module(module, path))):
            at = title(join(parent, path))
            raise _untraceable(module, parent, f"{at} carries forward hooks, which a graph would lose; remove them")


class InOneThread(fx.Tracer):
    """Traces what its own thread calls.

    While `fx` traces, it puts a function of the tracer in the place of `nn.Module.__call__` for the whole process: what
    other threads call passes through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = get_ident()

    @property
    def passing(self) -> bool:
        """Whether modules are run and not recorded."""
        return get_ident() != self.thread

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        keep_to_thread()
        return super().create_args_for_root(root_fn, is_module, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.passing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self.passing else super().getattr(attr, attr_val, parameter_proxy_cache)


class Tracer(InOneThread):
    """Traces one module, and takes questions about tensors that control flow asks.

    With arguments at hand every node is evaluated as it is made, and the answers are written down; without them the
    written answers are given. Inside the block, only questions whose answers do not depend on the number of samples are
    answered: the network outside of it is never run as a graph.
    """

    proxy_buffer_attributes = True

    def __init__(self, parent: str, ends: tuple[str, str], facts: Facts, given: dict[str, Any] | None) -> None:
        super().__init__()
        self.through = _through(parent, ends)
        self.ends = tuple(below(end, parent) for end in ends)
        self.first: fx.Node | None = None
        self.last: fx.Node | None = None
        self.facts = facts
        self.given = given
        self.values: dict[fx.Node, Any] = {}
        self.answers = dict(self.facts.answers)
        self.asked: Counter[str] = Counter()
        self.evaluating = False

    @property
    def passing(self) -> bool:
        """Whether modules are run and not recorded."""
        return self.evaluating or super().passing

    @property
    def inside(self) -> bool:
        """Whether the forward pass is inside the block."""
        return self.first is not None and self.last is None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.through

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Placeholders for all arguments; those that held no tensor are passed as constants."""
        keep_to_thread()
        forward, constants = self.root.forward, dict(self.facts.constants)
        given = placeholders(forward, (*self.facts.tensors, *constants))
        values: dict[str, Any] = {}
        for name, default in given.items():
            values[name] = self.create_proxy("placeholder", name, default, {})
        for name in [name for name in given if name not in self.facts.tensors]:
            value = constants[name] if name in constants else named(forward)[name].default
            values[name] = value
        bound = bind(forward, values)

        def run() -> Any:
            return tuple(tensors_in(forward(*bound.args, **bound.kwargs), fx.Proxy))

        return run, []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Known(node, self)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if self.given is not None and kind != "output":
            with _evaluating(self):
                self.values[node] = self.evaluate(node)
        if kind == "call_module":
            called, (first, last) = get_module(self.root, str(target)), map(partial(get_module, self.root), self.ends)
            self.first, self.last = node if called is first else self.first, node if called is last else self.last
        return node

    def evaluate(self, node: fx.Node) -> Any:
        """What the node is in the forward pass that is traced."""
        args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "placeholder":
            return (self.given or {})[str(node.target)]
        if node.op == "get_attr":
            return self.stored(node)
        if node.op == "call_module":
            return get_module(self.root, str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def stored(self, node: fx.Node) -> Tensor:
        """The parameter or the buffer that a node reads."""
        with _evaluating(self):
            found: Any = self.root
            for name in str(node.target).split("."):
                found = getattr(found, name)
        return found

    def answer(self, node: fx.Node, find: Callable[[Any], int]) -> int:
        """The answer to a question about a node; `find` gives it from the value of the node.

        Questions are numbered in each module that is traced through: a module that was rewritten before asks none, and
        the numbers of the others stay.
        """
        self.asked[self.scope.module_path] += 1
        key = f"{self.scope.module_path}:{self.asked[self.scope.module_path]}"
        if self.given is not None:
            self.answers[key] = find(self.values[node])
        if key not in self.answers:
            raise TraceError(f"it asks more about {node.name!r} than in the forward pass that it was cut with")
        return self.answers[key]

    def to_bool(self, obj: fx.Proxy) -> bool:
        node = obj.node
        if self.inside and self.given is not None and not is_steady(node, self.values):
            raise TraceError("its control flow depends on data or on the number of samples")
        return bool(self.answer(node, bool))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([obj[index] for index in range(self.length(obj.node))])  # type: ignore[index]

    def length(self, node: fx.Node) -> int:
        """The length of a tuple or a shape; inside, not of a tensor, where it may be the number of samples."""
        if self.inside and self.given is not None and isinstance(self.values[node], Tensor):
            raise TraceError(f"it loops over the first dimension of the tensor {node.name!r}")
        return self.answer(node, len)


class InThread:
    """True in the thread that made it, False in all others."""

    def __init__(self) -> None:
        self.thread = get_ident()

    def __bool__(self) -> bool:
        return get_ident() == self.thread


def keep_to_thread() -> None:
    """Let `fx`, which has just said so to all threads, be tracing in this one alone."""
    vars(fx._symbolic_trace)["_is_fx_tracing_flag"] = InThread()


class Known(fx.Proxy):
    """A proxy that knows its number of dimensions, the length of a tuple, and the shape of a parameter."""

    tracer: Tracer

    def dim(self) -> int:
        """The number of dimensions."""
        return self.tracer.answer(self.node, lambda value: value.dim())

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.dim()

    @property
    def shape(self) -> Any:
        """The shape, known or as a proxy that can be unpacked and counted."""
        if self.node.op == "get_attr":
            return self.tracer.stored(self.node).shape
        return self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})

    def size(self, *args: Any, **kwargs: Any) -> Any:
        """The shape, or one number of it."""
        if self.node.op == "get_attr":
            return self.tracer.stored(self.node).size(*args, **kwargs)
        return self.tracer.create_proxy("call_method", "size", (self, *args), kwargs)

    def __len__(self) -> int:
        return self.tracer.length(self.node)


@contextmanager
def _evaluating(tracer: Tracer) -> Iterator[None]:
    """Inside, modules are run and not recorded."""
    before, tracer.evaluating = tracer.evaluating, True
    try:
        yield
    finally:
        tracer.evaluating = before


def _facts(forward: Callable[..., Any], given: dict[str, Any]) -> Facts:
    """Which arguments hold tensors, and what the others are."""
    known = named(forward)
    tensors = tuple(name for name, value in given.items() if any(True for _ in tensors_in(value)))
    constants: dict[str, Plain] = {}
    for name, value in given.items():
        if name in tensors or (name in known and value is known[name].default):
            continue
        if not is_plain(value):
            raise TraceError(f"its argument {name}={describe(value)} is no tensor, number or string")
        constants[name] = value
    return Facts(tensors, tuple(constants.items()))


def _untraceable(module: nn.Module, parent: str, why: str) -> UntraceableError:
    name = f"{title(parent)} ({type(module).__name__})"
    return UntraceableError(
        f"functions stand between the modules of the block, and the module around it, {name}, cannot be traced: {why}. "
        f"Choose a block whose parent has no control flow that depends on data, or replace single modules"
    )


def _where(error: Exception) -> str:
    """The line of the network's code that an error came from."""
    hidden = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(hidden)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def _through(parent: str, ends: tuple[str, str]) -> set[str]:
    """The modules that hold an end of the block, as seen from the parent."""
    return {below(one, parent) for end in ends for one in ancestors(end) if encloses(parent, one)}


def _shell(module: nn.Module) -> nn.Module:
    """A module that shares everything with another one: tracing stores constants as attributes of what it traces."""
    shell: nn.Module = object.__new__(type(module))
    vars(shell).update(vars(module))
    return shell


def _drop_answered(graph: fx.Graph) -> None:
    """Erase questions that only control flow asked."""
    for node in reversed(list(graph.nodes)):
        if not node.users and is_number(node):
            graph.erase_node(node)
