"""What the functions between the modules of a replaced block are given: a size, and no numbers.

The forward pass of the network stays as it is. The layer in the place of the first module gives a `Carried`, which has
the size of what that module gave and holds the layer's outputs; functions and modules do nothing with it, until the
last module of the block hands out the outputs. They must be those that the block was cut with: each is compared.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from tenflex.surgery.facts import is_plain
from tenflex.surgery.record import HARMLESS, name_of

SIZES = {"size", "dim", "ndimension", "numel", "nelement", "__len__", "stride", "is_contiguous", "__repr__"}
"""Methods that ask for a size; attributes do too, but for those of `DERIVED`."""

DERIVED = {"T", "mT", "H", "mH", "real", "imag"}
"""Attributes that are tensors themselves."""

UNCHANGED = {
    *("detach", "detach_", "clone", "contiguous", "data", "requires_grad_", "retain_grad"),
    *("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
    *("dropout", "dropout_", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"),
}
"""Functions that change no number in eval mode but by rounding: a block may do without them."""

ARITHMETIC = re.compile(r"_*[ri]?(add|sub|mul|(true_?|floor_?)?div(ide)?|pow|mod|remainder)_*")
"""Functions whose whole numbers are no sizes or places."""

SEVERAL = " of several"
"""Marks functions that give something else than one tensor."""

EMPTY = torch.empty(0, device="meta")


@dataclass
class Way:
    """The way through a block, from its first module to its last.

    Args:
        block: The name of the block.
        functions: What is called on the way, in order; None until a forward pass has shown it.
    """

    block: str
    functions: tuple[str, ...] | None


@dataclass
class Passage:
    """One forward pass through a block; or through a branch of it, until that joins the one from the first module.

    Args:
        way: The way that it must take.
        like: A tensor with the device and the data type.
        outputs: What the layer gave; None in a branch that does not begin at the first module.
        done: What was called, in order.
        joined: The passage that this one became part of.
        over: Whether the last module was reached.
    """

    way: Way
    like: Tensor
    outputs: Tensor | None = None
    done: list[str] = field(default_factory=list)
    joined: Passage | None = None
    over: bool = False

    @property
    def whole(self) -> Passage:
        """The passage that this one is part of by now."""
        return self if self.joined is None else self.joined.whole

    def step(self, function: str) -> bool:
        """Go on by a function; whether it is known that it gives one tensor.

        Raises:
            ValueError: if the block was cut with another function in this place.
        """
        if self.over:
            raise ValueError(
                f"expected that nothing between the modules of the block {self.way.block!r} is used after it, but "
                f"{function!r} is called with it: choose another block, such as one of its modules"
            )
        expected = self.way.functions
        if expected is None:
            return False
        places = expected[len(self.done) : len(self.done) + 1] if self.outputs is not None else expected
        known = next((one for one in places if one in (function, function + SEVERAL)), None)
        if known is None:
            raise ValueError(
                f"expected {places[0] if places else 'nothing'!r} in the block {self.way.block!r} after {self.done}, "
                f"as in the example that it was cut with, got {function!r}: this input takes another way through the "
                f"block, for which its layer was not made; compress with inputs like it, or replace a block without "
                f"this branch, such as one of its modules"
            )
        self.done.append(known)
        return known == function

    def join(self, branch: Passage) -> None:
        """Take in a branch, whose functions must come next; ValueError if they do not."""
        if branch.outputs is not None:
            raise ValueError(f"expected one forward pass through the block {self.way.block!r} at a time, got two")
        for function in branch.done:
            self.step(function.removesuffix(SEVERAL))
        if self.way.functions is None:
            self.done.extend(branch.done)
        branch.joined = self

    def finish(self) -> Tensor:
        """The layer's outputs, at the end of the way."""
        if self.outputs is None:
            raise ValueError(
                f"expected the modules of the block {self.way.block!r} to be called as in the example that it was cut "
                f"with, but nothing arrives from the layer in its place: compress with inputs like this one"
            )
        if self.way.functions is None:
            self.way.functions = tuple(self.done)
        self.over = True
        return self.outputs


@dataclass(frozen=True)
class Size:
    """A tensor without its numbers; all floating-point numbers are taken for the same."""

    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        """The size of a tensor; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        known = value.stand_in() if isinstance(value, Carried) else value
        return cls(known.shape, torch.float32 if known.is_floating_point() else known.dtype)

    @staticmethod
    def tensor(value: Any) -> Any:
        """A tensor of a size; anything else as it is."""
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Size) else value


Made = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A function with its arguments."""


class Carried(Tensor):
    """Stands for a tensor inside a block that was replaced, and carries what the layer in its place gave."""

    passage: Passage | None = None
    made: Made | Tensor = EMPTY

    def stand_in(self) -> Tensor:
        """A tensor on the meta device, of the size of the one that it stands for, which is found out when asked."""
        if not isinstance(self.made, Tensor):
            self.made = _result(*self.made)
        return self.made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = name_of(func), kwargs or {}
        first = next(one for one in _leaves((args, kwargs)) if isinstance(one, Carried))
        if name in HARMLESS or (name in UNCHANGED and args[0] is not first):
            args, kwargs = tree_map(_like, (args, kwargs))
            return func(*args, **kwargs)
        if name in UNCHANGED:
            return first
        if name in SIZES or (getattr(func, "__name__", "") == "__get__" and name not in DERIVED):
            return func(first.stand_in(), *args[1:], **kwargs)
        return go_on(name, (func, args, kwargs))


def go_on(name: str, made: Made) -> Any:
    """What a function gives for tensors that are carried."""
    passage = _passage(made)
    if passage is None:
        raise ValueError(f"expected a function that keeps what a replaced block carries, got one before {name!r}")
    step = _described(name, made)
    if passage.step(step):
        return carried(passage, made)
    result = _result(*made)
    if passage.way.functions is None:
        passage.done.append(step if isinstance(result, Tensor) else step + SEVERAL)
    return tree_map(lambda one: carried(passage, one) if isinstance(one, Tensor) else one, result)


def carried(passage: Passage, made: Made | Tensor) -> Carried:
    """Something to carry."""
    new = EMPTY.as_subclass(Carried)
    new.passage, new.made = passage, made
    return new


class Begin:
    """The forward hook of the layer in the place of a block's first module, whose `shadow` it knows."""

    def __init__(self, way: Way | None, first: nn.Module) -> None:
        self.way, self.first = way, first

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> Any:
        if self.way is None:
            return self.first(*args)
        return carried(Passage(self.way, outputs, outputs), (self.first, tuple(map(Size.of, args)), {}))


class Passed(nn.Module):
    """In the place of another module of a block: it passes on what is carried, and the last one hands out the outputs.

    Attributes of the module that was here can still be read.

    Args:
        path: The module's name in the network.
        module: Its `shadow`.
        way: The way through the block; None in the shadow of another block.
        last: Whether it ends here.
    """

    def __init__(self, path: str, module: nn.Module, way: Way, last: bool) -> None:
        super().__init__()
        self.path, self.last = path, last
        self.way: Way | None = way
        self.shadow = (module,)  # no submodule: it is neither counted nor saved
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would give, or what the block gives."""
        made = (self.shadow[0], args, kwargs)
        if self.way is None:
            return self.shadow[0](*args, **kwargs)
        passage = _passage(made)
        if passage is None:  # a branch that begins with what arrives at the block
            like = next(one for one in _leaves((args, kwargs)) if isinstance(one, Tensor))
            passage = Passage(self.way, like)
            made = (self.shadow[0], *tree_map(lambda one: carried(passage, Size.tensor(Size.of(one))) if isinstance(one, Tensor) else one, (args, kwargs)))
        given = go_on(self.path, made)
        return passage.finish() if self.last else given

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(vars(self).get("shadow", (None,))[0], name)
            if callable(value) and not isinstance(value, (Tensor, nn.Module)):
                raise
            return value

    def extra_repr(self) -> str:
        return f"{type(self.shadow[0]).__name__}, {self.path!r}"


def shadow(module: nn.Module) -> nn.Module:
    """A copy of a module without numbers, on the meta device, which still gives tensors of the right size."""
    held = [one for inner in module.modules() for one in vars(inner).values() if isinstance(one, Tensor)]
    held += [*module.parameters(), *module.buffers()]
    copied = copy.deepcopy(module, {id(one): _without_numbers(one) for one in held}).to("meta")
    for inner in copied.modules():
        hooks = [one for one in inner._forward_hooks.values() if isinstance(one, Begin)]
        for one in (*hooks, *([inner] if isinstance(inner, Passed) else [])):
            one.way = None
    return copied


def _without_numbers(tensor: Tensor) -> Tensor:
    empty: Tensor = Size.tensor(Size.of(tensor))
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def hide_(module: nn.Module, name: str) -> None:
    """Take a parameter or a buffer out of a module, which can still read its size under its name."""
    tensor = getattr(module, name)
    delattr(module, name)
    setattr(module, name, Size.tensor(Size.of(tensor)))


def keep_attributes_(old: nn.Module, new: nn.Module) -> None:
    """Give a module the numbers and names that can be read from another one, such as `in_features`."""
    for name, value in vars(old).items():
        if is_plain(value) and not hasattr(new, name):
            setattr(new, name, value)


def _result(function: Any, args: Any, kwargs: Any) -> Any:
    """What a function gives, without numbers."""
    leaves, form = tree_flatten((args, kwargs))
    sizes = tuple(map(Size.of, leaves))
    try:
        hash(sizes)
    except TypeError:  # a symbol, or a value that has no hash
        return _sized.__wrapped__(function, sizes, form)
    return _sized(function, sizes, form)


@lru_cache(maxsize=1024)
def _sized(function: Any, sizes: tuple[Any, ...], form: TreeSpec) -> Any:
    """What a function gives for tensors of these sizes; kept, since PyTorch takes long to find out."""
    args, kwargs = tree_unflatten(map(Size.tensor, sizes), form)
    with torch.no_grad():
        return function(*args, **kwargs)


def _described(name: str, made: Made) -> str:
    """A function with the tensors and the constants that it is given besides what is carried, but for sizes."""
    _, args, kwargs = made
    kinds = (float, bool, str, int) if ARITHMETIC.fullmatch(name) else (float, bool, str)
    found = []
    for one in _leaves((args, kwargs)):
        if isinstance(one, Tensor) and not isinstance(one, Carried):
            found.append("tensor")
        elif type(one) in kinds:
            found.append(repr(one))
    name = name.strip("_")
    return f"{name}({', '.join(found)})" if found else name


def _passage(made: Made) -> Passage | None:
    """The passage that a function's tensors are part of, from the layer on if one of them is."""
    found = {id(one): one for one in (_whole(one) for one in _leaves(made[1:])) if one is not None}
    first, *others = sorted(found.values(), key=lambda one: one.outputs is None) or [None]
    for branch in others:
        first.join(branch)
    return first


def _whole(value: Any) -> Passage | None:
    return value.passage.whole if isinstance(value, Carried) and value.passage is not None else None


def _like(value: Any) -> Any:
    """A tensor with numbers for one that is carried."""
    return value.passage.like if isinstance(value, Carried) and value.passage is not None else value


def _leaves(value: Any) -> Iterator[Any]:
    """All values in nested tuples, lists and mappings."""
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _leaves(one)
    else:
        yield value
