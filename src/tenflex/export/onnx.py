"""ONNX: standard operators, any number of samples, single precision."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tenflex.export.columns import by_columns
from tenflex.export.formats import SEEN, Format, Inputs, Session, Settings, UnavailableError, in_batches
from tenflex.export.pt2 import exported
from tenflex.nn.folded import Pace

LINEAR = ["MatMul", "Gemm", "Conv"]
"""What is quantised: tables and their indices would lose what they stand for."""


def write(network: nn.Module, inputs: Inputs, path: Path, settings: Settings) -> tuple[Path, ...]:
    """Write the model as one file.

    Raises:
        UnavailableError: if a package is missing.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    program = exported(by_columns(network), inputs)
    with quietly():
        made = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False)
    if made is None:
        raise RuntimeError("torch.onnx gave no model: please report it")
    _narrow(made.model)
    _strip(made.model)
    made.save(str(path), include_initializers=True, external_data=False)
    if settings.int8:
        _quantise(path, inputs)
    return (path,)


def _narrow(model: Any) -> None:
    """Give the look-ups of `Columns` indices of 32 bits, which PyTorch does not take: half of the memory in between."""
    import onnx_ir as ir

    for node in list(model.graph.all_nodes()):
        if node.op_type != "GatherElements":
            continue
        clip = node.inputs[1].producer()
        cast = None if clip is None or clip.op_type != "Clip" else clip.inputs[0].producer()
        if cast is None or cast.op_type != "Cast" or cast.attributes["to"].value != ir.DataType.INT64:
            continue
        cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.INT32)
        for place, bound in enumerate(clip.inputs[1:], start=1):
            numbers = bound.const_value.numpy().astype(np.int32)
            name = f"{clip.outputs[0].name}_bound{place}"
            new = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32), const_value=ir.tensor(numbers, name=name))
            new.shape = ir.Shape(numbers.shape)
            model.graph.register_initializer(new)
            clip.replace_input_with(place, new)
            if not bound.uses() and bound.name in model.graph.initializers:
                del model.graph.initializers[bound.name]
        for value in (cast.outputs[0], clip.outputs[0]):
            value.dtype = ir.DataType.INT32


def _strip(model: Any) -> None:
    """Take out where each node came from, traces of the stack that may take more room than the weights."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _quantise(path: Path, inputs: Inputs) -> None:
    """Linear maps and convolutions with int8 weights by channel, on ranges that are seen."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc, no-any-unimported, unused-ignore]
        def __init__(self) -> None:
            names = [one.name for one in _session(path).get_inputs()]
            self.rows = (
                {name: one.numpy() for name, one in zip(names, batch, strict=True)}
                for batch in in_batches(inputs, SEEN)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    settings: dict[str, Any] = {"op_types_to_quantize": LINEAR, "per_channel": True, "quant_format": QuantFormat.QDQ}
    settings |= {"extra_options": {"OpTypesToExcludeOutputQuantization": LINEAR}}  # where an index is computed from it
    settings |= {"reduce_range": True}  # weights of 7 bits: processors without VNNI add pairs of products in 16 bits
    whole = path.with_suffix(".whole.onnx")
    with quietly():
        quantize_static(
            str(path), str(whole), Rows(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **settings
        )
    whole.replace(path)


def load(path: Path) -> Session:
    """The file in onnxruntime, with as many threads as torch has."""
    _require("onnxruntime")
    session = _session(path)
    names = [one.name for one in session.get_inputs()]

    def prepare(inputs: Inputs) -> dict[str, np.ndarray]:
        return {name: one.detach().contiguous().numpy() for name, one in zip(names, inputs, strict=True)}

    def read(found: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(found[0]).reshape(len(found[0]), -1)

    return Session(prepare, lambda given: session.run(None, given), read)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _require(*names: str) -> None:
    """Raise UnavailableError if a package is missing."""
    for name in names:
        try:
            __import__(name)
        except ImportError:
            raise UnavailableError(f"{name} is not installed: pip install 'tenflex[onnx]'") from None


@contextmanager
def quietly() -> Iterator[None]:
    """What other libraries say while they convert is not for the user: the result is compared."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


FORMAT = Format("onnxruntime", write, load, pace=Pace(call=10_000.0, look_up=80.0, power=80.0))
