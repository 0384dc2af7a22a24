"""The recipe for whole numbers: int8 weights by row, int16 between, a table of 32 straight pieces for each node."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tenflex.export.program import Program, Step, size_of
from tenflex.export.source import (
    Source,
    conv_sizes,
    kernel,
    over_positions,
    permute_sizes,
    pool_sizes,
    real,
    typed,
)

CELLS, FRACTION = 32, 256
"""Pieces of a table, and the steps within a piece."""

ROOM = 1.1
"""The ranges that were seen are made wider by this."""

MOST = 2**31 - 1

Rounding = Literal["float", "integer"]


@dataclass(eq=False)
class Scale:
    """How a value is written in whole numbers: `value = step * whole + offset`.

    Args:
        step: For each of its numbers.
        offset: For each of its numbers.
        low: The least whole number.
        high: The largest.
    """

    step: np.ndarray
    offset: np.ndarray
    low: int
    high: int


class Quantised:
    """Writes a network in whole numbers.

    Args:
        name: The name of the function.
        program: The network.
        inputs: Real inputs, on which the ranges are seen.
        rounding: Whether sums are brought to int16 by floating-point numbers, or by whole ones alone.
    """

    def __init__(self, name: str, program: Program, inputs: Tensor, rounding: Rounding) -> None:
        self.program, self.rounding, self.most = program, rounding, 32767
        self.seen = {k: one.reshape(len(inputs), -1).double().numpy() for k, one in program.values(inputs).items()}
        self.name = name
        for step in program.steps:
            _require_known(step)

    def source(self) -> Source:
        """The file; whole numbers are made smaller until no sum can overflow."""
        while True:
            self.scales = {0: self._of_inputs(), **self._asked_for()}
            step = real(self.scales[0].step[0])
            extra: tuple[str, ...] = (
                f"#define {self.name.upper()}_STEP {step} /* an input is a whole number times this */",
            )
            extra += (f"void {self.name}_input(const float *x, int8_t *whole); /* rounds and saturates; NaN is 0 */",)
            self.out = Source(self.name, self.program, "int16_t", "int8_t", extra)
            self.out.use(kernel("input_int8", NETWORK=self.name, UPPER=self.name.upper()))
            self.largest = 0.0
            for one in self.program.steps:
                WRITE[one.operation](self, one)
            self._finish()
            if self.largest <= MOST:
                return self.out
            self.most = int(self.most * MOST / self.largest) - 1

    def _of_inputs(self) -> Scale:
        top = np.abs(self.seen[0]).max() / 127 or 1.0
        return Scale(np.full(self.seen[0].shape[1], top), np.zeros(self.seen[0].shape[1]), -127, 127)

    def _asked_for(self) -> dict[int, Scale]:
        """The scales of values that tables need in pieces, found from the back."""
        found: dict[int, Scale] = {}
        for step in reversed(self.program.steps):
            if step.operation in ("pieces", "polynomial"):
                [value] = step.inputs
                nodes = step.shape[-1]
                seen = self.seen[value].reshape(-1, nodes)
                low, high = seen.min(0), seen.max(0)
                room = (ROOM - 1) / 2 * (high - low) + 1e-6 * np.maximum(1, np.abs(high))
                width = (high - low + 2 * room) / CELLS / FRACTION
                each = size_of(step.shape) // nodes
                found[value] = Scale(np.tile(width, each), np.tile(low - room, each), 0, CELLS * FRACTION - 1)
            elif step.operation == "permute" and step.output in found:
                found[step.inputs[0]] = _permuted(found[step.output], step, back=True)
        return found

    def scale(self, value: int, each: int) -> Scale:
        """The scale of what a linear map gives; its numbers are rows of `each` with steps of their own if asked for."""
        if value not in self.scales:
            seen = np.abs(self.seen[value]).max(0).reshape(-1, each).max(1) if each > 1 else None
            top = np.abs(self.seen[value]).max(0) if seen is None else np.repeat(seen, each)
            top = np.where(top > 0, top, 1.0) * ROOM / self.most
            self.scales[value] = Scale(top, np.zeros_like(top), -self.most, self.most)
        return self.scales[value]

    def map(self, step: Step, weight: np.ndarray, inner: np.ndarray, outer: Scale | None, given: Scale) -> str:
        """Keep a linear map, with the steps of its columns; returns its arrays."""
        bias = step.tensors["bias"].double().numpy() if "bias" in step.tensors else np.zeros(len(weight))
        real_weight = weight * inner
        scale = np.maximum(np.abs(real_weight).max(1) / 127, np.maximum(np.abs(bias) / 2**30, 1e-30))
        whole = np.rint(real_weight / scale[:, None]).astype(np.int64)
        arriving = max(abs(given.low), given.high)
        sums = np.abs(whole).sum(1) * arriving
        array = self.out.array(whole, "int8_t")
        if outer is None:
            self.largest = max(self.largest, float(sums.max()))
            return f"{array}, {self.out.array(scale)}, {self._added(bias)}"
        step_out, offset = outer.step, outer.offset
        by, plus = scale / step_out, (bias - offset) / step_out
        if self.rounding == "float":
            self.largest = max(self.largest, float(sums.max()))
            return f"{array}, {self.out.array(by)}, {self._added(plus)}, {outer.low}, {outer.high}"
        return f"{array}, {self._whole(by, plus, sums)}, {outer.low}, {outer.high}"

    def _whole(self, by: np.ndarray, plus: np.ndarray, sums: np.ndarray) -> str:
        shift = np.clip(30 - np.ceil(np.log2(np.maximum(by, 1e-30))), 1, 61).astype(np.int64)
        factor = np.minimum(np.rint(by * 2.0**shift), MOST).astype(np.int64)
        added = np.rint(np.clip(plus / by, -(2.0**30), 2.0**30)).astype(np.int64)
        self.largest = max(self.largest, float((sums + np.abs(added)).max()))
        arrays = (self.out.array(factor, "int32_t"), self._added(added, "int32_t"), self.out.array(shift, "int8_t"))
        return ", ".join(arrays)

    def _added(self, numbers: np.ndarray, kind: str = "float") -> str:
        """An array of what is added; none if that is nothing."""
        return self.out.array(numbers, kind) if numbers.any() else "0"

    def words(self, step: Step, last: bool) -> tuple[str, dict[str, str]]:
        """The label of a kernel of a linear map, and what stands in it."""
        arriving = self.out.type_of(step.inputs[0])
        label = f"{arriving.removesuffix('_t')}_{'float' if last else 'int16'}"
        words = {"TYPE": label, "NUMBER": arriving, "OUT": "float" if last else "int16_t"}
        if last:
            scales, finish = "const float *by, const float *plus", "by[i] * (float)sum + (plus ? plus[i] : 0.0f)"
        elif self.rounding == "float":
            scales = "const float *by, const float *plus, int16_t low, int16_t high"
            finish = "rounded(by[i] * (float)sum + (plus ? plus[i] : 0.0f), low, high)"
        else:
            scales = "const int32_t *by, const int32_t *plus, const int8_t *shift, int16_t low, int16_t high"
            finish = "scaled(sum + (plus ? plus[i] : 0), by[i], shift[i], low, high)"
        if not last:
            self.out.use(kernel(f"round_{self.rounding}"))
        return label, {**words, "SCALES": scales, "FINISH": finish}

    def _finish(self) -> None:
        """Give the outputs in floating point if the last step was no linear map."""
        step = self.program.steps[-1]
        if step.operation not in ("linear", "conv2d"):
            raise ValueError(
                f"int8 in C expects a linear map as the last step, got {step.operation}: end the network there"
            )


def _require_known(step: Step) -> None:
    plain = step.operation == "clamp" and (step.settings["low"], step.settings["high"]) == (0.0, None)
    if step.operation not in WRITE or (step.operation == "clamp" and not plain):
        raise ValueError(
            f"int8 in C knows linear maps, convolutions, sums, ReLU, pooling and flexible layers, got "
            f"{step.operation}: export in floating point"
        )


def _permuted(scale: Scale, step: Step, back: bool = False) -> Scale:
    order = list(step.settings["order"])
    shape = step.shape if back else step.shapes[0]
    order = list(np.argsort(order)) if back else order
    step_of, offset = (one.reshape(shape).transpose(order).ravel() for one in (scale.step, scale.offset))
    return Scale(step_of, offset, scale.low, scale.high)


def _alike(steps: np.ndarray, shape: tuple[int, int], axis: int) -> np.ndarray:
    """The steps of channels or of columns, which must be the same at all places."""
    table = steps.reshape(shape)
    first = table.take([0], axis)
    if not np.allclose(table, first, rtol=1e-9):
        raise ValueError("int8 in C expects equal scales at all positions: export in floating point")
    return first.ravel()


def _linear(writer: Quantised, step: Step) -> None:
    weight = step.tensors["weight"].double().numpy()
    n, m = weight.shape
    last, positions = step.output == writer.program.output, size_of(step.shape[:-1])
    given = writer.scales[step.inputs[0]]
    _require_centred(given)
    outer = None if last else writer.scale(step.output, 1)
    if outer is not None and positions > 1:
        outer = _shared(writer, step, outer, n)
    inner = _alike(given.step, (positions, m), 0)
    rows = None if outer is None else Scale(outer.step[:n], outer.offset[:n], outer.low, outer.high)
    arrays = writer.map(step, weight, inner, rows, given)
    label, words = writer.words(step, last)
    writer.out.use(kernel("linear_int8", **words))
    ends = [writer.out.place(step.inputs[0]), writer.out.place(step.output)]
    writer.out.calls += over_positions(f"linear_{label}", arrays, ends, (n, m), positions)


def _shared(writer: Quantised, step: Step, outer: Scale, n: int) -> Scale:
    """One scale for each output, the same at all positions; for all outputs, unless a table asked for others."""
    width, positions = outer.step.reshape(-1, n).max(0), len(outer.step) // n
    if not outer.offset.any():
        width = np.full_like(width, width.max())
    writer.scales[step.output] = Scale(np.tile(width, positions), outer.offset, outer.low, outer.high)
    return writer.scales[step.output]


def _require_centred(scale: Scale) -> None:
    if scale.offset.any():
        raise ValueError(
            "int8 in C expects what arrives at an activation to be used by it alone: export in floating point"
        )


def _conv2d(writer: Quantised, step: Step) -> None:
    weight, groups = step.tensors["weight"].double().numpy(), step.settings["groups"]
    channels, each, last = len(weight), size_of(step.shape[1:]), step.output == writer.program.output
    given = writer.scales[step.inputs[0]]
    _require_centred(given)
    outer = None if last else writer.scale(step.output, each)
    inner = _alike(given.step, (step.shapes[0][0], size_of(step.shapes[0][1:])), 1).reshape(groups, -1)
    columns = np.repeat(inner, channels // groups, 0)[..., None] * np.ones(weight[0, 0].size)
    rows = None
    if outer is not None:
        widths, offsets = (_alike(one, (channels, each), 1) for one in (outer.step, outer.offset))
        rows = Scale(widths, offsets, outer.low, outer.high)
    flat = weight.reshape(channels, -1)
    arrays = writer.map(step, flat, columns.reshape(channels, -1), rows, given)
    label, words = writer.words(step, last)
    writer.out.use(kernel("conv2d_int8", **words))
    values = f"{writer.out.place(step.inputs[0])}, {writer.out.place(step.output)}"
    writer.out.calls.append(f"    conv2d_{label}({arrays}, {values}, {writer.out.array(conv_sizes(step), 'int')});")


def _table(writer: Quantised, step: Step) -> None:
    scale, nodes = writer.scales[step.inputs[0]], step.shape[-1]
    low, width = scale.offset[:nodes], scale.step[:nodes] * FRACTION
    grid = torch.from_numpy(low + np.arange(CELLS + 1)[:, None] * width)
    values = copy.deepcopy(step.settings["module"]).double()(grid).numpy().T
    size = np.maximum(np.abs(values).max(1) / 127, 1e-30)
    less = 1
    while 127 * FRACTION // less > writer.most:
        less *= 2
    each = size_of(step.shape) // nodes
    highest = 127 * FRACTION // less
    writer.scales[step.output] = Scale(
        np.tile(size * less / FRACTION, each), np.zeros(size_of(step.shape)), -highest, highest
    )
    table = writer.out.array(np.rint(values / size[:, None]).astype(int), "int8_t")
    writer.out.use(kernel("table_int8"))
    ends = f"{writer.out.place(step.inputs[0])}, {writer.out.place(step.output)}"
    writer.out.calls.append(f"    table({table}, {ends}, {size_of(step.shape)}, {nodes}, {less});")


def _clamp(writer: Quantised, step: Step) -> None:
    scale = writer.scales[step.inputs[0]]
    _require_centred(scale)
    writer.scales[step.output] = Scale(scale.step, scale.offset, 0, scale.high)
    kind = writer.out.type_of(step.inputs[0])
    label = kind.removesuffix("_t")
    writer.out.use(kernel("clamp_int8", TYPE=label, NUMBER=kind))
    ends = f"{writer.out.place(step.inputs[0])}, {writer.out.place(step.output)}"
    writer.out.calls.append(f"    positive_{label}({ends}, {size_of(step.shape)});")


def _pool(writer: Quantised, step: Step) -> None:
    scale, [channels, *space] = writer.scales[step.inputs[0]], step.shapes[0]
    _require_centred(scale)
    steps = np.repeat(_alike(scale.step, (channels, size_of(tuple(space))), 1), size_of(step.shape) // channels)
    writer.scales[step.output] = Scale(steps, np.zeros_like(steps), scale.low, scale.high)
    name = step.operation if step.operation == "max_pool2d" else "avg_pool2d_int8"
    typed(writer.out, step, name, pool_sizes(step), step.operation)


def _permute(writer: Quantised, step: Step) -> None:
    if step.output not in writer.scales:
        writer.scales[step.output] = _permuted(writer.scales[step.inputs[0]], step)
    typed(writer.out, step, "permute", permute_sizes(step))


def _add(writer: Quantised, step: Step) -> None:
    channels, each = step.shape[0], size_of(step.shape[1:])
    given, outer = [writer.scales[one] for one in step.inputs], writer.scale(step.output, each)
    for one in (*given, outer):
        _require_centred(one)
    first, second, out = (_alike(one.step, (channels, each), 1) for one in (*given, outer))
    ratios = np.stack([first, second]) / out
    shift = np.clip(np.floor(14 - np.log2(ratios.max(0))), 0, 30).astype(np.int64)  # two products fit in 32 bits
    by = np.rint(ratios * 2.0**shift).astype(np.int64)
    if by.max() > 2**14:
        raise ValueError("int8 in C expects sums that are not far smaller than what is added: export in floating point")
    kinds = [writer.out.type_of(one) for one in step.inputs]
    label = "_".join(kind.removesuffix("_t") for kind in kinds)
    writer.out.use(kernel("add_int8", LABEL=label, FIRST=kinds[0], SECOND=kinds[1]))
    arrays = [*(writer.out.array(one, "int16_t") for one in by), writer.out.array(shift, "int8_t")]
    ends = [writer.out.place(one) for one in (*step.inputs, step.output)]
    numbers = map(str, (channels, each, outer.low, outer.high))
    writer.out.calls.append(f"    add_{label}({', '.join([*arrays, *ends, *numbers])});")


WRITE = {
    "linear": _linear,
    "add": _add,
    "conv2d": _conv2d,
    "pieces": _table,
    "polynomial": _table,
    "clamp": _clamp,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "permute": _permute,
}
"""How steps are written in whole numbers."""
