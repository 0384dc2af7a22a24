"""What the demo leaves in a folder: the table, the smallest good network, the same in C, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenflex._version import __version__
from tenflex.demo.again import require_same_bits
from tenflex.demo.networks import LeNet300
from tenflex.demo.plot import plot_accuracy_against_size
from tenflex.demo.run import BLOCK, GOOD_AGREEMENT, Attempt, Row, Within, markdown_table, smallest_good
from tenflex.export.verb import Exported, export
from tenflex.reading.figures import PlotsUnavailableError
from tenflex.reading.plot_activations import plot_activations
from tenflex.reading.plot_convergence import plot_convergence
from tenflex.storage.files import beside, is_own, write_json

TABLE, MARKDOWN, MODEL, SOURCE = "table.json", "table.md", "model", "small.c"

MOST_COMPARED = 256
"""So many images are given to the program in C too."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        folder: Where.
        table: All numbers, as in `table.json`.
        chosen: The network that was saved, loaded in a new process, and found to give the same bits.
        plots: The figures.
        no_plots: Why there are none; None if there are.
        exported: The chosen network in C; None if it could not be made.
        no_export: Why not.
    """

    folder: Path
    table: dict[str, Any]
    chosen: Attempt
    plots: tuple[Path, ...]
    no_plots: str | None
    exported: Exported | None
    no_export: str | None


def require_demo_folder(folder: Path) -> None:
    """Raise ValueError unless `folder` is new, empty, or holds an earlier demo: no other files are ever overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder for the demo to write to")
    if folder.exists() and any(folder.iterdir()) and not is_own(folder / TABLE):
        raise ValueError(f"{folder} holds other files than an earlier demo: choose a new or empty folder")


def write_demo(
    folder: Path,
    attempts: Sequence[Attempt],
    images: Tensor,
    seed: int,
    least_agreement: float = GOOD_AGREEMENT,
    within: Within | None = None,
) -> Written:
    """Write the table, the smallest good network and the plots, and load the network again in a new process.

    Args:
        folder: Made if it is not there.
        attempts: What `compress_sizes` gave.
        images: Where the activation functions are drawn: images of the network's input.
        seed: That of the attempts.
        least_agreement: When a network is good.
        within: What a budget chose, for the table.

    Raises:
        OSError: if the folder cannot be written.
        RuntimeError: if the saved network gives other outputs in the new process.
        ValueError: if the folder holds other files.
    """
    require_demo_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [one.row for one in attempts]
    chosen = smallest_good(attempts, least_agreement)
    table = _table(attempts, chosen, seed, least_agreement)
    table |= {} if within is None else {"within": within.to_dict()}
    write_json(folder / TABLE, table)
    with beside(folder / MARKDOWN) as path:
        path.write_text(markdown_table(rows), encoding="utf-8")
    chosen.compression.save(folder / MODEL, made_by=LeNet300)
    require_same_bits(chosen.compression.model, folder / MODEL)
    exported, no_export = _exported(chosen, folder / SOURCE, images[:MOST_COMPARED])
    plots, no_plots = _plots(rows, chosen, folder, images)
    return Written(folder, table, chosen, plots, no_plots, exported, no_export)


def _exported(chosen: Attempt, path: Path, images: Tensor) -> tuple[Exported | None, str | None]:
    """The network in C, compiled and compared, where there is a compiler."""
    for old in (path, path.with_suffix(".h")):  # of another network, if no new one can be made
        old.unlink(missing_ok=True)
    try:
        return export(chosen.compression, path, images), None
    except ImportError as missing:
        return None, str(missing)


def _plots(rows: Sequence[Row], chosen: Attempt, folder: Path, images: Tensor) -> tuple[tuple[Path, ...], str | None]:
    """The figures, where matplotlib is installed."""
    solution = chosen.compression.solutions[BLOCK]
    accuracy, activations, convergence = (folder / f"{name}.png" for name in ("accuracy", "activations", "convergence"))
    for old in (accuracy, activations, convergence):  # of other numbers than the table's, if no new ones can be drawn
        old.unlink(missing_ok=True)
    try:
        plot_accuracy_against_size(rows, accuracy)
        plot_activations(solution.factors, activations, images)
        plot_convergence(solution.history, convergence, f"Convergence: {sum(solution.factors.ranks)} nodes")
    except PlotsUnavailableError as missing:
        return (), str(missing)
    return (accuracy, activations, convergence), None


def _table(attempts: Sequence[Attempt], chosen: Attempt, seed: int, least_agreement: float) -> dict[str, Any]:
    """All numbers of the demo, with what is needed to get them again."""
    return {
        "network": "LeNet-300-100",
        "block": BLOCK,
        "seed": seed,
        "versions": {"tenflex": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "least_agreement": least_agreement,
        "chosen": attempts.index(chosen),
        "rows": [one.row.to_dict() for one in attempts],
    }
