"""`tenflex evaluate`: what a saved result is worth, beside the original."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tenflex.cli.bars import Bars
from tenflex.cli.console import show, show_json, table_of
from tenflex.cli.errors import InputError, reading, together
from tenflex.cli.network import load_network
from tenflex.cli.options import DEVICE, INPUTS, MODEL, STATE, argument, command, option
from tenflex.cli.settings import Settings
from tenflex.cli.tensors import load_inputs, load_labels
from tenflex.evaluate.comparison import Comparison, compare_networks
from tenflex.evaluate.cost import describe_kept
from tenflex.evaluate.latency import Latency
from tenflex.storage.network import load, read_mask, require_same_weights

COSTS = {"parameters": "parameters", "MACs": "macs", "activation operations": "activation_operations"}
"""What costs are called, and their names in `Cost`."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Settings):
    """What `tenflex evaluate` compares."""

    result: Path = argument("A folder that `tenflex compress` wrote.", "RESULT")
    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    device: str | None = option(*DEVICE)
    inputs: str | None = option(*INPUTS)
    labels: str | None = option("The classes of the inputs, for the accuracy; as --inputs.", "FILE")


@command(EvaluateSettings)
def evaluate(settings: EvaluateSettings, json: bool) -> None:
    """Compare a saved result with the original network: errors, accuracy, cost, and measured time."""
    if settings.inputs is None:
        raise InputError("--inputs is missing: name the inputs on which to compare the two networks")
    inputs_text, labels_text = settings.inputs, settings.labels
    original, inputs, labels = together(
        lambda: load_network(settings.model, settings.weights, settings.device),
        lambda: load_inputs(inputs_text),
        lambda: None if labels_text is None else load_labels(labels_text),
    )
    with reading(settings.result):
        smaller = load(settings.result, original)
        require_same_weights(settings.result, original)
        mask = read_mask(settings.result)
    with Bars(1) as bars:
        found = compare_networks(original, smaller, inputs, labels, bars, mask=mask)
    if json:
        show_json(found.to_dict())
    else:
        show(_table(found), *_remarks(found))


def _table(found: Comparison) -> Table:
    table = table_of(f"{found.samples:,} inputs", right=("original", "compressed", ""))
    for name, attribute in COSTS.items():
        before, after = getattr(found.before, attribute), getattr(found.after, attribute)
        table.add_row(name, f"{before:,}", f"{after:,}", _change(before, after))
    close = found.fidelity
    if found.accuracy is not None and close.accuracy is not None:
        lost = f"{100 * (close.accuracy - found.accuracy):+.2f} points"
        table.add_row("accuracy", f"{100 * found.accuracy:.2f} %", f"{100 * close.accuracy:.2f} %", lost)
    for name, value in close.rows().items():
        if name != "accuracy":
            table.add_row(name, "", value)
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


def _remarks(found: Comparison) -> list[str]:
    threads = found.latencies[0].threads
    remarks = [f"Times are medians, measured in turn on this machine with {threads} thread{'s' * (threads > 1)}."]
    at = {slower: [f"{one.samples}" for one in found.latencies if one.slower == slower] for slower in (False, True)}
    if at[False]:
        remarks.append(f"At batch {' and '.join(at[False])} the compressed network is faster here.")
    if at[True]:
        remarks.append(
            f"At batch {' and '.join(at[True])} the compressed network is smaller but slower here: its layers are too "
            f"small to make up for the time of more calls and of the activation functions. `tenflex bench` times its "
            f"folded form and other runtimes."
        )
    return remarks
