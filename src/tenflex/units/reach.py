"""Which inputs an output of a block can see, worked out from the operators that the block is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tenflex.nn import FlexibleActivation
from tenflex.surgery.batch import tensors_in
from tenflex.uncompiled import uncompiled


@dataclass(frozen=True)
class Reach:
    """What the numbers along one axis are made of: number j of the inputs at `offsets + j * stride`.

    Args:
        offsets: The places of the inputs that the first number sees; those outside of the input are zeros.
        stride: How far apart two neighbours see.
        count: How many numbers there are.
    """

    offsets: frozenset[int]
    stride: int
    count: int

    @property
    def start(self) -> int:
        """The first input that the first number sees."""
        return min(self.offsets)

    @property
    def dilation(self) -> int:
        """The largest step in which all inputs lie that one number sees."""
        return math.gcd(*(one - self.start for one in self.offsets)) or 1

    @property
    def size(self) -> int:
        """How many inputs one number sees, in such steps."""
        return (max(self.offsets) - self.start) // self.dilation + 1

    def after(self, length: int) -> int:
        """The zeros beyond the end that the last number sees; less than 0 if it sees less than all inputs."""
        return (self.count - 1) * self.stride + max(self.offsets) + 1 - length

    def through(self, size: int, stride: int, padding: int, dilation: int) -> Reach:
        """What a kernel that slides over the numbers makes of them; `count` is to be told."""
        steps = [(index * dilation - padding) * self.stride for index in range(size)]
        return replace(
            self, offsets=frozenset(one + step for one in self.offsets for step in steps), stride=self.stride * stride
        )


Reaches: TypeAlias = tuple[Reach, ...]
Named: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What a tensor of a block sees of its input.

    Args:
        axes: Its axes of places, counted from the end.
        reaches: What the places along each of them see.
    """

    axes: tuple[int, ...]
    reaches: Reaches

    @property
    def last(self) -> bool:
        """Whether the axes of places are the last ones, as convolutions have them."""
        return self.axes == tuple(range(-len(self.axes), 0))

    def of(self, reaches: Reaches) -> Seen:
        """The same axes, seeing something else."""
        return replace(self, reaches=reaches)

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """All sizes from the first axis of places on."""
        return tuple(shape[min(self.axes) :]) if len(shape) >= -min(self.axes) else ()


VIEWS = {
    *("clone", "alias", "detach", "contiguous", "lift_fresh", "_to_copy", "copy_", "expand", "view", "_unsafe_view"),
    *("reshape", "squeeze", "unsqueeze", "hardswish", "_prelu_kernel"),
}
"""Operators that leave every number where it is, if the sizes from the first axis of places on stay the same."""

CHANNELS = {
    *(
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "cat",
        "stack",
        "sum",
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "prod",
    ),
    *("_softmax", "_log_softmax", "glu", "linalg_vector_norm"),
}
"""Operators that do something along `dim`, which must be none of the axes of places."""

ON_LAST = (FlexibleActivation, nn.Linear)
"""Modules that act on the last axis alone."""


class UnlikeError(Exception):
    """Why places are not alike."""


@uncompiled
class Tracker(TorchDispatchMode):
    """Follows what every tensor of a block sees of its input, operator by operator.

    Args:
        x: The input, `(S, channels, *size)`.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.known: dict[int, Seen] = {}
        self.kept: list[Tensor] = []  # so that no other tensor gets the identity of one that is known
        self.inside = 0
        axes = tuple(range(2 - x.ndim, 0))
        self.note(x, Seen(axes, tuple(Reach(frozenset({0}), 1, size) for size in x.shape[2:])))

    def note(self, tensor: Tensor, seen: Seen) -> None:
        """Remember what a tensor sees."""
        pairs = zip(seen.reaches, seen.axes, strict=True)
        self.known[id(tensor)] = seen.of(tuple(replace(one, count=tensor.shape[axis]) for one, axis in pairs))
        self.kept.append(tensor)

    def of(self, tensor: Any) -> Seen | None:
        """What a tensor sees; None if nothing of the input."""
        return self.known.get(id(tensor))

    def given(self, values: Any) -> list[Tensor]:
        """The tensors that see something of the input."""
        return [one for one in tensors_in(values) if self.of(one) is not None]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [] if self.inside else self.given([args, kwargs])
        out = func(*args, **kwargs)
        if given:
            name = func._overloadpacket.__name__
            results = list(tensors_in(out))
            seen = self._after(name, torch.Tag.pointwise in func.tags, arguments_of(func, args, kwargs), given, results)
            for one in results[:1] if "batch_norm" in name else results:  # which gives statistics besides
                self.note(one, seen)
        return out

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Do not look into a module that acts on the last axis alone."""
        seen = self.of(args[0])
        if not self.inside and seen is not None and -1 in seen.axes:
            raise UnlikeError(f"a {type(module).__name__} in it mixes all places")
        self.inside += 1

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Its outputs see what its inputs did."""
        self.inside -= 1
        seen = self.of(args[0])
        if not self.inside and seen is not None:
            self.note(output, seen)

    def _after(self, name: str, pointwise: bool, named: Named, given: list[Tensor], results: list[Tensor]) -> Seen:
        """What the results of an operator see."""
        plain = name if name in VIEWS or name in CHANNELS else name.rstrip("_")
        seen = self._joined(name, given)
        if plain in RULES:
            if len({id(one) for one in given}) > 1:
                raise UnlikeError(f"{name!r} in it takes several tensors that come from the input")
            return RULES[plain](self, seen, named)
        if "batch_norm" in name and not named.get("training", False) and seen.last:
            return seen
        if not (pointwise or plain in VIEWS or plain in CHANNELS):
            raise UnlikeError(IN_WORDS.get(plain, f"{plain!r} in it does not treat all places alike"))
        self._require_beside(name, seen, named)
        if plain in CHANNELS:
            _require_channels(name, seen, named, given[0].ndim)
        if any(seen.sizes(one.shape) != seen.sizes(given[0].shape) and not pointwise for one in results):
            raise UnlikeError(f"{name!r} in it mixes places, or makes one row of them")
        return seen

    def _joined(self, name: str, given: list[Tensor]) -> Seen:
        """What several tensors see together."""
        all_of = [seen for one in given if (seen := self.of(one)) is not None]
        if len({one.axes for one in all_of}) > 1:
            raise UnlikeError(f"{name!r} in it joins tensors whose axes are ordered differently")
        joined = []
        for axis in zip(*(one.reaches for one in all_of), strict=True):
            if len({(one.stride, one.count) for one in axis}) > 1:
                raise UnlikeError(f"{name!r} in it joins tensors whose places lie apart differently")
            joined.append(replace(axis[0], offsets=frozenset().union(*(one.offsets for one in axis))))
        return all_of[0].of(tuple(joined))

    def _require_beside(self, name: str, seen: Seen, named: Named) -> None:
        """Raise unless tensors that do not come from the input are the same at all places."""
        for one in tensors_in(list(named.values())):
            if self.of(one) is None and any(-axis <= one.ndim and one.shape[axis] > 1 for axis in seen.axes):
                raise UnlikeError(f"{name!r} in it brings in a tensor with other numbers at other places")


def arguments_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Named:
    """The arguments of an operator by name, those with defaults too."""
    declared = func._schema.arguments
    defaults = {one.name: one.default_value for one in declared if one.has_default_value()}
    return {**defaults, **dict(zip([one.name for one in declared], args, strict=False)), **kwargs}


def _require_channels(name: str, seen: Seen, named: Named, ndim: int) -> None:
    """Raise unless an operator acts along axes before those of places."""
    dims = named.get("dim")
    dims = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
    if not dims or not seen.last or any(one % ndim - ndim in seen.axes for one in dims):
        raise UnlikeError(f"{name!r} in it mixes all places")


def _axes(values: Any, dims: int, rest: int) -> list[int]:
    """One number for each axis of places; axes before them must have the neutral one."""
    listed = list(values) if isinstance(values, (list, tuple)) else [values]
    listed = listed * dims if len(listed) == 1 else listed
    if any(one != rest for one in listed[:-dims]):
        raise UnlikeError("it slides over other axes than those of places")
    return listed[-dims:]


def _slid(seen: Seen, kernel: Any, named: Named) -> Seen:
    dims = len(seen.axes)
    if not seen.last:
        raise UnlikeError("it slides over axes that are not the last ones")
    stride = _axes(named.get("stride") or kernel, dims, 1)
    padding, dilation = _axes(named.get("padding", 0), dims, 0), _axes(named.get("dilation", 1), dims, 1)
    steps = zip(seen.reaches, _axes(kernel, dims, 1), stride, padding, dilation, strict=True)
    return seen.of(tuple(one.through(*sizes) for one, *sizes in steps))


def _convolved(tracker: Tracker, seen: Seen, named: Named) -> Seen:
    if named["transposed"]:
        raise UnlikeError("a transposed convolution in it makes more places of few")
    if tracker.of(named["input"]) is None:
        raise UnlikeError("a kernel in it is made of the input")
    return _slid(seen, named["weight"].shape[2:], named)


def _pooled(tracker: Tracker, seen: Seen, named: Named) -> Seen:
    return _slid(seen, named["kernel_size"], named)


def _padded(tracker: Tracker, seen: Seen, named: Named) -> Seen:
    """The first number sees as many places before."""
    dims = len(seen.axes)
    if not seen.last or any(named["pad"][2 * dims :]):
        raise UnlikeError("it pads other axes than those of places")
    before = [*named["pad"][::2], *[0] * dims][:dims][::-1]
    return seen.of(tuple(one.through(1, 1, size, 1) for one, size in zip(seen.reaches, before, strict=True)))


def _sliced(tracker: Tracker, seen: Seen, named: Named) -> Seen:
    axis = named["dim"] % named["self"].ndim - named["self"].ndim
    if axis not in seen.axes:
        return seen
    at = seen.axes.index(axis)
    start = named["start"] or 0
    start += seen.reaches[at].count if start < 0 else 0
    moved = seen.reaches[at].through(1, named["step"], -start, 1)
    return seen.of((*seen.reaches[:at], moved, *seen.reaches[at + 1 :]))


def _permuted(tracker: Tracker, seen: Seen, named: Named) -> Seen:
    ndim = named["self"].ndim
    order = [one % ndim for one in named.get("dims", range(ndim))]
    if "dim0" in named:
        first, second = named["dim0"] % ndim, named["dim1"] % ndim
        order[first], order[second] = second, first
    axes = tuple(order.index(axis + ndim) - ndim for axis in seen.axes)
    if list(axes) != sorted(axes):
        raise UnlikeError("it changes the order of the axes of places")
    return replace(seen, axes=axes)


RULES: dict[str, Callable[[Tracker, Seen, Named], Seen]] = {
    "convolution": _convolved,
    "max_pool2d_with_indices": _pooled,
    "max_pool3d_with_indices": _pooled,
    "avg_pool2d": _pooled,
    "avg_pool3d": _pooled,
    "constant_pad_nd": _padded,
    "slice": _sliced,
    "permute": _permuted,
    "transpose": _permuted,
}
"""What operators that move places make of what was seen."""

IN_WORDS = {
    **dict.fromkeys(("mm", "addmm", "bmm", "matmul", "linear"), "a linear map in it mixes all places"),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), "an adaptive pooling in it depends on the size"),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d"), "it makes more places of few"),
    **dict.fromkeys(("_local_scalar_dense", "is_nonzero"), "which way it takes depends on the numbers that arrive"),
}
"""Why some operators are refused."""


@torch.no_grad()
def reaches_of(block: nn.Module, x: Tensor) -> Reaches:
    """What every place of a block's outputs sees of its inputs.

    Args:
        block: The block, `(S, channels, *size) -> (S, n, *places)`.
        x: Some inputs.

    Raises:
        ValueError: if places are not alike, with the reason.
    """
    x = x.detach().clone()
    tracker = Tracker(x)
    try:
        with ExitStack() as hooks:
            for module in block.modules():
                if isinstance(module, ON_LAST):
                    hooks.callback(module.register_forward_pre_hook(tracker.enter, prepend=True).remove)
                    hooks.callback(module.register_forward_hook(tracker.leave).remove)
            hooks.enter_context(tracker)
            y = block(x)
    except UnlikeError as error:
        raise ValueError(str(error)) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a block may raise when it is looked into
        raise ValueError(f"it cannot be followed: {type(error).__name__}: {error}") from None
    found = tracker.of(y)
    if found is None:
        raise ValueError("its outputs do not depend on its inputs by operators that can be followed")
    if y.ndim != x.ndim or not found.last:
        raise ValueError(f"its outputs of shape {tuple(y.shape[1:])} have other axes than its inputs")
    return found.reaches
