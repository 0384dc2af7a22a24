"""ExecuTorch: `.pte` files for phones and microcontrollers, with the kernels of XNNPACK or portable ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.export.formats import SEEN, Format, Inputs, Session, Settings, UnavailableError, in_batches
from tenflex.export.increments import by_increments
from tenflex.export.onnx import quietly
from tenflex.export.pt2 import exported, graph_of
from tenflex.nn.folded import Pace

BACKENDS = ("xnnpack", "portable")

MOST_SAMPLES = 1024
"""Memory is planned for at most so many samples at once."""


def write(network: nn.Module, inputs: Inputs, path: Path, settings: Settings) -> tuple[Path, ...]:
    """Write the program.

    Raises:
        UnavailableError: if ExecuTorch is missing.
        ValueError: if the backend is unknown.
    """
    backend = settings.options.get("backend", "xnnpack")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if settings.int8 and backend != "xnnpack":
        raise ValueError("int8 in .pte needs the kernels of XNNPACK, got backend='portable'")
    _require()
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    with quietly():
        # what is left to XNNPACK is one program of its own; in int8 it would quantise sums of increments
        whole = by_increments(network) if backend == "xnnpack" and not settings.int8 else network
        program = exported(whole, inputs, MOST_SAMPLES)
        if settings.int8:
            program = _quantised(program, inputs)
        config = EdgeCompileConfig(_check_ir_validity=False)
        lowered = to_edge_transform_and_lower(program, partitioner=_partitioners(backend), compile_config=config)
        planned = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
        path.write_bytes(lowered.to_executorch(planned).buffer)
    return (path,)


def _partitioners(backend: str) -> list[Any]:
    if backend == "portable":
        return []
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


def _quantised(program: torch.export.ExportedProgram, inputs: Inputs) -> torch.export.ExportedProgram:
    """Linear maps and convolutions in whole numbers, on ranges that are seen."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer, config = XNNPACKQuantizer(), get_symmetric_quantization_config(is_per_channel=True)
    for one in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
        quantizer.set_operator_type(one, config)
    prepared = prepare_pt2e(program.module(), quantizer)
    for batch in in_batches(inputs, SEEN):
        prepared(*batch)
    return graph_of(convert_pt2e(prepared), inputs, MOST_SAMPLES)


def load(path: Path) -> Session:
    """The file in the runtime of ExecuTorch, with as many threads as torch has."""
    _require()
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():  # one pool for all that it runs
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    runtime, data = Runtime.get(), path.read_bytes()
    program = runtime.load_program(data)
    loaded = Loaded(program.load_method("forward")._method, (runtime, data, program))
    return Session(_batches, loaded.run, loaded.read)


def _batches(inputs: Inputs) -> list[Inputs]:
    """Batches that fit in the planned memory."""
    return in_batches(tuple(one.contiguous() for one in inputs), MOST_SAMPLES)


@dataclass(eq=False)
class Loaded:
    """A method that reads its inputs where they lie: they are given to it once, and it may then run many times.

    Args:
        method: Uses the memory of all that it was loaded from, and keeps none of it alive.
        held: That.
    """

    method: Any
    held: tuple[Any, ...]
    given: Inputs | None = None

    def run(self, batches: list[Inputs]) -> list[Tensor]:
        """Compute; what came before the last batch is read already."""
        if len(batches) == 1 and self.given is batches[0]:
            self.method.execute()
            return []
        found: list[Tensor] = []
        for one in batches:
            found = [] if one is batches[0] else [*found, self.method.get_outputs()[0]]
            if self.given is not one:
                self.method.set_inputs(list(one))
                self.given = one
            self.method.execute()
        return found

    def read(self, before: list[Tensor]) -> Tensor:
        """The outputs of all batches."""
        return torch.cat([one.reshape(len(one), -1) for one in (*before, self.method.get_outputs()[0])])


def _require() -> None:
    try:
        import executorch.exir  # noqa: F401
    except ImportError:
        raise UnavailableError("executorch is not installed: pip install 'tenflex[executorch]'") from None


FORMAT = Format("ExecuTorch", write, load, ("backend",), Pace(call=5_000.0))
