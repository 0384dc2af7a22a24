"""`tenflex export` and `tenflex bench`: a saved result for other runtimes, and how long it takes there."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from tenflex.cli.bars import Bars
from tenflex.cli.console import show, show_json, table_of
from tenflex.cli.errors import InputError, reading
from tenflex.cli.network import load_network
from tenflex.cli.options import DEVICE, INPUTS, MODEL, STATE, argument, command, option
from tenflex.cli.settings import Settings
from tenflex.cli.tensors import load_inputs
from tenflex.export.bench import RUNTIMES, Bench
from tenflex.export.bench import bench as measure
from tenflex.export.verb import Exported
from tenflex.export.verb import export as run
from tenflex.storage.network import load
from tenflex.surgery.batch import Batch, count_samples, take

RESULT = "A folder that `tenflex compress` wrote.", "RESULT"
RATIOS = "What is of the original compares the fastest rounds, in the same runtime; files of C count their constants."

MOST_INPUTS = 1024
"""So many inputs are compared."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """What `tenflex export` writes."""

    result: Path = argument(*RESULT)
    model: str = argument(*MODEL)
    out: Path = argument("The file to write: small.c, small.onnx, small.pte or small.pt2.", "FILE")
    weights: str | None = option(*STATE)
    inputs: str = option(*INPUTS, default=MISSING)
    int8: bool = option("Weights as whole numbers of 8 bits; in C all is.", None, None, "--int8", default=False)
    tolerance: float | None = option("The largest error of a layer's outputs, for a faster form; exact if not given.")
    batch: int = option("Samples that will run at once, for which the form is fastest; 16 if not given.", default=16)
    rounding: str | None = option("How int8 in C rounds: float, or integer alone.", "KIND")
    backend: str | None = option("The kernels of a .pte: xnnpack or portable.", "KIND")


@command(ExportSettings)
def export(settings: ExportSettings, json: bool) -> None:
    """Write a saved result for another runtime, run it there, and keep it if it gives the same.

    Example: tenflex export small shop.models:classifier small.c --weights trained.safetensors --inputs images.npy
    """
    _, smaller = _networks(settings.result, settings.model, settings.weights)
    options: dict[str, Any] = {name: getattr(settings, name) for name in ("rounding", "backend")}
    options = {name: one for name, one in options.items() if one is not None}
    inputs = _inputs(settings.inputs)
    options |= {"int8": settings.int8, "tolerance": settings.tolerance, "batch": settings.batch}
    found = run(smaller, settings.out, inputs, **options)
    if json:
        show_json(found.to_dict())
    else:
        show(_said(found, count_samples(inputs)))


def _said(found: Exported, count: int) -> str:
    same = "" if found.agreement is None else f", the same answer for {100 * found.agreement:.2f} %"
    return (
        f"Wrote {found.path} ({found.size / 1000:,.1f} kB). Run by {found.runtime} on {count:,} inputs: largest "
        f"difference {found.difference:.1e} of the largest output{same}."
    )


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Settings):
    """What `tenflex bench` measures."""

    result: Path = argument(*RESULT)
    model: str = argument(*MODEL)
    weights: str | None = option(*STATE)
    device: str | None = option(*DEVICE)
    inputs: str = option(*INPUTS, default=MISSING)
    runtimes: str = option(
        f"Those to try, with commas; {','.join(RUNTIMES)} if not given.", "NAMES", default=",".join(RUNTIMES)
    )
    batches: str = option(
        "Samples at once, with commas; 1,16,256,1024 if not given.", "NUMBERS", default="1,16,256,1024"
    )
    seconds: float = option("How long to measure each batch; 1 if not given.", default=1.0)
    memory: bool = option("Measure the peak memory too, each file in a process of its own.", default=False)
    tolerance: float | None = option("The largest error of a layer's outputs, for a faster form; exact if not given.")


@command(BenchSettings)
def bench(settings: BenchSettings, json: bool) -> None:
    """Time a saved result and the original network in all runtimes that are there, in turn."""
    original, smaller = _networks(settings.result, settings.model, settings.weights, settings.device)
    batches = [int(one) if one.strip().isdigit() else 0 for one in settings.batches.split(",")]
    if min(batches) < 1:
        raise InputError(f"expected --batches as whole numbers with commas, got {settings.batches!r}")
    names = [one.strip() for one in settings.runtimes.split(",") if one.strip()]
    with Bars(1) as bars:
        found = measure(
            original,
            smaller,
            _inputs(settings.inputs),
            runtimes=names,
            batches=batches,
            seconds=settings.seconds,
            memory=settings.memory,
            tolerance=settings.tolerance,
            on_progress=bars,
        )
    if json:
        show_json(found.to_dict())
    else:
        show(_table(found), *_remarks(found))


def _table(found: Bench) -> Table:
    """All timings, narrow enough for 80 columns: no word and no number is broken."""
    right = ("batch", "time", "spread", "a second", "memory", "file", "of\noriginal")
    table = table_of("network", "runtime", right=right)
    table.padding = (0, 0, 0, 0)
    for column in table.columns:
        column.no_wrap = True
    for one in found.timings:
        sizes = (_in_bytes(size) for size in (one.memory, one.size))
        numbers = _in_time(one.seconds), f"{100 * one.spread:.0f} %", f"{one.throughput:,.0f}"
        ratio = None if one.network == "original" else found.ratio(one)
        told = "" if ratio is None else f"{ratio:.3f}"
        table.add_row(one.network, one.runtime, f"{one.batch:,}", *numbers, *sizes, told)
    return table


def _in_time(seconds: float) -> str:
    """A time in at most nine characters, up to ten seconds."""
    microseconds = 1e6 * seconds
    if microseconds >= 10_000:
        return f"{microseconds / 1000:,.1f} ms"
    return f"{microseconds:,.1f} us" if microseconds >= 1 else f"{microseconds:.3f} us"


def _in_bytes(size: int | None) -> str:
    """A size in at most eight characters, up to a gigabyte."""
    if size is None or size < 1000:
        return "" if size is None else f"{size} B"
    return f"{size / 1000:.1f} kB" if size < 999_950 else f"{size / 1e6:,.1f} MB"


def _remarks(found: Bench) -> list[str]:
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}"
    lines = [
        f"Medians, measured in turn on this machine with {threads}; spread is the distance of the quartiles.",
        RATIOS,
    ]
    slower = [one for one in found.timings if one.runtime == "folded" and (found.ratio(one) or 0) > 1]
    lines += [f"At batch {one.batch} the compressed network is slower in PyTorch." for one in slower]
    return [*lines, *(f"{name}: {why}" for name, why in found.missing.items())]


def _networks(result: Path, model: str, weights: str | None, device: str | None = None) -> tuple[nn.Module, nn.Module]:
    original = load_network(model, weights, device)
    with reading(result):
        return original, load(result, original)


def _inputs(text: str) -> Batch:
    """The first of the inputs, as a network takes them."""
    inputs = load_inputs(text)
    try:
        found: Batch = take(inputs, slice(MOST_INPUTS))
    except (TypeError, ValueError) as error:
        raise InputError(f"--inputs: {error}") from None
    return found
