"""What a module stores and computes for one example: parameters, multiply-adds, operations of the activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from tenflex.storage.state import memory_of
from tenflex.surgery.batch import Batch, call, clone, take, tensors_in
from tenflex.surgery.quiet import unfused
from tenflex.surgery.twin import twin
from tenflex.uncompiled import uncompiled

Shape = Sequence[int]

FUNCTION = 4
"""Operations of one elementary function (exp, log, tanh, erf, sin): fewer than libraries spend, so that the activations
of an original network are never made to look dearer than they are."""

ACTIVATIONS: dict[str, int] = {
    "relu": 1,
    "threshold": 1,
    "abs": 1,
    "clamp_min": 1,
    "clamp_max": 1,
    "maximum": 1,
    "minimum": 1,
    "clamp": 2,
    "hardtanh": 2,  # also relu6
    "leaky_relu": 2,
    "_prelu_kernel": 2,
    "rrelu_with_noise": 2,
    "hardshrink": 2,
    "softshrink": 3,
    "hardsigmoid": 4,
    "hardswish": 5,
    "tanh": FUNCTION,
    "erf": FUNCTION,
    "exp": FUNCTION,
    "log": FUNCTION,
    "sin": FUNCTION,
    "cos": FUNCTION,
    "sigmoid": FUNCTION + 2,
    "elu": FUNCTION + 3,  # also selu
    "celu": FUNCTION + 3,
    "silu": FUNCTION + 3,
    "glu": FUNCTION + 3,
    "gelu": FUNCTION + 4,
    "_softmax": FUNCTION + 4,
    "_safe_softmax": FUNCTION + 4,
    "_log_softmax": FUNCTION + 4,
    "softplus": 2 * FUNCTION + 2,
    "log_sigmoid_forward": 2 * FUNCTION + 2,
    "mish": 3 * FUNCTION + 3,
}
"""Operations per element of the output, by the name of PyTorch's operator, in place or not: one for each addition,
multiplication, division or comparison, and `FUNCTION` for each elementary function.

Modules, functions and methods all end in these operators, so each is counted once, however it is written. The maximum
over a dimension (maxout) is one comparison for each number it drops. Products of two tensors, normalisations and
poolings are not activations and are not counted.
"""

MAXIMA = ("amax", "amin", "max", "min")

LSTM_CELL = 3 * (FUNCTION + 2) + 2 * FUNCTION
"""Operations of one cell of an LSTM, three sigmoids and two tanh, whose operator computes them unseen."""


def lstm_flops(inputs: Shape, of_input: Shape, of_state: Shape, *_: Any, out_shape: Any, **__: Any) -> int:
    """Floating-point operations of a layer of an LSTM: two products at every step of every sequence."""
    return 2 * inputs[0] * inputs[1] * (math.prod(of_input) + math.prod(of_state))


PRODUCTS = {
    torch.ops.aten.mv: lambda matrix, vector, out_shape: 2 * math.prod(matrix),
    torch.ops.aten.addmv: lambda start, matrix, vector, out_shape: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda left, right, out_shape: 2 * math.prod(left),
    torch.ops.aten.vdot: lambda left, right, out_shape: 2 * math.prod(left),
    torch.ops.aten.addbmm: lambda start, left, right, out_shape: 2 * math.prod(left) * right[-1],
    torch.ops.aten._trilinear: lambda left, weight, right, *_, out_shape, **__: 2 * left[0] * math.prod(weight),
    torch.ops.aten.mkldnn_rnn_layer: lstm_flops,
}
"""Floating-point operations of linear operators that PyTorch's counter leaves out, from the shapes of arguments."""


@runtime_checkable
class CountsOperations(Protocol):
    """A module that knows the operations of its activations, such as a flexible one."""

    def operations_per_example(self) -> int:
        """The operations for one vector of nodes; applied at many positions of an example, it is counted at each."""


@runtime_checkable
class StoresKnots(Protocol):
    """A module that stores numbers outside its parameters and buffers: knots of its basis that are not even."""

    def stored_knots(self) -> int:
        """How many."""


@dataclass(frozen=True)
class Cost:
    """What a module costs for one example; costs of parts add up.

    Args:
        parameters: Stored numbers.
        macs: Multiply-adds of the linear maps.
        activation_operations: Operations of the activation functions.

    Example:
        >>> from tenflex.evaluate.cost import Cost
        >>> Cost(100, 90, 10) + Cost(1, 2, 3)
        Cost(parameters=101, macs=92, activation_operations=13)
    """

    parameters: int
    macs: int
    activation_operations: int

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.activation_operations + other.activation_operations,
        )

    def times(self, count: int) -> Cost:
        """That of a module which runs so often for one example, and stores no more for it."""
        return Cost(self.parameters, count * self.macs, count * self.activation_operations)


def cost(module: nn.Module, example: Batch | None) -> Cost:
    """What `module` stores, and what it computes for one example.

    The module runs once, as a copy in eval mode on a copy of the sample; the original is neither run nor changed.
    Multiply-adds are half of the floating-point operations that `torch.utils.flop_counter` sees: linear layers,
    convolutions, products, attention. Operations of the activations follow the table `ACTIVATIONS`, except in modules
    that have a method `operations_per_example`: what these compute inside is theirs, and their own number counts.
    Recurrent layers are counted on the CPU only: cuDNN computes them unseen.

    Args:
        module: Any module.
        example: A batch (a tensor, a tuple of tensors, or a mapping of keyword tensors), samples first, of which one
            sample is used; or None, for a row of zeros as wide as the first layer with parameters says in
            `in_features`.

    Raises:
        TypeError: if `example` is not made of tensors.
        ValueError: if there is no sample in `example`, or it is None and the first layer does not state its width.

    Example:
        >>> cost(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(1, 3))
        Cost(parameters=32, macs=25, activation_operations=5)
    """
    one = row_of_zeros(module) if example is None else first_sample(example)
    macs, operations = count(twin(module).eval(), clone(one))
    return Cost(stored_numbers(module), macs, operations)


def stored_numbers(module: nn.Module) -> int:
    """How many numbers a file of `module` holds: parameters, floating-point buffers and knots, shared ones once.

    Example:
        >>> from tenflex.evaluate.cost import stored_numbers
        >>> stored_numbers(nn.Linear(3, 2))
        8
    """
    numbers = sum(one.numel() for one in _held(module) if isinstance(one, nn.Parameter) or one.is_floating_point())
    return numbers + sum(inner.stored_knots() for inner in module.modules() if isinstance(inner, StoresKnots))


SINGLE = 4
"""Bytes of a number in single precision."""


def stored_bytes(module: nn.Module) -> int:
    """How many bytes the tensors and knots of `module` take, shared ones once; knots as its other numbers.

    Example:
        >>> from tenflex.evaluate.cost import stored_bytes
        >>> stored_bytes(nn.Linear(3, 2)), stored_bytes(nn.Linear(3, 2).double())
        (32, 64)
    """
    knots = (
        inner.stored_knots() * next((one.element_size() for one in inner.parameters()), SINGLE)
        for inner in module.modules()
        if isinstance(inner, StoresKnots)
    )
    return sum(one.numel() * one.element_size() for one in _held(module)) + sum(knots)


def _held(module: nn.Module) -> Iterable[Tensor]:
    """What a file of a module holds, shared tensors once."""
    return {memory_of(one): one for one in tensors_in(module.state_dict(keep_vars=True))}.values()


def kept(before: int, after: int) -> float:
    """The share of `before` that is left, `after / before`: 0.05 is 5 % kept.

    Raises:
        ValueError: if `before` is not positive or `after` is negative.

    Example:
        >>> from tenflex.evaluate.cost import kept
        >>> kept(1000, 50)
        0.05
    """
    if before <= 0 or after < 0:
        raise ValueError(
            f"a share kept needs something before and at least nothing after, got {before} before and {after} after"
        )
    return after / before


def describe_kept(before: int, after: int) -> str:
    """The share kept in words, with the factor of compression.

    Example:
        >>> describe_kept(266_610, 13_330)
        '5.0 % kept (20x)'
    """
    share = kept(before, after)
    percent = f"{100 * share:.1f}" if share >= 0.01 or share == 0 else f"{100 * share:.2g}"
    return f"{percent} % kept ({describe_factor(1 / share)}x)" if share else f"{percent} % kept"


def describe_factor(factor: float) -> str:
    """A factor with two significant digits, or all of them before the point.

    Example:
        >>> from tenflex.evaluate.cost import describe_factor
        >>> describe_factor(4.567), describe_factor(123.4)
        ('4.6', '123')
    """
    digits = 0 if factor >= 9.95 else 1 if factor >= 0.995 else 2
    return f"{factor:.{digits}f}"


def first_sample(example: Batch) -> Batch:
    """The first sample of a batch, as a batch of one."""
    if isinstance(example, Tensor) and (example.dim() == 0 or example.numel() == 0):
        raise ValueError(f"example must hold at least one sample, samples first, got shape {tuple(example.shape)}")
    return take(example, slice(0, 1))


def row_of_zeros(module: nn.Module) -> Tensor:
    """An input for a module whose first layer states its width."""
    for layer in module.modules():
        own = list(layer.parameters(recurse=False))
        if own:
            width = getattr(layer, "in_features", None)
            if isinstance(width, int):
                return own[0].new_zeros(1, width)
            raise ValueError(
                f"the first layer with parameters, a {type(layer).__name__}, does not state its width in "
                "`in_features`: pass one of the module's inputs as example"
            )
    raise ValueError("no layer has parameters, so the width of the input is unknown: pass one of the inputs as example")


def count(module: nn.Module, one: Batch) -> tuple[int, int]:
    """Multiply-adds and operations of activations of `module` for one sample; its hooks are left on, so pass a copy."""
    flops = Products()
    tally = Tally(flops, not any(tensor.is_meta for tensor in tensors_in(one)))
    for inner in count_themselves(module):
        inner.register_forward_pre_hook(tally.enter)
        inner.register_forward_hook(tally.leave)
    with torch.no_grad(), plain_attention(module), flops, tally:
        call(module, one)
    return (flops.total - tally.hidden) // 2, tally.operations


def count_themselves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that know their operations; of two that are nested, the inner one."""
    for inner in module.modules():
        if isinstance(inner, CountsOperations) and not any(
            isinstance(one, CountsOperations) for one in inner.modules() if one is not inner
        ):
            yield inner


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Attention as products and a softmax, which can be counted, instead of fused kernels, which hide them."""
    with unfused(module), sdpa_kernel(SDPBackend.MATH):
        yield


@uncompiled
class Products(TorchDispatchMode):
    """Counts floating-point operations, as `FlopCounterMode` does, which would wait for PyTorch's compiler first."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode  # only this needs it

        super().__init__()
        self.total = 0
        self.registry = FlopCounterMode(display=False, custom_mapping=PRODUCTS).flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in self.registry and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if packet in self.registry:
            self.total += self.registry[packet](*args, **kwargs, out_val=out)
        return out


@uncompiled
class Tally(TorchDispatchMode):
    """Counts operations of activations, and what modules that count themselves compute inside.

    Args:
        flops: Counts besides.
        real: Whether there are numbers, so that operations on the meta device compute nothing.
    """

    def __init__(self, flops: Products, real: bool) -> None:
        super().__init__()
        self.flops = flops
        self.real = real
        self.operations = 0
        self.hidden = 0
        self.before: int | None = None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.flops.total
        out = func(*args, **(kwargs or {}))
        if self.real and isinstance(out, Tensor) and out.is_meta:  # only the size of something is found out
            self.hidden += self.flops.total - before if self.before is None else 0
        elif self.before is None:
            self.operations += operations_of(func._overloadpacket.__name__.removesuffix("_"), args, out)
        return out

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Stop counting inside a module that counts itself."""
        self.before = self.flops.total

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Take the module's own number, once for each vector of nodes (last dimension), and count on."""
        if self.before is not None and isinstance(module, CountsOperations):
            self.hidden += self.flops.total - self.before
            self.operations += module.operations_per_example() * (output.numel() // output.shape[-1])
        self.before = None


def operations_of(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Operations of one call of an operator of PyTorch, 0 if it is no activation."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    if name in MAXIMA:
        return args[0].numel() - first.numel()
    if name == "mkldnn_rnn_layer":
        return LSTM_CELL * first.numel()
    return ACTIVATIONS[name] * first.numel() if name in ACTIVATIONS else 0
