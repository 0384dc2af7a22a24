"""`tenflex decouple`: write a map as univariate functions between two linear maps, show them, and save the result."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.padding import Padding

from tenflex.cli.bars import Bars
from tenflex.cli.console import finite, note, show, show_json
from tenflex.cli.decouple_settings import AUTO, POINTS, TOLERANCE, DecoupleSettings, format_rank, merge
from tenflex.cli.described import Described
from tenflex.cli.errors import clean_errors
from tenflex.cli.folders import require_writable
from tenflex.cli.options import Debug, Json
from tenflex.cli.settings import RESOLVED, write_settings
from tenflex.cli.solver_names import DEFAULT, HELP, STARTS, derivatives_of, solver_for
from tenflex.cli.sources import Source, load_source
from tenflex.decouple import decouple as run
from tenflex.problem import Problem
from tenflex.progress import OnProgress, Progress
from tenflex.rank import RankPath, choose_rank
from tenflex.result import Result
from tenflex.solution import Solution
from tenflex.solvers import Solver
from tenflex.storage.files import beside, require_own_folder, write_json

SOLUTION, DESCRIPTION, FORMULAS, PLOT = "solution.safetensors", "solution.json", "formulas.txt", "nodes.png"
"""The files of a result."""


def decouple(
    polynomial: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='The map as polynomials, one output after another: "a^2 - 3*a*b; b**3".',
            rich_help_panel="The map, one of",
            show_default=False,
        ),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The map as package.module:name: a function of one point (a tensor) that torch can differentiate, a "
            "torch.nn.Module, or a function without arguments that returns one of them.",
            rich_help_panel="The map, one of",
            show_default=False,
        ),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Samples of the map: .csv with a header, and for known derivatives columns such as dy/da for output "
            "y and input a; or .npz with the arrays inputs (S, m), outputs (S, n) and, if known, jacobians (S, n, m). "
            "Derivatives that are not known are estimated, and weighted by how well.",
            rich_help_panel="The map, one of",
            show_default=False,
        ),
    ] = None,
    variables: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The inputs of a polynomial or a function in order, as a,b; those of a polynomial are found.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            help=f"How many random points; {POINTS} if not given.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    low: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="The lower end of the points, one number or one for each input, as -1,0; -1 if not given.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    high: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="The upper end; 1 if not given.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    normal: Annotated[
        bool | None,
        typer.Option(
            "--normal",
            help="Draw the points from the standard normal distribution instead.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The points themselves, one a row: .npy, .npz, .safetensors or .pt, with :NAME for one of several.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    inputs_columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The columns of a table that are inputs, as a,b; all others if not given.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    outputs_columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="The columns of a table that are outputs; all others but derivatives if not given.",
            rich_help_panel="Where it is sampled",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="RANK",
            help="The number of nodes; auto for the smallest within the tolerance (the default); 20,20 for two layers.",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help=f"The relative error of held-out outputs at which --rank auto stops; {TOLERANCE} if not given.",
            show_default=False,
        ),
    ] = None,
    basis: Annotated[
        str | None,
        typer.Option(
            help="The functions of every activation, such as BSpline(12), Monomial(3) or Smooth(BSpline(10)). If not "
            "given, BSpline(10), and for a polynomial Monomial of its degree.",
            show_default=False,
        ),
    ] = None,
    coupling: Annotated[
        float | None,
        typer.Option(
            help=f"The weight of the outputs' error beside the Jacobians'; {DecoupleSettings.coupling} if not given.",
            show_default=False,
        ),
    ] = None,
    solver: Annotated[str | None, typer.Option(metavar="NAME", help=HELP, show_default=False)] = None,
    starts: Annotated[
        int | None,
        typer.Option(
            help=f"How often the solver starts anew; {STARTS} if not given. The default solver makes its own starts, "
            "and more make them all again.",
            show_default=False,
        ),
    ] = None,
    refine: Annotated[
        bool | None,
        typer.Option("--refine/--no-refine", help="Whether a named solver is refined.", show_default=False),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            help=f"The share of the samples that are never fitted; {DecoupleSettings.held_out} if not given.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help=f"The seed of all random choices; {DecoupleSettings.seed} if not given.", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to save: a new or empty folder, or an earlier result.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The same settings as YAML or JSON, such as the run.yaml beside a result. Options win over it; a map "
            "or a solver that is given replaces that of the file with all that belongs to it.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find f(x) = W g(V^T x) + b with a univariate function for every node, and say whether it is unique.

    Example: tenflex decouple --polynomial "a^3 + 3*a*b^2; a^2*b + b^3/3" --out found
    """
    with clean_errors(debug):
        given = {
            **{"polynomial": polynomial, "function": function, "table": table, "variables": variables},
            **{"points": points, "low": low, "high": high, "normal": normal, "inputs": inputs},
            **{"inputs_columns": inputs_columns, "outputs_columns": outputs_columns, "rank": rank},
            **{"tolerance": tolerance, "basis": basis, "coupling": coupling, "solver": solver, "starts": starts},
            **{"refine": refine, "held_out": held_out, "seed": seed, "out": out},
        }
        settings = merge(config, given)
        require_own_folder(Path(settings.out), SOLUTION)
        require_writable(Path(settings.out))
        found = _decouple(settings)
        _save(found)
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
        steps = (
            None
            if self.path is None
            else [
                {"rank": one.rank, "held_out_error": one.error, "parameters": one.parameters, "seconds": one.seconds}
                for one in self.path.steps
            ]
        )
        ended = {} if self.path is None else {"ranks": steps, "ranks_ended": self.path.end.name}
        return {**self.described.to_dict(), "estimated_derivatives": self.source.estimated, **ended}


def _decouple(settings: DecoupleSettings) -> Found:
    """Sample, and solve under a progress bar."""
    source = load_source(settings, derivatives_of(settings.solver))
    settings = resolved(settings, source)
    rank = 1 if isinstance(settings.rank, str) else settings.rank  # "auto" begins with one node
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

    return None, run(problem, solver(problem), seed=settings.seed, on_progress=tell)


def _save(found: Found) -> None:
    """The solution, and beside it what it says in words and pictures, and the settings; each file as a whole."""
    folder = Path(found.settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    found.described.solution.save(folder / SOLUTION)
    write_json(folder / DESCRIPTION, finite(found.to_dict()))
    with beside(folder / FORMULAS) as temporary:
        temporary.write_text(found.described.text(), encoding="utf-8")
    _save_plot(found.described.solution, folder / PLOT)
    write_settings(folder / RESOLVED, found.settings.to_dict())


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


def _indented(line: str) -> RenderableType:
    """A line that stays indented where it is folded."""
    return Padding(line.strip(), (0, 0, 0, 2)) if re.match("  [^ ]", line) else line


def _show(found: Found, json: bool) -> None:
    solution, folder = found.described.solution, found.settings.out
    if solution.result in (Result.DIVERGED, Result.SINGULAR):
        note(solution.result.value)
    if json:
        show_json({"out": folder, "settings": found.settings.to_dict(), "solution": found.to_dict()})
        return
    if found.path is not None:
        show(str(found.path), "")
    for table in found.described.tables():
        show(table, "")
    show(*map(_indented, found.described.remarks()))
    if found.source.estimated:
        show("", "The derivatives were estimated from the table, so errors of Jacobians include those of the estimate.")
    show(
        "",
        "size: the node's share in the outputs, relative to all of them together; nodes may work against each other.",
        f"Saved in {folder}: {', '.join(one.name for one in sorted(Path(folder).iterdir()))}. In Python: "
        f"tenflex.load_solution({str(Path(folder) / SOLUTION)!r})",
    )
