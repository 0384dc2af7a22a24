"""`tenflex demo`: the whole job on the shipped network and digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from tenflex.cli.bars import Bars
from tenflex.cli.blocks import format_block
from tenflex.cli.console import note, show, show_json, table_of, width
from tenflex.cli.folders import require_writable
from tenflex.cli.options import argument, command, option
from tenflex.cli.settings import Settings
from tenflex.demo.digits import load_digits
from tenflex.demo.files import MARKDOWN, MODEL, SOURCE, TABLE, Written, require_demo_folder, write_demo
from tenflex.demo.networks import lenet300
from tenflex.demo.run import GOOD_AGREEMENT, SIZES, Row, Within, compress_sizes, compress_within
from tenflex.evaluate.cost import describe_factor, describe_kept
from tenflex.export.verb import Exported

WIDE = 90
"""Columns of a terminal in which the whole table fits."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """What `tenflex demo` is asked for."""

    folder: Path = argument(
        "Where to write: a new or empty folder, or an earlier demo.", "FOLDER", default=Path("tenflex-demo")
    )
    seed: int = option("The seed of all random choices.", default=0, min=0)


@command(DemoSettings)
def demo(settings: DemoSettings, json: bool) -> None:
    """Compress the shipped LeNet-300-100 from unlabelled digits, and show what is lost.

    No labels and no fine-tuning: at several sizes, and within a budget. The smallest good network is saved, loaded
    again in a new process and checked, and written in C.
    """
    folder = settings.folder
    require_demo_folder(folder)
    require_writable(folder)
    digits = load_digits()
    with Bars(len(SIZES), "sizes") as bars:
        attempts = compress_sizes(lenet300(), digits, SIZES, seed=settings.seed, on_progress=bars)
    with Bars(1) as bars:
        within = compress_within(lenet300(), digits, seed=settings.seed, on_progress=bars)
    written = write_demo(folder, attempts, digits.test_images, settings.seed, within=within)
    for what, missing in (("plots were", written.no_plots), ("export to C was", written.no_export)):
        if missing:
            note(f"The {what} skipped: {missing}")
    if json:
        exported = None if written.exported is None else written.exported.to_dict()
        plots = [path.name for path in written.plots]
        show_json({"folder": str(folder), **written.table, "plots": plots, "exported": exported})
    else:
        show("LeNet-300-100: its three layers become one flexible layer, without labels and fine-tuning.", "")
        show(_table([one.row for one in attempts], width()), "", *_remarks(written, within))


def _table(rows: Sequence[Row], width: int) -> Table:
    """The sizes, below the original network; in a narrow terminal without the share kept in percent."""
    names = ("images", "r, q", "stored\nnumbers", "kept", "test\naccuracy", "drop", "output\nerror", "time")
    table = table_of(right=(*names, "SVD:\naccuracy", "output\nerror"))
    original = rows[0].original
    table.add_row("before", "", f"{original.parameters:,}", "", f"{100 * original.accuracy:.2f} %")
    for row in rows:
        table.add_row(*_cells(row, width >= WIDE))
    return table


def _cells(row: Row, wide: bool) -> tuple[str, ...]:
    block, before, after = row.size.block, row.original.parameters, row.ours.parameters
    kept = describe_kept(before, after).replace(" kept", "") if wide else f"{describe_factor(before / after)}x"
    return (
        f"{row.size.images:,}",
        f"{block.rank}, {block.factor or '-'}",
        f"{after:,}",
        kept,
        f"{100 * row.ours.accuracy:.2f} %",
        f"{row.drop(row.ours):.2f}",
        f"{row.ours.relative_error:.3f}",
        f"{row.seconds:.1f} s",
        f"{100 * row.svd.accuracy:.2f} %",
        f"{row.svd.relative_error:.3f}",
    )


def _remarks(written: Written, within: Within) -> list[str]:
    row = written.chosen.row
    found = " ".join(format_block(*one) for one in within.compression.plan.blocks.items())
    good = row.agreement >= GOOD_AGREEMENT
    which = (
        "The smallest good network"
        if good
        else f"No network is good (asked: {100 * GOOD_AGREEMENT:.0f} %); the nearest"
    )
    factor = describe_factor(row.original.parameters / row.ours.parameters)
    files = [f"{MODEL}/", TABLE, MARKDOWN, *(path.name for path in written.plots)]
    files += [] if written.exported is None else [SOURCE, "small.h"]
    return [
        "images: how many unlabelled images it was computed from. r, q: nodes, width of the factored V. drop: points "
        "of accuracy. output error: relative to the spread of the original's outputs. SVD: data-aware SVD of each "
        "layer, with as many stored numbers and the same images.",
        "",
        f"Or say what it may store, and measured curves choose: budget={within.budget!r} from "
        f"{within.images} images gave {found} in {within.compression.report.seconds:.0f} s, which keeps "
        f"{within.score.parameters:,} numbers and has an accuracy of {100 * within.score.accuracy:.2f} %.",
        "",
        f"{which}: {row.size}, {factor}x smaller. It decides as the original on {100 * row.agreement:.1f} % of "
        f"training images that it was not computed from (good: {100 * GOOD_AGREEMENT:.0f} %).",
        "Saved, loaded in a new process, and checked: the same bits.",
        *([] if written.exported is None else [_in_c(written.exported)]),
        f"Written to {written.folder}: {', '.join(files)}",
    ]


def _in_c(exported: Exported) -> str:
    return (
        f"In C it takes {exported.size / 1000:,.0f} kB of source and no library, and gives the same outputs, within "
        f"{exported.difference:.0e} of the largest."
    )
