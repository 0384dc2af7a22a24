"""`tenflex decouple`: write a map as univariate functions between two linear maps, show them, and save the result."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table

from tenflex import distributed
from tenflex.cli.bars import Bars
from tenflex.cli.blocks import format_rank
from tenflex.cli.console import finite, note, show, show_json, table_of
from tenflex.cli.decouple_settings import POINTS, TOLERANCE, DecoupleSettings
from tenflex.cli.folders import require_writable
from tenflex.cli.options import command
from tenflex.cli.readers import AUTO
from tenflex.cli.settings import write_settings
from tenflex.cli.solver_names import DEFAULT, STARTS, derivatives_of, solver_for
from tenflex.cli.sources import Source, load_source
from tenflex.decouple import decouple as run
from tenflex.described import MOST_NODES, Described
from tenflex.problem import Problem
from tenflex.progress import OnProgress, Progress
from tenflex.rank import RankPath, choose_rank
from tenflex.result import Result
from tenflex.solution import Solution
from tenflex.solvers import Solver
from tenflex.storage.files import SETTINGS, beside, require_own_folder, write_json

SOLUTION, DESCRIPTION, FORMULAS, PLOT = "solution.safetensors", "solution.json", "formulas.txt", "nodes.png"
"""The files of a result."""

CHECKPOINT = ".checkpoint.part"
"""What several processes keep of a run that is not done; a leftover, so that a folder of nothing else is new."""


@command(
    DecoupleSettings,
    config="a map or a solver that is given replaces that of the file with all that belongs to it.",
)
def decouple(settings: DecoupleSettings, json: bool) -> None:
    """Find f(x) = W g(V^T x) + b with a univariate function for every node, and say whether it is unique.

    Example: tenflex decouple --polynomial "a^3 + 3*a*b^2; a^2*b + b^3/3" --out found
    """
    if settings.out is not None:
        require_own_folder(Path(settings.out), SOLUTION, DESCRIPTION)
        require_writable(Path(settings.out))
    found = _decouple(settings)
    if settings.out is not None and distributed.is_first():
        _save(found, Path(settings.out))
    _show(found, json)


@dataclass(frozen=True)
class Found:
    """What a run gave.

    Args:
        settings: The settings that were carried out.
        source: The samples and their names.
        described: The solution with names.
        path: The solutions of all ranks that were tried; None when the rank was given.
    """

    settings: DecoupleSettings
    source: Source
    described: Described
    path: RankPath | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = {**self.described.to_dict(), "estimated_derivatives": self.source.estimated}
        if self.path is None:
            return found
        steps = [
            {"rank": one.rank, "held_out_error": one.error, "parameters": one.parameters, "seconds": one.seconds}
            for one in self.path.steps
        ]
        return {**found, "ranks": steps, "ranks_ended": self.path.end.name}


def _decouple(settings: DecoupleSettings) -> Found:
    """Sample, and solve under a progress bar."""
    source = distributed.agreed(lambda: load_source(settings, derivatives_of(settings.solver)))
    settings = resolved(settings, source)
    rank: Any = 1 if settings.rank == AUTO else settings.rank  # where the search begins, or what was asked for
    basis = settings.basis or source.basis
    problem = Problem(source.samples, rank, basis, settings.coupling, held_out=settings.held_out)
    with Bars(1) as bars:
        path, solution = _solve(problem, settings, bars)
    return Found(settings, source, Described.of(solution, source.inputs, source.outputs), path)


def resolved(settings: DecoupleSettings, source: Source) -> DecoupleSettings:
    """The settings with what was left open."""
    drawn = settings.table is None and settings.inputs is None
    return replace(
        settings,
        variables=None if settings.table is not None else source.inputs,
        inputs_columns=source.inputs if _has_columns(settings) else None,
        outputs_columns=source.outputs if _has_columns(settings) else None,
        points=settings.points or POINTS if drawn else None,
        low=(settings.low or (-1.0,)) if drawn and not settings.normal else None,
        high=(settings.high or (1.0,)) if drawn and not settings.normal else None,
        basis=settings.basis or source.basis,
        tolerance=(TOLERANCE if settings.tolerance is None else settings.tolerance) if settings.rank == AUTO else None,
        starts=settings.starts if settings.solver == DEFAULT else settings.starts or STARTS,
        refine=None if settings.solver == DEFAULT else settings.refine is not False,
    )


def _has_columns(settings: DecoupleSettings) -> bool:
    return settings.table is not None and Path(settings.table).suffix.lower() != ".npz"


def _solve(problem: Problem, settings: DecoupleSettings, report: OnProgress) -> tuple[RankPath | None, Solution]:
    """The solution, and those of all ranks when the rank is to be found."""

    def solver(one: Problem) -> Solver | None:
        return solver_for(one, settings.solver, settings.starts, settings.refine is not False)

    if settings.rank == AUTO:
        path = choose_rank(
            problem, tolerance=settings.tolerance or 0.0, solver=solver, seed=settings.seed, on_progress=report
        )
        return path, path.solution

    def tell(progress: Progress) -> None:
        report(replace(progress, task=f"rank {format_rank(settings.rank)}"))

    if not distributed.launched():
        return None, run(problem, solver(problem), seed=settings.seed, on_progress=tell)
    kept = None if settings.out is None else Path(settings.out) / CHECKPOINT
    resume = bool(settings.resume)
    solution = distributed.divide(
        problem, solver(problem), seed=settings.seed, checkpoint=kept, resume=resume, on_progress=tell
    )
    return None, solution


def _save(found: Found, folder: Path) -> None:
    """The solution, and beside it what it says in words and pictures, and the settings; each file as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    found.described.solution.save(folder / SOLUTION)
    write_json(folder / DESCRIPTION, finite(found.to_dict()))
    with beside(folder / FORMULAS) as temporary:
        temporary.write_text(found.described.text(), encoding="utf-8")
    _save_plot(found.described.solution, folder / PLOT)
    write_settings(folder / SETTINGS, found.settings.to_dict())
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _save_plot(solution: Solution, path: Path) -> None:
    """The plot of the nodes, where matplotlib is installed; an earlier one never stays beside another solution."""
    with tempfile.TemporaryDirectory() as elsewhere:
        drawn = Path(elsewhere) / path.name
        try:
            solution.plot(drawn)
        except ImportError as error:
            path.unlink(missing_ok=True)
            note(f"The plot was skipped: {error}")
            return
        with beside(path) as temporary:
            shutil.copyfile(drawn, temporary)


def tables(described: Described) -> Iterator[Table]:
    """A table of the nodes of every layer, the last one first; those are trusted that are known to one digit."""
    verdict = described.verdict
    for layer in reversed(described.layers()):
        table = table_of()
        table.add_column("node", no_wrap=True)
        table.add_column("size", justify="right", no_wrap=True)
        for name in ("argument t", "activation", "acts on"):
            table.add_column(name, overflow="fold")
        if verdict is not None:
            table.add_column("trusted", no_wrap=True)
        for k in layer.nodes.order[:MOST_NODES]:
            trusted = () if verdict is None else ("yes" if k in verdict.trusted_nodes else "no",)
            table.add_row(*layer.row(k), *trusted)
        if len(layer.names) > MOST_NODES:
            table.add_row(f"and {len(layer.names) - MOST_NODES} smaller ones", "", "", "", "")
        yield table


def _show(found: Found, json: bool) -> None:
    described, folder = found.described, found.settings.out
    if described.solution.result in (Result.DIVERGED, Result.SINGULAR):
        note(described.solution.result.value)
    if json:
        show_json({"out": folder, "settings": found.settings.to_dict(), "solution": found.to_dict()})
        return
    if found.path is not None:
        show(str(found.path), "")
    for table in tables(described):
        show(table, "")
    advice, reasons = described.judgement()
    show(*described.remarks(), "", advice, *(Padding(one, (0, 0, 0, 2)) for one in reasons), *_remarks(found))


def _remarks(found: Found) -> Iterator[str]:
    if found.source.estimated:
        yield ""
        yield "The derivatives were estimated from the table, so errors of Jacobians include those of the estimate."
    yield ""
    yield "size: the node's share in the outputs, relative to all of them together; nodes may work against each other."
    if found.settings.out is None:
        yield "Nothing was saved: give --out FOLDER to keep the solution."
        return
    folder = Path(found.settings.out)
    files = ", ".join(one.name for one in sorted(folder.iterdir()))
    yield f"Saved in {folder}: {files}. In Python: tenflex.load_solution({str(folder / SOLUTION)!r})"
