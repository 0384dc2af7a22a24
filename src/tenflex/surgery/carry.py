"""What the functions between the modules of a replaced block are given: a size, and no numbers.

The forward pass of the network stays as it is. The layer in the place of the first module gives a `Carried`, which has
the size of what that module gave and holds the layer's outputs; functions and modules do nothing with it, until the
last module of the block hands out the outputs. They must be those that the block was cut with: each is compared.

`torch.compile` and `torch.export` see through all of this, if they can write the forward pass as one graph.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from tenflex.surgery.facts import is_plain
from tenflex.surgery.hooks import unhook_
from tenflex.surgery.parts import MODULES, Parts
from tenflex.surgery.reach import Numberless
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

ARITHMETIC = {"add", "sub", "mul", "div", "floor_divide", "pow", "remainder"}
"""Functions whose whole numbers are no sizes or places."""

OPERATORS = {"truediv": "div", "floordiv": "floor_divide", "mod": "remainder"}
"""Names of operators that are functions under other names."""

SEVERAL = " of several"
"""Marks functions that give something else than one tensor."""

HIDDEN = "tenflex_hidden"
"""The attribute in which a module remembers the names of which it knows the size alone."""

EMPTY = torch.empty(0, device="meta")


@dataclass(eq=False)
class Way:
    """The way through a block, from its first module to its last.

    Args:
        block: The name of the block.
        functions: What is called on the way, in order; None until a forward pass has shown it.
    """

    block: str
    functions: tuple[str, ...] | None


@dataclass(eq=False)
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
        place = len(self.done)
        if place < len(expected) and expected[place] == function:
            self.done.append(function)
            return True
        places = expected[place : place + 1] if self.outputs is not None else expected
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

    def so_far(self) -> Tensor:
        """The layer's outputs."""
        if self.outputs is None:
            raise ValueError(
                f"expected the modules of the block {self.way.block!r} to be called as in the example that it was cut "
                f"with, but nothing arrives from the layer in its place: compress with inputs like this one"
            )
        return self.outputs

    def finish(self) -> Tensor:
        """The layer's outputs, at the end of the way."""
        outputs = self.so_far()
        if self.way.functions is None:
            self.way.functions = tuple(self.done)
        self.over = True
        return outputs


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


class Carried(Numberless):
    """Stands for a tensor inside a block that was replaced, and carries what the layer in its place gave.

    A copy of it, as of an attribute in which a network keeps what it saw last, only has the size.
    """

    passage: Passage | None = None
    made: Made | Tensor = EMPTY

    def stand_in(self) -> Tensor:
        """A tensor on the meta device, of the size of the one that it stands for, which is found out when asked."""
        made = self.made if isinstance(self.made, Tensor) else _result(*self.made)
        self.made = made
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Carried:
        return carried(None, self.stand_in())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return carried, (None, self.stand_in())

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind, name, defaults = _known(func)
        kwargs = kwargs or {}
        if kind is None:
            return go_on((name, defaults), func, args, kwargs)
        first = next(one for one in _leaves((*args, *kwargs.values())) if isinstance(one, Carried))
        if kind == "size":
            return func(first.stand_in(), *args[1:], **kwargs)
        if kind == "same" and args and args[0] is first:
            return first
        args, kwargs = tree_map(_like, (args, kwargs))
        return func(*args, **kwargs)


def go_on(name: tuple[str, tuple[str, ...]], function: Any, args: Any, kwargs: Any) -> Any:
    """What a function, or a module, gives for tensors that are carried."""
    given = _leaves((*args, *kwargs.values()))
    passage = _passage(given)
    if passage is None:
        raise ValueError(f"expected a function that keeps what a replaced block carries, got one before {name[0]!r}")
    step = _described(*name, given)
    if passage.step(step):
        return carried(passage, (function, args, kwargs))
    result = _result(function, args, kwargs)
    if passage.way.functions is None:
        passage.done.append(step if isinstance(result, Tensor) else step + SEVERAL)
    return tree_map(lambda one: carried(passage, one) if isinstance(one, Tensor) else one, result)


def carried(passage: Passage | None, made: Made | Tensor) -> Carried:
    """Something to carry; without a passage there is only a size."""
    new = EMPTY.as_subclass(Carried)
    new.passage, new.made = passage, made
    return new


class Begin:
    """The forward hook of the layer in the place of a block's first module, whose `shadow` the layer holds."""

    def __init__(self, way: Way) -> None:
        self.way: Way | None = way

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], outputs: Tensor) -> Any:
        (first,) = vars(layer)["shadow"]
        if self.way is None:
            return first(*args)
        return carried(Passage(self.way, outputs, outputs), (first, tuple(map(Size.of, args)), {}))


class Passed(nn.Module):
    """In the place of another module of a block: it passes on what is carried, and the last one hands out the outputs.

    Attributes of the module that was here can still be read.

    Args:
        path: The module's name in the network.
        module: Its `shadow`.
        way: The way through the block; None in the shadow of another block.
        last: Whether it ends here.
        parts: The tensors that leave the block, where there are several.
    """

    def __init__(self, path: str, module: nn.Module, way: Way, last: bool, parts: Parts | None = None) -> None:
        super().__init__()
        self.path, self.last, self.parts = path, last, parts
        self.way: Way | None = way
        self.shadow = (module,)  # no submodule: it is neither counted nor saved
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module would give, or what the block gives."""
        if self.way is None:
            return self.shadow[0](*args, **kwargs)
        passage = _passage(_leaves((*args, *kwargs.values())))
        if passage is None:  # a branch that begins with what arrives at the block
            args, kwargs = _begun(self.way, args, kwargs)
        given = go_on((self.path, ()), self.shadow[0], args, kwargs)
        return self._handed_out(given) if self.last or self._gives else given

    @property
    def _gives(self) -> bool:
        """Whether a tensor leaves the block here, though it goes on."""
        return self.parts is not None and self.parts.kind == MODULES and self.path in self.parts.names

    def _handed_out(self, given: Any) -> Any:
        """What leaves the block here, of what the layer gave."""
        passage = _passage(_leaves([given]))
        if passage is None:
            raise ValueError(f"expected {self.path!r} to be given something of the block that was replaced")
        outputs = passage.whole.finish() if self.last else passage.whole.so_far()
        return outputs if self.parts is None else self.parts.given(outputs, self.path)

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
        unhook_(inner)
        for one in (inner, *inner._forward_hooks.values()):
            if isinstance(one, (Begin, Passed)):
                one.way = None
    return copied


def _without_numbers(tensor: Tensor) -> Tensor:
    empty: Tensor = Size.tensor(Size.of(tensor))
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def hide_(module: nn.Module, name: str) -> None:
    """Take a parameter or a buffer out of a module, which can still read its size under its name; nothing else."""
    if name in module._parameters or name in module._buffers:
        tensor = getattr(module, name)
        delattr(module, name)
        setattr(module, name, Size.tensor(Size.of(tensor)))
        vars(module)[HIDDEN] = (*hidden_in(module), name)


def hidden_in(module: nn.Module) -> tuple[str, ...]:
    """The attributes of a module that were parameters or buffers, and only have their size."""
    names: tuple[str, ...] = vars(module).get(HIDDEN, ())
    return names


def begin_(layer: nn.Module, first: nn.Module, way: Way) -> None:
    """Let a layer begin the way through a block in the place of its first module, whose numbers and names it keeps."""
    vars(layer)["shadow"] = (shadow(first),)  # no submodule: it is neither counted nor saved
    layer.register_forward_hook(Begin(way))
    for name, value in vars(first).items():
        plain = all(map(is_plain, value)) if isinstance(value, tuple) else is_plain(value)
        if plain and not hasattr(layer, name):
            setattr(layer, name, value)


def _result(function: Any, args: Any, kwargs: Any) -> Any:
    """What a function gives, without numbers."""
    leaves, form = tree_flatten((args, kwargs))
    sizes = tuple(Size.of(one) for one in leaves)
    if torch.compiler.is_compiling() or not _has_hash(sizes):
        return _sized(function, sizes, form)
    return _remembered(function, sizes, form, tuple(map(type, sizes)))


def _sized(function: Any, sizes: tuple[Any, ...], form: TreeSpec, kinds: tuple[type, ...] = ()) -> Any:
    """What a function gives for tensors of these sizes; by their kinds 1, 1.0 and True are told apart from memory."""
    args, kwargs = tree_unflatten([Size.tensor(one) for one in sizes], form)
    with torch.no_grad():
        return function(*args, **kwargs)


_remembered = lru_cache(maxsize=1024)(_sized)
"""The same from memory: PyTorch takes long to find out."""


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _known(function: Any) -> tuple[str | None, str, tuple[str, ...]]:
    """The kind of question that a function is, if it is one, its name and defaults; a constant to `torch.compile`."""
    return _kind(function)


vars(_known)["_dynamo_marked_constant"] = True  # as `torch.compiler.assume_constant_result`, which imports the compiler


@lru_cache(maxsize=1024)
def _kind(function: Any) -> tuple[str | None, str, tuple[str, ...]]:
    name = name_of(function)
    if name in HARMLESS or name.lstrip("_").startswith("is_"):
        return "like", name, ()
    if name in UNCHANGED:
        return "same", name, ()
    if name in SIZES or (getattr(function, "__name__", "") == "__get__" and name not in DERIVED):
        return "size", name, ()
    return None, name.strip("_"), _defaults(function)


def _defaults(function: Any) -> tuple[str, ...]:
    """The defaults of a function, which PyTorch passes on or not."""
    try:
        return tuple(repr(one.default) for one in signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in function
        return ()


def _described(name: str, defaults: tuple[str, ...], given: list[Any]) -> str:
    """A function with what it is given: `_` for what is carried, other tensors, and constants, but for sizes."""
    plain = OPERATORS.get(name[1:], name[1:]) if name[:1] in ("r", "i") else ""
    if plain in ARITHMETIC:  # as in 1 - x, which may be asked of x
        name, given = plain, given[::-1] if name[0] == "r" else given
    name, found = OPERATORS.get(name, name), []
    for one in given:
        if isinstance(one, Tensor):
            found.append("_" if isinstance(one, Carried) else "tensor")
        elif one is True or type(one) in (float, str) or (type(one) is int and name in ARITHMETIC):
            found.append(repr(one))
    found = [one for one in found if one not in defaults]
    return f"{name}({', '.join(found)})" if any(one != "_" for one in found) else name


def _begun(way: Way, args: Any, kwargs: Any) -> Any:
    """The arguments of a branch that begins before any layer has given something."""
    like = next((one for one in _leaves((*args, *kwargs.values())) if isinstance(one, Tensor)), EMPTY)
    passage = Passage(way, like)
    return tree_map(lambda one: carried(passage, one) if isinstance(one, Tensor) else one, (args, kwargs))


def _passage(given: list[Any]) -> Passage | None:
    """The passage that tensors are part of, from the layer on if one of them is; others join it."""
    found: Passage | None = None
    for one in given:
        if not isinstance(one, Carried) or one.passage is None:
            continue
        other = one.passage.whole
        if found is None:
            found = other
        elif found is not other:
            found, branch = (found, other) if other.outputs is None else (other, found)
            found.join(branch)
    return found


def _like(value: Any) -> Any:
    """A tensor with numbers for one that is carried; one without if it only has a size."""
    if not isinstance(value, Carried):
        return value
    return value.stand_in() if value.passage is None else value.passage.like


def _leaves(values: Iterable[Any]) -> list[Any]:
    """All values in nested tuples, lists and mappings."""
    found = []
    for one in values:
        if isinstance(one, (tuple, list)):
            found.extend(_leaves(one))
        elif isinstance(one, dict):
            found.extend(_leaves(one.values()))
        else:
            found.append(one)
    return found
