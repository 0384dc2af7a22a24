"""What the demo leaves in a folder: the table, the smallest good network, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenflex._version import __version__
from tenflex.demo.again import require_same_bits
from tenflex.demo.plot import plot_accuracy_against_size
from tenflex.demo.run import BLOCK, GOOD_AGREEMENT, Attempt, markdown_table, smallest_good
from tenflex.reading.figures import PlotsUnavailableError
from tenflex.reading.plot_activations import plot_activations
from tenflex.reading.plot_convergence import plot_convergence
from tenflex.storage.files import beside, is_own, write_json

TABLE, MARKDOWN, MODEL = "table.json", "table.md", "model"


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        folder: Where.
        table: All numbers, as in `table.json`.
        chosen: The network that was saved, loaded in a new process, and found to give the same bits.
        plots: The figures.
        no_plots: Why there are none; None if there are.
    """

    folder: Path
    table: dict[str, Any]
    chosen: Attempt
    plots: tuple[Path, ...]
    no_plots: str | None


def require_demo_folder(folder: Path) -> None:
    """Raise ValueError unless `folder` is new, empty, or holds an earlier demo: no other files are ever overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder for the demo to write to")
    if folder.exists() and any(folder.iterdir()) and not is_own(folder / TABLE):
        raise ValueError(f"{folder} holds other files than an earlier demo: choose a new or empty folder")


def write_demo(
    folder: Path, attempts: Sequence[Attempt], images: Tensor, seed: int, least_agreement: float = GOOD_AGREEMENT
) -> Written:
    """Write the table, the smallest good network and the plots, and load the network again in a new process.

    Args:
        folder: Made if it is not there.
        attempts: What `compress_sizes` gave.
        images: Where the activation functions are drawn: images of the network's input.
        seed: That of the attempts.
        least_agreement: When a network is good.

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
    write_json(folder / TABLE, table)
    with beside(folder / MARKDOWN) as path:
        path.write_text(markdown_table(rows), encoding="utf-8")
    chosen.compression.save(folder / MODEL)
    require_same_bits(chosen.compression.model, folder / MODEL)
    solution = chosen.compression.solutions[BLOCK]
    accuracy, activations, convergence = (folder / f"{name}.png" for name in ("accuracy", "activations", "convergence"))
    for old in (accuracy, activations, convergence):  # of other numbers than the table's, if no new ones can be drawn
        old.unlink(missing_ok=True)
    try:
        plot_accuracy_against_size(rows, accuracy)
        plot_activations(solution.factors, activations, images)
        plot_convergence(solution.history, convergence, f"Convergence: {sum(solution.factors.ranks)} nodes")
    except PlotsUnavailableError as missing:
        return Written(folder, table, chosen, (), str(missing))
    return Written(folder, table, chosen, (accuracy, activations, convergence), None)


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
