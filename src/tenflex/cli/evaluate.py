"""`tenflex evaluate`: what a saved result is worth, beside the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.table import Table
from torch import Tensor, nn

from tenflex.cli.console import show, show_json
from tenflex.cli.errors import InputError, clean_errors, reading
from tenflex.cli.network import load_network
from tenflex.cli.options import Debug, Inputs, Json, Model, Weights
from tenflex.cli.tensors import load_inputs, load_labels
from tenflex.evaluate.cost import Cost, cost, describe_kept
from tenflex.evaluate.fidelity import Fidelity, accuracy, fidelity, predict
from tenflex.evaluate.latency import Latency, latency
from tenflex.sampling.checks import gather
from tenflex.storage.network import load

BATCH = 256
"""Samples of the larger batch that is timed; the smaller one is a single sample."""

COSTS = {"parameters": "parameters", "MACs": "macs", "activation operations": "activation_operations"}
"""What costs are called, and their names in `Cost`."""


@dataclass(frozen=True)
class Evaluation:
    """Two networks on the same inputs.

    Args:
        samples: How many inputs.
        before: What the original costs for one of them.
        after: What the compressed network costs.
        fidelity: How close the compressed network stays, with its accuracy.
        accuracy: That of the original; None without labels.
        latencies: The time for one sample, and for a batch.
    """

    samples: int
    before: Cost
    after: Cost
    fidelity: Fidelity
    accuracy: float | None
    latencies: tuple[Latency, ...]


def evaluate(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="A folder that `tenflex compress` wrote.")],
    model: Model,
    weights: Weights = None,
    inputs: Inputs = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The classes of the inputs, for the accuracy; as --inputs.", show_default=False
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a saved result with the original network: errors, accuracy, cost, and measured time."""
    with clean_errors(debug):
        if inputs is None:
            raise InputError("--inputs is missing: name the inputs on which to compare the two networks")
        original = load_network(model, weights)
        with reading(result):
            smaller = load(result, original)
        batch = _tensor(load_inputs(inputs, original))
        found = compare(original, smaller, batch, None if labels is None else load_labels(labels))
        if json:
            show_json(_to_dict(found))
        else:
            show(_table(found), *_remarks(found))


def compare(original: nn.Module, smaller: nn.Module, inputs: Tensor, labels: Tensor | None) -> Evaluation:
    """Measure all there is to measure.

    Raises:
        TypeError: if inputs, outputs or labels are no tensors of the right kind.
        ValueError: if they do not fit each other.
    """
    outputs = predict(original, inputs)
    return Evaluation(
        samples=len(inputs),
        before=cost(original, inputs),
        after=cost(smaller, inputs),
        fidelity=fidelity(smaller, outputs, inputs, labels),
        accuracy=None if labels is None else accuracy(outputs, labels),
        latencies=tuple(latency(original, smaller, inputs[:size]) for size in sorted({1, min(BATCH, len(inputs))})),
    )


def _tensor(inputs: Any) -> Tensor:
    """All inputs as one tensor; those of a factory may be an iterable of batches."""
    if isinstance(inputs, Tensor):
        return inputs
    batches = gather(inputs, samples=2**31)
    if not all(isinstance(one, Tensor) for one in batches):
        raise InputError(
            "expected inputs of one tensor, got a mapping: evaluate such networks in Python, with tenflex.load"
        )
    return torch.cat([one for one in batches if isinstance(one, Tensor)])


def _table(found: Evaluation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(f"{found.samples:,} inputs")
    for name in ("original", "compressed", ""):
        table.add_column(name, justify="right")
    for name, attribute in COSTS.items():
        before, after = getattr(found.before, attribute), getattr(found.after, attribute)
        table.add_row(name, f"{before:,}", f"{after:,}", _change(before, after))
    close = found.fidelity
    if found.accuracy is not None and close.accuracy is not None:
        lost = f"{100 * (close.accuracy - found.accuracy):+.2f} points"
        table.add_row("accuracy", f"{100 * found.accuracy:.2f} %", f"{100 * close.accuracy:.2f} %", lost)
    if close.agreement is not None:
        table.add_row("same decision as the original", "", f"{100 * close.agreement:.2f} %")
    table.add_row("relative output error", "", f"{close.relative_error:.3f}")
    for one in found.latencies:
        times = f"{1e3 * one.before:.3f} ms", f"{1e3 * one.after:.3f} ms"
        table.add_row(f"time for {one.samples} sample{'s' * (one.samples > 1)}", *times, _speed(one))
    return table


def _change(before: int, after: int) -> str:
    if after > before:
        return f"{after / before:.1f}x as many" if before else ""
    return describe_kept(before, after) if before else ""


def _speed(one: Latency) -> str:
    ratio = one.after / one.before if one.slower else one.before / one.after
    return f"{ratio:.1f}x {'SLOWER' if one.slower else 'faster'}"


def _remarks(found: Evaluation) -> list[str]:
    threads = found.latencies[0].threads
    remarks = [f"Times are medians, measured in turn on this machine with {threads} thread{'s' * (threads > 1)}."]
    if any(one.slower for one in found.latencies):
        remarks.append(
            "The compressed network is smaller but slower here: its layers are too small to make up for the time of "
            "more calls and of the activation functions."
        )
    return remarks


def _to_dict(found: Evaluation) -> dict[str, Any]:
    latencies = [{**asdict(one), "slower": one.slower} for one in found.latencies]
    return {**asdict(found), "latencies": latencies}
