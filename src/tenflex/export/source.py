"""A network as one file of C99: arrays, kernels, and one function that calls them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from tenflex._version import __version__
from tenflex.export.program import Program, Step, size_of

IN_PLACE = {"pieces", "polynomial", "clamp", "leaky", "affine", "plus"}
"""Operations whose output may stand where their input stood."""

BYTES = {"float": 4, "int8_t": 1, "int16_t": 2, "int32_t": 4, "int": 4}

CHECKED = 4
"""So many inputs are recorded in a file, for its `main` to check itself with."""


def kernel(name: str, **words: str) -> str:
    """The text of a kernel, with words in it replaced."""
    text = resources.files(__package__).joinpath("kernels").joinpath(f"{name}.c").read_text(encoding="utf-8")
    for word, by in words.items():
        text = text.replace(word, by)
    return text


def names_in(text: str, pattern: str = r"[A-Za-z_]\w*") -> set[str]:
    """The names that a text of C uses, those in comments left out."""
    return set(re.findall(pattern, re.sub(r"/\*.*?\*/|//[^\n]*|\"[^\"\n]*\"", " ", text, flags=re.DOTALL)))


def functions_of_kernels() -> set[str]:
    """The names of the functions in all kernels."""
    folder = resources.files(__package__).joinpath("kernels")
    texts = (one.read_text(encoding="utf-8") for one in folder.iterdir() if one.is_file())
    return set().union(*(names_in(one, r"([A-Za-z_]\w*)\s*\(") for one in texts))


@dataclass(eq=False)
class Source:
    """A file of C while it is written.

    Args:
        name: The name of the function.
        program: The network.
        number: The type of what stands between: "float" or "int16_t".
        arriving: The type of the inputs: "float" or "int8_t".
        extra: More lines for the header.
    """

    name: str
    program: Program
    number: str = "float"
    arriving: str = "float"
    extra: tuple[str, ...] = ()
    arrays: dict[tuple[str, str], str] = field(default_factory=dict)
    kernels: dict[str, None] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    flash: int = 0

    def __post_init__(self) -> None:
        self.places, self.size = places(self.program)

    def array(self, values: Tensor | np.ndarray | Sequence[int], kind: str = "float") -> str:
        """Keep numbers, once; returns the name of their array."""
        flat = np.asarray(values.detach().numpy() if isinstance(values, Tensor) else values).ravel()
        text = f"[{len(flat)}] = {{{', '.join(map(real if kind == 'float' else str, flat.tolist()))}}};"
        if (kind, text) not in self.arrays:
            self.arrays[kind, text] = f"A{len(self.arrays)}"
            self.flash += BYTES[kind] * len(flat)
        return self.arrays[kind, text]

    def use(self, text: str) -> None:
        """Keep a kernel, once."""
        self.kernels.setdefault(text)

    def place(self, value: int) -> str:
        """Where a value stands, as an expression."""
        if value == 0:
            return "x"
        return "y" if value == self.program.output else f"work + {self.places[value]}"

    def type_of(self, value: int) -> str:
        """The type of the numbers of a value."""
        return self.arriving if value == 0 else "float" if value == self.program.output else self.number

    @property
    def stack(self) -> int:
        """The bytes of what stands between, on the stack."""
        return BYTES[self.number] * self.size

    def header(self) -> str:
        """The header file."""
        guard, sizes = f"{self.name.upper()}_H", (size_of(self.program.in_shape), size_of(self.program.out_shape))
        lines = [
            f"/* Made by tenflex {__version__}. */",
            f"#ifndef {guard}",
            f"#define {guard}",
            *(["#include <stdint.h>"] if self.number != "float" else []),
            f"#define {self.name.upper()}_INPUTS {sizes[0]}",
            f"#define {self.name.upper()}_OUTPUTS {sizes[1]}",
            f"#define {self.name.upper()}_FLASH {self.flash} /* bytes of constants */",
            f"#define {self.name.upper()}_STACK {self.stack} /* bytes between the layers */",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            f"void {self.name}(const {self.arriving} *x, float *y);",
            *self.extra,
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "#endif",
        ]
        return "\n".join(lines) + "\n"

    def text(self, recorded: str = "") -> str:
        """The file, with its `main` if there is one."""
        body = [f"    {self.number} work[{self.size}];"] if self.size else []
        parts = [
            f"/* Made by tenflex {__version__}. Needs no other file but its header, no memory but its stack. */",
            f'#include "{self.name}.h"',
            "\n".join(f"static const {kind} {name}{text}" for (kind, text), name in self.arrays.items()),
            *self.kernels,
            f"void {self.name}(const {self.arriving} *x, float *y)\n{{\n" + "\n".join([*body, *self.calls]) + "\n}\n",
            recorded,
        ]
        return "\n".join(part for part in parts if part)

    def main(self, inputs: np.ndarray, outputs: np.ndarray, bound: float) -> str:
        """A `main` that checks the function on recorded inputs."""
        kinds = ", ".join(map(real if self.arriving == "float" else str, inputs.ravel().tolist()))
        values = {"ARRIVING": self.arriving, "NETWORK": self.name, "UPPER": self.name.upper(), "BOUND": real(bound)}
        expected = ", ".join(map(real, outputs.ravel().tolist()))
        return kernel("main", COUNT=str(len(inputs)), RECORDED=kinds, EXPECTED=expected, **values)


def real(value: float) -> str:
    """A number in single precision as C writes it."""
    text = repr(float(np.float32(value))) if np.isfinite(np.float32(value)) else ""
    if not text:
        raise ValueError(f"expected a finite network, got the number {value} in its layers: repair it")
    short = f"{np.float32(value):.9g}"
    short = short if np.float32(short) == np.float32(value) else text
    return (short if "." in short or "e" in short else f"{short}.0") + "f"


def places(program: Program) -> tuple[dict[int, int], int]:
    """Where each value stands in one array that all share, and its length: places are used again."""
    last = {k: at for at, step in enumerate(program.steps) for k in step.inputs}
    found: dict[int, int] = {}
    living: list[tuple[int, int, int]] = []  # start, end, last use
    for at, step in enumerate(program.steps):
        if step.output == program.output:
            break
        living = [one for one in living if one[2] >= at]
        source, size = step.inputs[0], size_of(step.shape)
        if step.operation in IN_PLACE and source != 0 and last[source] == at:
            start = found[source]
        else:
            start = _gap(sorted(living), size)
        found[step.output] = start
        living.append((start, start + size, last.get(step.output, at)))
    ends = [found[step.output] + size_of(step.shape) for step in program.steps if step.output in found]
    return found, max(ends, default=0)


def _gap(taken: list[tuple[int, int, int]], size: int) -> int:
    """The first place where so many numbers fit."""
    start = 0
    for begin, end, _ in taken:
        if begin - start >= size:
            return start
        start = max(start, end)
    return start


def float_source(name: str, program: Program) -> Source:
    """The network in floating point."""
    source = Source(name, program)
    for step in program.steps:
        WRITE[step.operation](source, step)
    return source


def _call(source: Source, step: Step, function: str, *given: object) -> None:
    """A call of a kernel with the step's values between its arrays and its numbers."""
    source.use(kernel(function))
    arrays = [str(one) for one in given if isinstance(one, str)]
    numbers = [str(one) for one in given if not isinstance(one, str)]
    values = [*map(source.place, step.inputs), source.place(step.output)]
    source.calls.append(f"    {function}({', '.join([*arrays, *values, *numbers])});")


def _linear(source: Source, step: Step) -> None:
    weight, positions = step.tensors["weight"], size_of(step.shape[:-1])
    n, m = weight.shape
    source.use(kernel("linear"))
    bias = source.array(step.tensors["bias"]) if "bias" in step.tensors else "0"
    ends = [source.place(step.inputs[0]), source.place(step.output)]
    arrays = f"{source.array(weight)}, {bias}"
    source.calls += over_positions("linear", arrays, ends, (n, m), positions)


def over_positions(function: str, arrays: str, ends: list[str], sizes: tuple[int, int], positions: int) -> list[str]:
    """Calls of a linear map at all positions."""
    n, m = sizes
    if positions == 1:
        return [f"    {function}({arrays}, {ends[0]}, {ends[1]}, {n}, {m});"]
    return [
        f"    for (int i = 0; i < {positions}; i++)",
        f"        {function}({arrays}, {ends[0]} + i * {m}, {ends[1]} + i * {n}, {n}, {m});",
    ]


def conv_sizes(step: Step) -> list[int]:
    """The numbers that the kernel of a convolution takes."""
    sizes = [step.settings[name] for name in ("stride", "padding", "dilation")]
    kernel_size = list(step.tensors["weight"].shape[2:])
    return [
        *step.shapes[0],
        *step.shape,
        *kernel_size,
        *(one for pair in sizes for one in pair),
        step.settings["groups"],
    ]


def pool_sizes(step: Step) -> list[int]:
    """The numbers that the kernels of pooling take."""
    [channels, height, width] = step.shapes[0]
    rows, columns = step.shape[1:] if len(step.shape) == 3 else (1, 1)
    names = ("size", "stride", "padding", "dilation")
    pairs = [step.settings[name] for name in names if name in step.settings]
    return [channels, height, width, rows, columns, *(one for pair in pairs for one in pair)]


def permute_sizes(step: Step) -> list[int]:
    """The numbers that the kernel of a permutation takes: sizes and distances of four dimensions."""
    order, shape = step.settings["order"], step.shapes[0]
    if len(shape) > 4:
        raise ValueError(f"the C exporter writes permutations of up to four dimensions, got {len(shape)}")
    distances = [size_of(shape[one + 1 :]) for one in order]
    missing = 4 - len(shape)
    return [*[1] * missing, *step.shape, *[0] * missing, *distances]


def _conv2d(source: Source, step: Step) -> None:
    bias = source.array(step.tensors["bias"]) if "bias" in step.tensors else "0"
    source.use(kernel("conv2d"))
    arrays = f"{source.array(step.tensors['weight'])}, {bias}"
    values = f"{source.place(step.inputs[0])}, {source.place(step.output)}"
    source.calls.append(f"    conv2d({arrays}, {values}, {source.array(conv_sizes(step), 'int')});")


def typed(source: Source, step: Step, name: str, sizes: list[int], function: str | None = None) -> None:
    """A call of a kernel that is the same for all types."""
    kind = source.type_of(step.inputs[0])
    label = kind.removesuffix("_t")
    source.use(kernel(name, TYPE=label, NUMBER=kind, OUT=source.type_of(step.output)))
    values = f"{source.place(step.inputs[0])}, {source.place(step.output)}"
    source.calls.append(f"    {function or name}_{label}({values}, {source.array(sizes, 'int')});")


def _pieces(source: Source, step: Step) -> None:
    module = step.settings["module"]
    sizes = (size_of(step.shape), module.nodes, module.pieces, module.degree + 1)
    table = source.array(step.tensors["table"])
    if "breaks" in step.tensors:
        _call(source, step, "knots", table, source.array(step.tensors["breaks"].expand(module.nodes, -1)), *sizes)
    else:
        _call(source, step, "pieces", table, *sizes)


def _polynomial(source: Source, step: Step) -> None:
    nodes, powers = step.tensors["table"].shape
    clamped = int(step.settings["module"].clamped)
    _call(source, step, "polynomial", source.array(step.tensors["table"]), size_of(step.shape), nodes, powers, clamped)


def _affine(source: Source, step: Step) -> None:
    arrays = source.array(step.tensors["scale"]), source.array(step.tensors["shift"])
    channels = len(step.tensors["scale"])
    _call(source, step, "affine", *arrays, channels, size_of(step.shape) // channels)


def _plus(source: Source, step: Step) -> None:
    _call(source, step, "add", source.array(step.tensors["added"]), size_of(step.shape))


def _clamp(source: Source, step: Step) -> None:
    most = float(np.finfo(np.float32).max)
    low, high = step.settings["low"], step.settings["high"]
    source.use(kernel("clamp"))
    ends = f"{real(-most if low is None else low)}, {real(most if high is None else high)}"
    values = f"{source.place(step.inputs[0])}, {source.place(step.output)}"
    source.calls.append(f"    clamp({values}, {size_of(step.shape)}, {ends});")


def _leaky(source: Source, step: Step) -> None:
    source.use(kernel("leaky"))
    values = f"{source.place(step.inputs[0])}, {source.place(step.output)}"
    source.calls.append(f"    leaky({values}, {size_of(step.shape)}, {real(step.settings['slope'])});")


WRITE: dict[str, Callable[[Source, Step], None]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "affine": _affine,
    "max_pool2d": lambda source, step: typed(source, step, "max_pool2d", pool_sizes(step)),
    "avg_pool2d": lambda source, step: typed(source, step, "avg_pool2d", pool_sizes(step)),
    "plus": _plus,
    "add": lambda source, step: _call(source, step, "add", size_of(step.shape)),
    "permute": lambda source, step: typed(source, step, "permute", permute_sizes(step)),
    "pieces": _pieces,
    "polynomial": _polynomial,
    "clamp": _clamp,
    "leaky": _leaky,
}
"""How steps are written in floating point."""


def outputs_of(program: Program, inputs: Tensor) -> Tensor:
    """The outputs by PyTorch, one row a sample."""
    return program.values(inputs)[program.output].reshape(len(inputs), -1).to(torch.float32)
