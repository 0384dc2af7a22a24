"""`.pt2`: a program of torch.export, for Python without the training code and for AOTInductor."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from tenflex.export.formats import Format, Inputs, Session, Settings

SHOWN, SHOWN_FOR_BOUNDS = 2, 32
"""Samples that a graph is read with: one is taken for a constant, and less than 16 for a bound where that is asked."""


def write(network: nn.Module, inputs: Inputs, path: Path, settings: Settings) -> tuple[Path, ...]:
    """Write the graph, for any number of samples.

    Raises:
        ValueError: if int8 is asked for.
    """
    if settings.int8:
        raise ValueError("int8 is there for .c, .onnx and .pte: choose one of them")
    torch.export.save(exported(network, inputs), path)
    return (path,)


def exported(network: nn.Module, inputs: Inputs, most: int | None = None) -> torch.export.ExportedProgram:
    """The graph for batches of any size, or of at most `most`; samples first."""
    return graph_of(network.eval(), inputs, most)


def graph_of(network: nn.Module, inputs: Inputs, most: int | None = None) -> torch.export.ExportedProgram:
    """The graph of a module that may have no train and eval mode."""
    few = some_of(inputs, SHOWN if most is None else SHOWN_FOR_BOUNDS)
    batch = torch.export.Dim("batch", min=1, max=most)
    sizes = tuple({0: batch} if len(one) == len(inputs[0]) else None for one in inputs)  # others are shared by samples
    with one_graph():
        return torch.export.export(network, few, dynamic_shapes=sizes, strict=False)


@contextmanager
def one_graph() -> Iterator[None]:
    """What torch.export cannot read as one graph is told in a line.

    Raises:
        ValueError: if it cannot.
    """
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # the graph until there
            yield
    except RuntimeError as error:
        found = " ".join(str(error).splitlines()[0].split())
        raise ValueError(
            f"torch.export cannot read the network as one graph: {found} Where the way through it depends on numbers "
            f"or on how many samples there are (as in `if x.sum() > 0`), use torch.where, or export the part without it"
        ) from error


def some_of(inputs: Inputs, count: int) -> Inputs:
    """So many samples, without the memory of the others: the file keeps them. What all samples share stays as it is."""
    size = len(inputs[0])
    return tuple(
        one[torch.arange(count, device=one.device) % size] if len(one) == size else one.clone() for one in inputs
    )


def load(path: Path) -> Session:
    """The graph as a module of torch."""
    module = torch.export.load(path).module()

    def call(inputs: Inputs) -> torch.Tensor:
        with torch.inference_mode():
            outputs: torch.Tensor = module(*inputs)
        return outputs

    return Session(lambda inputs: inputs, call, lambda outputs: outputs.reshape(len(outputs), -1))


FORMAT = Format("torch.export", write, load, single=False)
