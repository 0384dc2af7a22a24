"""One forward pass, written down: which modules were called with what, and what functions did with the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tenflex.surgery.batch import Batch, call, clone, tensors_in
from tenflex.surgery.parts import Parts
from tenflex.surgery.quiet import undisturbed

HARMLESS = {
    *("dtype", "device", "layout", "requires_grad", "grad_fn", "is_leaf", "is_floating_point", "is_complex"),
    *("is_cuda", "is_cpu", "is_meta", "is_nested", "is_sparse", "is_quantized", "is_inference"),
}
"""Questions whose answers stay the same when a block is replaced; all others, such as that for the shape, are uses."""


@dataclass(eq=False)
class Call:
    """One call of a module.

    Args:
        module: The module.
        path: Its first name.
        start: When it began; times count events.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        end: When it returned.
        output: What it returned.
        arrived: A copy of its argument, for modules that are watched and called with one tensor.
        left: Copies of what modules that are watched return: a tensor, or several.
    """

    module: nn.Module
    path: str
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    end: int = -1
    output: Any = None
    arrived: Tensor | None = None
    left: tuple[Tensor, ...] = ()

    def contains(self, other: Call) -> bool:
        """Whether the other call was made inside this one."""
        return self.start < other.start and other.end < self.end

    def at(self, time: int) -> bool:
        """Whether the call was in progress."""
        return self.start <= time <= self.end


@dataclass(frozen=True, eq=False)
class Event:
    """A function of torch that was called.

    Args:
        name: The name of the function.
        time: When.
        module: The innermost module in whose forward it was called.
        used: The tensors among its arguments.
        made: The tensors that it returned.
    """

    name: str
    time: int
    module: str
    used: tuple[Tensor, ...]
    made: tuple[Tensor, ...]


@dataclass
class Tape:
    """All that happened in one forward pass, in order.

    Tensors are kept alive, so that no two of them have the same identity.
    """

    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    inputs: Batch = ()
    output: Any = None

    def of(self, module: nn.Module) -> list[Call]:
        """The calls of a module."""
        return [one for one in self.calls if one.module is module]


class Recorder(TorchFunctionMode):
    """Writes a tape while it is active."""

    def __init__(self, model: nn.Module, watched: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.tape = Tape()
        self.paths = {module: path for path, module in model.named_modules()}
        self.watched = watched
        self.time = 0
        self.open: list[Call] = []
        self.paused = False

    def tick(self) -> int:
        """The time, which passes with each event."""
        self.time += 1
        return self.time

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = name_of(func)
        if not self.paused and name not in HARMLESS:
            used, made = tuple(tensors_in((args, kwargs))), tuple(tensors_in(result))
            self.tape.events.append(Event(name, self.tick(), self.open[-1].path if self.open else "", used, made))
        return result

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward pre-hook of every module."""
        one = Call(module, self.paths[module], self.tick(), args, kwargs)
        if module in self.watched and len(args) == 1 and isinstance(args[0], Tensor):
            with self.pause():
                one.arrived = args[0].detach().clone()
        self.tape.calls.append(one)
        self.open.append(one)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward hook of every module."""
        one = self.open.pop()
        one.end, one.output = self.tick(), output
        if module in self.watched:
            with self.pause():
                one.left = _copies(output)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not write down what happens inside."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False


def record(model: nn.Module, example: Batch, watched: tuple[nn.Module, ...]) -> Tape:
    """Run the network once on a copy of the example and write down what happens.

    Args:
        model: The network; nothing of it changes.
        example: One batch of input.
        watched: Modules whose inputs and outputs are copied as they pass, before anything changes them in place.

    Raises:
        TypeError: if the example is not made of tensors.
        ValueError: if the forward pass fails.
    """
    recorder = Recorder(model, watched)
    with undisturbed(model), ExitStack() as hooks:
        for module in recorder.paths:
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks; what happens inside is not seen
                continue
            hooks.callback(module.register_forward_pre_hook(recorder.enter, prepend=True, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(recorder.leave).remove)
        recorder.tape.inputs = clone(example)
        with recorder:
            recorder.tape.output = call(model, recorder.tape.inputs)
    return recorder.tape


def _copies(output: Any) -> tuple[Tensor, ...]:
    """Copies of a tensor, or of the several that a module gives; nothing of anything else."""
    parts = None if isinstance(output, Tensor) else Parts.of(output)
    several = [output] if isinstance(output, Tensor) else [] if parts is None else parts.listed(output)
    return tuple(one.detach().clone() for one in several)


def name_of(function: Any) -> str:
    """The name of a function, or of the attribute that a getter reads."""
    name = getattr(function, "__name__", str(function))
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name
