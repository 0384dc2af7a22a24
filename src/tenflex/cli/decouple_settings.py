"""What `tenflex decouple` is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from tenflex.bases import Basis
from tenflex.checks import require_number, require_whole
from tenflex.cli.blocks import format_rank
from tenflex.cli.errors import InputError
from tenflex.cli.options import option
from tenflex.cli.readers import AUTO, Names, Numbers, Rank
from tenflex.cli.settings import Settings, option_name
from tenflex.cli.solver_names import DEFAULT, HELP, STARTS, derivatives_of, require_name
from tenflex.distributed import launched
from tenflex.problem import Problem

POINTS = 300
"""How many points are drawn, when nothing else is asked for."""

TOLERANCE = 0.01
"""The error at which `--rank auto` stops, when nothing else is asked for."""

DRAWN = ("points", "low", "high", "normal")
"""The settings of random points."""

SOURCES = {
    "polynomial": ("variables", *DRAWN, "inputs"),
    "function": ("variables", *DRAWN, "inputs"),
    "table": ("inputs_columns", "outputs_columns"),
}
"""Where samples come from, with the settings that belong to each."""

OF_SOURCES = {*SOURCES, *(name for names in SOURCES.values() for name in names)}
"""The settings that say where samples come from."""

MAP, SAMPLED = "The map, one of", "Where it is sampled"
"""The headings of options in `--help`."""


@dataclass(frozen=True, kw_only=True)
class DecoupleSettings(Settings):
    """What `tenflex decouple` does; every path is as seen from the folder in which it runs.

    Raises:
        InputError: if settings contradict each other or something is missing.
        ValueError: if a number is out of its range.
    """

    importing: ClassVar[tuple[str, ...]] = ("function",)

    polynomial: str | None = option(
        'The map as polynomials, one output after another: "a^2 - 3*a*b; b**3".', "TEXT", MAP
    )
    function: str | None = option(
        "The map as package.module:name: a function of one point (a tensor) that torch can differentiate, a "
        "torch.nn.Module, or a function without arguments that returns one of them.",
        "NAME",
        MAP,
    )
    table: str | None = option(
        "Samples of the map: .csv with a header, and for known derivatives columns such as dy/da for output y and "
        "input a; or .npz with the arrays inputs (S, m), outputs (S, n) and, if known, jacobians (S, n, m). "
        "Derivatives that are not known are estimated, and weighted by how well.",
        "FILE",
        MAP,
    )
    variables: Names | None = option(
        "The inputs of a polynomial or a function in order, as a,b; those of a polynomial are found.", "NAMES", SAMPLED
    )
    points: int | None = option(f"How many random points; {POINTS} if not given.", panel=SAMPLED)
    low: Numbers | None = option(
        "The lower end of the points, one number or one for each input, as -1,0; -1 if not given.", "NUMBERS", SAMPLED
    )
    high: Numbers | None = option("The upper end; 1 if not given.", "NUMBERS", SAMPLED)
    normal: bool | None = option(
        "Draw the points from the standard normal distribution instead.", None, SAMPLED, "--normal"
    )
    inputs: str | None = option(
        "The points themselves, one a row: .npy, .npz, .safetensors or .pt, with :NAME for one of several.",
        "FILE",
        SAMPLED,
    )
    inputs_columns: Names | None = option(
        "The columns of a table that are inputs, as a,b; all others if not given.", "NAMES", SAMPLED
    )
    outputs_columns: Names | None = option(
        "The columns of a table that are outputs; all others but derivatives if not given.", "NAMES", SAMPLED
    )
    rank: Rank = option(
        "The number of nodes; auto for the smallest within the tolerance (the default); one number a layer for several "
        "layers, as 20,20.",
        "RANK",
        default=AUTO,
    )
    tolerance: float | None = option(
        f"The relative error of held-out outputs at which --rank auto stops; {TOLERANCE} if not given."
    )
    basis: Basis | None = option(
        "The functions of every activation, such as BSpline(12), Monomial(3) or Smooth(BSpline(10)). If not given, "
        "Smooth(BSpline(10)), and for a polynomial Monomial of its degree."
    )
    coupling: float = option(
        f"The weight of the outputs' error beside the Jacobians'; {Problem.coupling} if not given.",
        default=Problem.coupling,
    )
    solver: str = option(HELP, "NAME", default=DEFAULT)
    starts: int | None = option(
        f"How often the solver starts anew; {STARTS} if not given. The default solver makes its own starts, and more "
        "make them all again."
    )
    refine: bool | None = option("Whether a named solver is refined.")
    held_out: float = option(
        f"The share of the samples that are never fitted; {Problem.held_out} if not given.", default=Problem.held_out
    )
    seed: int = option("The seed of all random choices; 0 if not given.", default=0)
    resume: bool | None = option(
        "Go on from the checkpoint of a run over several processes that was cut off.", None, None, "--resume"
    )
    out: str | None = option(
        "Where to save, as well as to show: a new or empty folder, or an earlier result.", "FOLDER"
    )

    def __post_init__(self) -> None:
        self._check_source()
        self._check_numbers()
        require_name(self.solver)
        if found := list(self._contradictions()):
            raise InputError("; ".join(found))

    def _check_source(self) -> None:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(map(option_name, given)) or "none"
            raise InputError(f"expected exactly one of --polynomial, --function and --table, got {got}")
        for name in (setting for settings in SOURCES.values() for setting in settings):
            if getattr(self, name) is not None and name not in SOURCES[given[0]]:
                raise InputError(f"{option_name(name)} says nothing about --{given[0]}: leave it out")

    def _check_numbers(self) -> None:
        for name, least in (("points", 2), ("starts", 1), ("seed", 0)):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), at_least=least)
        if self.tolerance is not None:
            require_number("tolerance", self.tolerance, at_least=0)

    def _contradictions(self) -> Iterator[str]:
        if launched() and self.rank == AUTO:
            yield "--rank auto tries one rank after another, in one process: give --rank under torchrun"
        if self.resume and not (launched() and self.out is not None):
            yield "--resume is for a run over several processes, under torchrun and with --out: leave it out"
        drawn = [name for name in DRAWN if getattr(self, name) is not None]
        if self.inputs is not None and drawn:
            yield f"--inputs names the points, so {option_name(drawn[0])} draws none: leave one out"
        if self.normal and (self.low is not None or self.high is not None):
            yield "--normal has no ends: leave out --low and --high, or --normal"
        if self.rank != AUTO and self.tolerance is not None:
            yield "--tolerance is for --rank auto: leave one out"
        if self.table is not None and derivatives_of(self.solver) > 1:
            yield f"the solver {self.solver} needs second derivatives, which a table does not have: name another one"
        if self.solver == DEFAULT and self.refine is not None:
            yield "the default solver refines at its end: name another --solver, or leave out --refine"
        if isinstance(self.rank, tuple) and self.solver != DEFAULT:
            yield f"the solver {self.solver} is for one layer, got --rank {format_rank(self.rank)}: leave it out"

    @classmethod
    def replaced(cls, given: Mapping[str, Any]) -> set[str]:
        """A map or a solver that is given takes all that belongs to it along, and a number of nodes the tolerance."""
        return {
            *(OF_SOURCES if any(source in given for source in SOURCES) else ()),
            *(("tolerance",) if given.get("rank", AUTO) != AUTO else ()),
            *(("starts", "refine") if "solver" in given else ()),
        }
