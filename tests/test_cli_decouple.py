"""`tenflex decouple`: the maps that it reads, what it shows and writes, and how it fails."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from planted import CUBIC, MORE_NODES, SUM_AND_DIFFERENCE, direction_error, random, seeded

from tenflex.bases import BSpline, Monomial
from tenflex.cli import decouple as command
from tenflex.cli.app import app
from tenflex.cli.blocks import format_rank
from tenflex.cli.decouple_settings import DecoupleSettings
from tenflex.cli.readers import AUTO, read_rank
from tenflex.cli.solver_names import DEFAULT, NAMED, solver_for
from tenflex.decouple import decouple
from tenflex.described import Described
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.sampling.regression import sample_table
from tenflex.sampling.tables import read_table
from tenflex.solution import Solution, load_solution
from tenflex.solvers import ConstrainedALS, MultiStart, Unweighted


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> None:
    """Few starts, but for the tests that are slow as they need all."""
    if request.node.get_closest_marker("slow") is None:
        request.getfixturevalue("few_starts")


PUBLISHED = (
    "54*a^3 - 54*a^2*b + 8*a^2 + 18*a*b^2 + 16*a*b - 2*b^3 + 8*b^2 + 8*b + 1; "
    "-27*a^3 + 27*a^2*b - 24*a^2 - 9*a*b^2 - 48*a*b - 15*a + b^3 - 24*b^2 - 19*b - 3"
)
SIMPLE = "(a + b)^2; (a - b)^3"
MAPS = """
import torch
from torch import nn


def curved(x):
    return torch.stack([(x[0] + x[1]) ** 2, (x[0] - x[1]) ** 3])


def cube(x):
    return (x[0] + x[1]) ** 3 + (x[0] - x[1]) ** 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 2), nn.Linear(2, 2)
        generator = torch.Generator().manual_seed(0)
        for one in self.parameters():
            one.data = torch.randn(one.shape, generator=generator)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def net():
    return Net()


def flat(x):
    return x[:2].detach()


def number():
    return 3


def interrupted():
    raise KeyboardInterrupt


def fails(x):
    raise OSError("no licence")
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run `tenflex decouple` in this process, in a folder with maps in `maps.py`; plots are not drawn."""
    tmp_path.joinpath("maps.py").write_text(MAPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(Solution, "plot", lambda self, path: Path(path).write_bytes(b"drawn"))

    def call(*arguments: str) -> Outcome:
        sys.modules.pop("maps", None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            app(["decouple", *arguments], prog_name="tenflex")
        captured = capsys.readouterr()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, captured.out, captured.err)

    yield call
    sys.modules.pop("maps", None)


def write_csv(path: Path, header: list[str], columns: torch.Tensor) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(columns.tolist())


@pytest.fixture
def table(tmp_path: Path) -> Samples:
    """Samples of ((a + b)^2, (a - b)^3), which lie in the folder as `known.csv`; without derivatives as `plain.csv`."""
    x = torch.rand(150, 2, generator=seeded(1), dtype=torch.float64)
    factors = SUM_AND_DIFFERENCE.factors
    samples = Samples(x, factors.outputs(x), factors.jacobians(x))
    both = torch.cat([x, samples.outputs], 1)
    write_csv(tmp_path / "plain.csv", ["a", "b", "y", "z"], both)
    slopes = ["dy/da", "dy/db", "dz/da", "dz/db"]
    write_csv(tmp_path / "known.csv", ["a", "b", "y", "z", *slopes], torch.cat([both, samples.jacobians.flatten(1)], 1))
    return samples


# ---- what it finds ----


def test_the_published_polynomial_in_words_and_files(run: Run) -> None:
    done = run("--polynomial", PUBLISHED, "--out", "found")
    assert done.code == 0, done.err
    assert done.err == ""  # no bars where there is no terminal
    assert ">    2 " in done.out  # the rank that was chosen
    assert "within the tolerance" in done.out
    assert "a - 0.3333 b  54 t^3 - 6 t    f1 - 0.5 f2      yes" in done.out
    assert "a + b         -24 t^2 - 18 t  -0.3333 f1 + f2  yes" in done.out
    assert "f1 = g1 - 0.3333 g2 + 1" in done.out
    assert "f2 = -0.5 g1 + g2 - 3" in done.out
    assert "Trust the nodes." in done.out
    assert "unique: no other nodes" in done.out
    assert sorted(path.name for path in Path("found").iterdir()) == [
        "formulas.txt",
        "nodes.png",
        "run.yaml",
        "solution.json",
        "solution.safetensors",
    ]
    solution = load_solution("found/solution.safetensors")
    assert direction_error(solution.factors, CUBIC.factors) < 1e-8
    assert "f2 = -0.5 g1(t1) + g2(t2) - 3" in Path("found/formulas.txt").read_text()
    assert "Trust the nodes." in Path("found/formulas.txt").read_text()


def test_it_is_what_the_library_finds(run: Run) -> None:
    done = run("--polynomial", SIMPLE, "--points", "60", "--rank", "2", "--seed", "3", "--coupling", "2", "--out", "o")
    assert done.code == 0, done.err
    x = -1 + 2 * torch.rand(60, 2, generator=seeded(3), dtype=torch.float64)
    factors = SUM_AND_DIFFERENCE.factors
    saved = load_solution("o/solution.safetensors")
    torch.testing.assert_close(saved.problem.samples.inputs, x, rtol=0, atol=0)
    torch.testing.assert_close(saved.problem.samples.jacobians, factors.jacobians(x))
    again = decouple(Problem(saved.problem.samples, 2, Monomial(3), 2.0), seed=3)
    assert torch.equal(saved.factors.V, again.factors.V)


def test_formulas_have_all_their_digits(run: Run) -> None:
    """What `formulas.txt` says in full precision is the map, evaluated as it stands there."""
    assert run("--polynomial", SIMPLE, "--rank", "2", "--out", "found").code == 0
    text = Path("found/formulas.txt").read_text().partition("In full precision:\n")[2].partition("\n\n")[0]
    lines = [line.strip().partition(" = ")[2] for line in text.splitlines()]
    assert len(lines) == 6
    a, b = 0.3, -0.8

    def value(formula: str, **names: float) -> float:
        product = formula.replace("^", "**")
        for name in names:
            product = product.replace(f" {name}", f" * {name}")
        return eval(product, {}, names)

    g = [value(lines[k], t=value(lines[k + 1], a=a, b=b)) for k in (2, 4)]
    found = [value(lines[i], g1=g[0], g2=g[1]) for i in (0, 1)]
    assert found == pytest.approx([(a + b) ** 2, (a - b) ** 3], abs=1e-12)


def test_json_says_the_same_as_the_files(run: Run) -> None:
    done = run("--polynomial", SIMPLE, "--tolerance", "0.001", "--out", "found", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["out"] == "found"
    assert printed["solution"] == json.loads(Path("found/solution.json").read_text())
    assert printed["settings"] == yaml.safe_load(Path("found/run.yaml").read_text())
    solution = printed["solution"]
    assert [one["rank"] for one in solution["ranks"]] == [1, 2]
    assert solution["ranks_ended"] == "WITHIN"
    assert solution["verdict"]["trusted"] is True
    assert not solution["estimated_derivatives"]
    assert solution["errors"]["held_out"]["outputs"] < 1e-10
    nodes = {one["argument"]["b"] > 0: one for one in solution["layers"][0]["nodes"]}
    assert nodes[True]["argument"] == pytest.approx({"a": 1.0, "b": 1.0})
    assert nodes[True]["polynomial"] == pytest.approx([0, 0, 1, 0], abs=1e-12)
    assert nodes[True]["acts_on"] == pytest.approx({"f1": 1.0, "f2": 0.0}, abs=1e-12)
    assert nodes[False]["polynomial"] == pytest.approx([0, 0, 0, 1], abs=1e-12)


def test_resolved_settings_give_the_same_bits_again(run: Run) -> None:
    assert run("--polynomial", SIMPLE, "--out", "found", "--high", "2,1").code == 0
    assert yaml.safe_load(Path("found/run.yaml").read_text()) == {
        "out": "found",
        "polynomial": SIMPLE,
        "variables": ["a", "b"],
        "points": 300,
        "low": [-1.0],
        "high": [2.0, 1.0],
        "rank": "auto",
        "tolerance": 0.01,
        "basis": "Monomial(degree=3)",
        "coupling": 3.0,
        "solver": "default",
        "held_out": 0.15,
        "seed": 0,
    }
    assert run("--config", "found/run.yaml", "--out", "again").code == 0
    first, second = (load_solution(f"{one}/solution.safetensors") for one in ("found", "again"))
    assert torch.equal(first.factors.V, second.factors.V)
    assert torch.equal(first.factors.flat(), second.factors.flat())


@pytest.mark.parametrize(
    ("arguments", "names", "rank"),
    [
        (("--function", "maps:curved", "--variables", "u,v", "--basis", "Monomial(3)"), ["u", "v"], 2),
        (("--function", "maps:net", "--variables", "u,v,w", "--normal", "--points", "120"), ["u", "v", "w"], 2),
        (("--function", "maps:Net", "--high", "1,1,2"), ["x1", "x2", "x3"], 2),
        (("--function", "maps:curved", "--inputs", "points.npy", "--basis", "Monomial(3)"), ["x1", "x2"], 2),
        (("--function", "maps:cube", "--low", "0,0", "--basis", "Monomial(3)"), ["x1", "x2"], 2),
    ],
)
def test_functions_modules_and_factories(run: Run, arguments: tuple[str, ...], names: list[str], rank: int) -> None:
    np.save("points.npy", random(seeded(5), 80, 2).numpy())
    done = run(*arguments, "--tolerance", "0.01", "--out", "found", "--json")
    assert done.code == 0, done.err
    solution = json.loads(done.out)["solution"]
    assert solution["inputs"] == names
    assert solution["rank"] == rank
    assert solution["errors"]["held_out"]["outputs"] <= 0.01


def test_points_are_those_that_were_asked_for(run: Run) -> None:
    np.save("points.npy", random(seeded(5), 80, 2).numpy())
    for arguments, low, high in (
        (["--inputs", "points.npy"], None, None),
        (["--low", "-3,0", "--high", "-2,5"], [-3, 0], [-2, 5]),
        (["--normal"], None, None),
    ):
        assert run("--polynomial", SIMPLE, "--rank", "1", "--out", "found", *arguments).code == 0
        x = load_solution("found/solution.safetensors").problem.samples.inputs
        if low is not None:
            assert (x >= torch.tensor(low)).all()
            assert (x <= torch.tensor(high)).all()
            assert (x.amax(0) - x.amin(0) > 0.9 * (torch.tensor(high) - torch.tensor(low))).all()
        elif "--inputs" in arguments:
            assert torch.equal(x, torch.from_numpy(np.load("points.npy")))
        else:
            assert x.mean(0).abs().max() < 0.2
            assert x.std() == pytest.approx(1.0, abs=0.1)


# ---- tables ----


def test_derivatives_of_a_table_are_used(run: Run, table: Samples) -> None:
    done = run("--table", "known.csv", "--outputs-columns", "y,z", "--basis", "Monomial(3)", "--out", "found")
    assert done.code == 0, done.err
    solution = load_solution("found/solution.safetensors")
    torch.testing.assert_close(solution.problem.samples.jacobians, table.jacobians, rtol=0, atol=0)
    assert solution.problem.samples.covariance is None
    assert direction_error(solution.factors, SUM_AND_DIFFERENCE.factors) < 1e-8
    assert "y = g" in done.out
    assert "\ny " in done.out  # the errors of outputs have their names
    assert "estimated" not in done.out
    settings = yaml.safe_load(Path("found/run.yaml").read_text())
    assert settings["inputs_columns"] == ["a", "b"]
    assert settings["outputs_columns"] == ["y", "z"]
    assert "points" not in settings


def test_derivatives_that_are_not_known_are_estimated(run: Run, table: Samples) -> None:
    done = run("--table", "plain.csv", "--inputs-columns", "b,a", "--basis", "Monomial(3)", "--rank", "2", "--out", "o")
    assert done.code == 0, done.err
    assert "The derivatives were estimated from the table" in done.out
    solution = load_solution("o/solution.safetensors")
    expected = sample_table(table.inputs.flip(1), table.outputs)
    torch.testing.assert_close(solution.problem.samples.jacobians, expected.jacobians)
    assert solution.problem.samples.covariance is not None
    assert solution.output_error < 0.01


@pytest.mark.parametrize("known", [True, False])
def test_arrays_are_a_table(run: Run, table: Samples, known: bool) -> None:
    arrays = {"inputs": table.inputs, "outputs": table.outputs, **({"jacobians": table.jacobians} if known else {})}
    np.savez("table.npz", **{name: one.numpy() for name, one in arrays.items()})
    done = run("--table", "table.npz", "--basis", "Monomial(3)", "--rank", "2", "--out", "found", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["solution"]["inputs"] == ["x1", "x2"]
    assert printed["solution"]["estimated_derivatives"] == (not known)
    assert "inputs_columns" not in printed["settings"]


def test_other_columns_are_ignored_and_any_delimiter_will_do(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("time; a; b; y\n0; 1; 2; 3\n\n1; 4; 5; 6.5e1\n")
    table = read_table(path, ("b",), ("y",))
    assert (table.inputs, table.outputs) == (("b",), ("y",))
    assert table.points.tolist() == [[2.0], [5.0]]
    assert table.values.tolist() == [[3.0], [65.0]]
    assert read_table(path, None, ("y",)).inputs == ("time", "a", "b")
    assert read_table(path, ("a",), None).outputs == ("time", "b", "y")


def test_derivatives_are_no_outputs(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,y,dy/da,dy/db\n0,1,2,3,4\n5,6,7,8,9\n")
    for arguments in ((("a", "b"), None), (None, ("y",)), (("a", "b"), ("y",))):
        table = read_table(path, *arguments)
        assert (table.inputs, table.outputs) == (("a", "b"), ("y",))
        assert table.jacobians is not None
        assert table.jacobians.tolist() == [[[3.0, 4.0]], [[8.0, 9.0]]]
    turned = read_table(path, ("b", "a"), ("y",))
    assert turned.jacobians is not None
    assert turned.jacobians.tolist() == [[[4.0, 3.0]], [[9.0, 8.0]]]


BAD_TABLES = {
    "no file": (None, "--inputs-columns a", r"table.csv cannot be read: No such file or directory"),
    "empty": ("", "--inputs-columns a", r"must begin with a line of column names, such as a,b,y,z, got ''"),
    "no header": ("1,2\n3,4\n", "--inputs-columns a", r"begins with numbers: put a line of column names on top"),
    "no rows": ("a,y\n", "--inputs-columns a", r"has a header and no numbers below it"),
    "no number": ("a,y\n1,2\n3,x\n", "--inputs-columns a", r"has 'x' in line 3, column 'y': expected a number"),
    "ragged": ("a,y\n1,2\n3\n", "--inputs-columns a", r"has 1 cells in line 3, and 2 in its header"),
    "twice": ("a,a\n1,2\n", "--inputs-columns a", r"has two columns called 'a': rename one"),
    "unknown": ("alpha,y\n1,2\n", "--inputs-columns alfa", r"has no column 'alfa'; did you mean 'alpha'\?"),
    "both": ("a,y\n1,2\n", "--inputs-columns a --outputs-columns a", r"'a' cannot be an input and an output"),
    "none left": ("a\n1\n", "--inputs-columns a", r"has no columns left that could be outputs"),
    "no choice": ("a,y\n1,2\n", "", r"which columns of table.csv are inputs\? Give --inputs-columns or --outputs-"),
    "half": ("a,b,y,dy/da\n1,2,3,4\n", "--outputs-columns y --inputs-columns a,b", r"but no column 'dy/db': expected"),
    "nan": ("a,y\n1,2\nnan,3\n3,1\n", "--inputs-columns a", r"inputs must be finite"),
    "few": ("a,y\n1,2\n2,3\n3,1\n", "--inputs-columns a", r"at least 5 samples are needed to estimate derivatives"),
    "binary": ("\x00\udcff", "--inputs-columns a", r"is not a file of comma-separated text|must begin with|column"),
}


@pytest.mark.parametrize(("text", "options", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_bad_tables(run: Run, text: str | None, options: str, message: str) -> None:
    if text is not None:
        Path("table.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    check_refused(run("--table", "table.csv", *options.split(), "--out", "found"), message)


def test_bad_arrays(run: Run) -> None:
    np.savez("table.npz", inputs=np.zeros((9, 2)), output=np.zeros((9, 1)))
    check_refused(
        run("--table", "table.npz", "--out", "o"),
        r"has no array 'outputs': expected the arrays .*; did you mean 'output'",
    )
    check_refused(run("--table", "table.npz", "--inputs-columns", "a", "--out", "o"), r"has arrays and no columns")
    np.savez("table.npz", inputs=np.zeros(9), outputs=np.zeros((9, 1)))
    check_refused(run("--table", "table.npz", "--out", "o"), r"expected inputs \(S, m\) and outputs \(S, n\), got")
    check_refused(run("--table", "table.xls", "--out", "o"), r"expected a table as a .csv file with a header, or as an")
    Path("broken.npz").write_bytes(b"PK")
    check_refused(run("--table", "broken.npz", "--out", "o"), r"broken.npz cannot be read")


# ---- solvers ----


@pytest.mark.parametrize("name", NAMED)
def test_every_solver_has_its_name(run: Run, name: str) -> None:
    done = run("--polynomial", PUBLISHED, "--points", "100", "--rank", "2", "--solver", name, "--out", "o", "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    assert printed["solution"]["errors"]["held_out"]["outputs"] < 1e-8
    assert printed["settings"]["solver"] == name
    assert printed["settings"]["starts"] == 5
    assert printed["settings"]["refine"] is True


def test_solvers_are_put_together_as_help_says(table: Samples) -> None:
    problem = CUBIC.problem()
    assert solver_for(problem, DEFAULT, None, True) is None
    assert isinstance(solver_for(problem, DEFAULT, 2, True), MultiStart)
    alone = solver_for(problem, "jacobian-cpd", 3, False)
    assert alone == MultiStart(NAMED["jacobian-cpd"].make(), 3)
    refined = solver_for(problem, "jacobian-cpd", None, True)
    assert isinstance(refined, MultiStart)
    assert refined.starts == 5
    estimated = Problem(sample_table(table.inputs, table.outputs), 2, Monomial(3))
    for name, wrapped in (("jacobian-cpd", True), ("weighted-cpd", False), ("constrained-als", False)):
        start = solver_for(estimated, name, 1, False)
        assert isinstance(start, MultiStart)
        assert isinstance(start.solver, Unweighted) == wrapped


def test_more_nodes_than_outputs(run: Run) -> None:
    text = ";".join(
        " + ".join(
            f"{w}*({' + '.join(f'({c})*({v[0]}*a + {v[1]}*b)^{j + 1}' for j, c in enumerate(g))})"
            for w, v, g in zip(
                row, MORE_NODES.factors.V.T.tolist(), MORE_NODES.factors.only.coefficients.tolist(), strict=True
            )
        )
        for row in MORE_NODES.factors.W.tolist()
    )
    done = run(
        "--polynomial", text, "--low", "-1.5", "--high", "1.5", "--points", "100", "--out", "o", "--tolerance", "0.001"
    )
    assert done.code == 0, done.err
    assert direction_error(load_solution("o/solution.safetensors").factors, MORE_NODES.factors) < 1e-7


@pytest.mark.slow
def test_two_layers(run: Run) -> None:
    """Problem 6, with the constants that sympy expands it to; both layers are shown, and their uniqueness is not."""
    u = "(-2*a - 2*b)", "(-3*a + b)"
    h = f"(2*{u[0]} + 3*{u[0]}^2)", f"{u[1]}^2"
    v = f"({h[0]} + 2*{h[1]})", f"(-3*{h[0]} - {h[1]})"
    g = f"(-{v[0]}^2 - 2*{v[0]})", f"(-3*{v[1]} + {v[1]}^2)"
    text = f"{g[0]} + 2*{g[1]}; 2*{g[0]} + {g[1]}"
    done = run("--polynomial", text, "--rank", "2,2", "--basis", "Monomial(2)", "--out", "found")
    assert done.code == 0, done.err
    assert load_solution("found/solution.safetensors").output_error < 1e-8
    assert "h2" in done.out
    assert "Whether the nodes of several layers are unique is not tested." in done.out
    assert yaml.safe_load(Path("found/run.yaml").read_text())["rank"] == [2, 2]


# ---- what it says ----


def test_nodes_that_are_not_unique_are_called_so(run: Run) -> None:
    done = run("--polynomial", "(a + b)^2 + (a - b)^2; a^2", "--rank", "3", "--points", "60", "--out", "found")
    assert done.code == 0, done.err
    assert "Trust the nodes." not in done.out
    assert "not unique: other nodes give the same outputs and Jacobians" in done.out


def test_verdicts_name_nodes_as_the_table_does(run: Run) -> None:
    """Two nodes along a + b are one too many: those that the verdict calls collinear or linear are so in the table."""
    done = run("--polynomial", "a + (a + b)^2; b", "--rank", "3", "--points", "60", "--out", "found")
    assert done.code == 0, done.err
    rows = [re.split("  +", line) for line in done.out.splitlines() if re.match(r"g\d ", line)]
    linear = sorted(row[0] for row in rows if "^" not in row[3])
    along = sorted(row[0] for row in rows if row[2] == "a + b")
    said = " ".join(done.out.split())
    assert len(linear) > 1 or len(along) > 1
    assert (f"{', '.join(linear)} are linear on the samples" in said) == (len(linear) > 1)
    assert (f"the columns of V of {', '.join(along)} are collinear" in said) == (len(along) > 1)


def test_many_nodes_are_counted() -> None:
    x = random(seeded(0), 200, 12)
    W, V = random(seeded(1), 3, 24), random(seeded(2), 12, 24)
    samples = Samples(x, (x @ V).tanh() @ W.mT, torch.einsum("nr,sr,mr->snm", W, 1 - (x @ V).tanh() ** 2, V))
    solution = decouple(Problem(samples, 24, BSpline(5)), ConstrainedALS(1))
    described = Described.of(solution, tuple(f"x{k}" for k in range(12)), ("f1", "f2", "f3"))
    [table] = command.tables(described)
    assert table.row_count == 21
    assert not any(line.startswith("f1 = ") for line in described.remarks())
    assert "5 BSpline, t from" in described.layers()[0].activation(0)


def test_the_plot_is_left_out_where_it_cannot_be_drawn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot of an earlier result does not stay beside another solution."""
    assert run("--polynomial", SIMPLE, "--rank", "2", "--out", "found").code == 0
    assert Path("found/nodes.png").read_bytes() == b"drawn"

    def missing(self: Solution, path: Path) -> None:
        raise ImportError("plots need matplotlib: pip install 'tenflex[plot]'")

    monkeypatch.setattr(Solution, "plot", missing)
    done = run("--polynomial", SIMPLE, "--rank", "1", "--out", "found")
    assert done.code == 0
    assert done.err == "The plot was skipped: plots need matplotlib: pip install 'tenflex[plot]'\n"
    assert not Path("found/nodes.png").exists()


def test_help_names_every_solver(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text = run("--help").out
    assert all(name in text for name in NAMED)
    assert "dy/da" in text


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """With the plot, as users run it."""
    source = str(Path(command.__file__).parents[2])
    arguments = ["decouple", "--polynomial", SIMPLE, "--rank", "2", "--points", "50", "--out", "found"]
    done = subprocess.run(
        [sys.executable, "-m", "tenflex", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert tmp_path.joinpath("found", "nodes.png").read_bytes()[:4] == b"\x89PNG"


# ---- refusals ----


def check_refused(done: Outcome, message: str, code: int = 2) -> None:
    assert done.code == code, done.out + done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert re.search(message, done.err), done.err
    assert not Path("found").exists()


OF_POLYNOMIAL = f"--polynomial|{SIMPLE}"
BAD = {
    "nothing": ("", r"expected exactly one of --polynomial, --function and --table, got none"),
    "two maps": (f"{OF_POLYNOMIAL}|--function|maps:curved", r"exactly one of .*, got --polynomial and --function"),
    "no polynomial": ("--polynomial|sin(a)", r"sin"),
    "constant": ("--polynomial|3;4|--variables|a", r"the polynomial is a constant"),
    "empty": ("--polynomial|a;;b", r"output 2 of 3 is empty"),
    "other variable": (f"{OF_POLYNOMIAL}|--variables|a,c", r"'?b'?"),
    "columns of a polynomial": (
        f"{OF_POLYNOMIAL}|--inputs-columns|a",
        r"--inputs-columns says nothing about --polynomial: leave it out",
    ),
    "points of a table": ("--table|t.csv|--points|9", r"--points says nothing about --table: leave it out"),
    "points and inputs": (
        f"{OF_POLYNOMIAL}|--inputs|x.npy|--points|9",
        r"--inputs names the points, so --points draws",
    ),
    "normal and ends": (f"{OF_POLYNOMIAL}|--normal|--low|0", r"--normal has no ends: leave out --low and --high"),
    "one point": (f"{OF_POLYNOMIAL}|--points|1", r"points must be a whole number of at least 2, got 1"),
    "few points": (f"{OF_POLYNOMIAL}|--points|5", r"none of the 5 is held out: pass held_out=0.15 and at least 8"),
    "three ends": (f"{OF_POLYNOMIAL}|--low|0,1,2", r"low must be one number or 2, one for each input, got 3"),
    "no ends": (f"{OF_POLYNOMIAL}|--low|x", r"low must be a number, or one for each input such as -1,0, got 'x'"),
    "infinite end": (f"{OF_POLYNOMIAL}|--high|inf", r"high must be a finite number, got inf"),
    "reversed": (f"{OF_POLYNOMIAL}|--low|1|--high|-1", r"low must be below high, got 1 and -1 for a"),
    "no inputs": (f"{OF_POLYNOMIAL}|--inputs|none.npy", r"none.npy does not exist"),
    "wrong inputs": (f"{OF_POLYNOMIAL}|--inputs|three.npy", r"three.npy has 3 columns, expected 2: a, b"),
    "flat inputs": (f"{OF_POLYNOMIAL}|--inputs|flat.npy", r"flat.npy has the shape \(9,\): expected points \(S, m\)"),
    "rank": (
        f"{OF_POLYNOMIAL}|--rank|two",
        r"rank must be auto or one number of nodes a layer, such as 20 or 20,20, got 'two'",
    ),
    "rank zero": (f"{OF_POLYNOMIAL}|--rank|0", r"rank must be a whole number of at least 1, got 0"),
    "an empty layer": (f"{OF_POLYNOMIAL}|--rank|2,0,2", r"rank must be a whole number of at least 1, got 0"),
    "a missing layer": (
        f"{OF_POLYNOMIAL}|--rank|2,,2",
        r"one number of nodes a layer, such as 20 or 20,20, got '2,,2'",
    ),
    "large rank": (f"{OF_POLYNOMIAL}|--rank|900", r"rank must be at most 382 for 255 fitted samples"),
    "tolerance of a rank": (f"{OF_POLYNOMIAL}|--rank|2|--tolerance|0.1", r"--tolerance is for --rank auto: leave one"),
    "tolerance": (f"{OF_POLYNOMIAL}|--tolerance|-1", r"tolerance must be a finite number of at least 0, got -1.0"),
    "basis": (f"{OF_POLYNOMIAL}|--basis|Spline(3)", r"no basis is called 'Spline'; did you mean 'BSpline'"),
    "basis setting": (f"{OF_POLYNOMIAL}|--basis|Monomial(0)", r"degree must be a whole number of at least 1, got 0"),
    "coupling": (f"{OF_POLYNOMIAL}|--coupling|-1", r"coupling must be a finite number of at least 0, got -1.0"),
    "solver": (
        f"{OF_POLYNOMIAL}|--solver|jacobi-cpd",
        r"solver must be one of default, .*; did you mean 'jacobian-cpd'",
    ),
    "starts": (f"{OF_POLYNOMIAL}|--starts|0", r"starts must be a whole number of at least 1, got 0"),
    "refined": (f"{OF_POLYNOMIAL}|--no-refine", r"the default solver refines at its end: name another --solver"),
    "solver of a layer": (f"{OF_POLYNOMIAL}|--rank|2,2|--solver|jacobian-cpd", r"is for one layer, got --rank 2,2"),
    "second derivatives": (
        "--table|t.csv|--inputs-columns|a|--solver|hessian-cpd",
        r"hessian-cpd needs second derivatives, which a table does not have",
    ),
    "one output": (
        "--polynomial|a^2+b^3|--rank|2|--solver|jacobian-cpd",
        r"JacobianCPD needs at least 2 outputs and 2",
    ),
    "held out": (f"{OF_POLYNOMIAL}|--held-out|0.9", r"held_out must be a share of at most 0.5, got 0.9"),
    "none held out": (f"{OF_POLYNOMIAL}|--held-out|0", r"none of the 300 is held out"),
    "seed": (f"{OF_POLYNOMIAL}|--seed|-1", r"seed must be a whole number of at least 0, got -1"),
    "no module": ("--function|nowhere:f|--variables|a", r"there is no module 'nowhere'"),
    "no function": ("--function|maps:curvd|--variables|a,b", r"maps has no 'curvd'; did you mean 'curved'"),
    "a number": ("--function|maps:number|--variables|a,b", r"maps:number is int: expected a function of one point"),
    "no colon": ("--function|maps.curved|--variables|a,b", r"expected the function as package.module:name"),
    "unknown size": (
        "--function|maps:curved",
        r"how many numbers does the function take\? Name them, as --variables a,b",
    ),
    "wrong size": ("--function|maps:curved|--variables|a", r"maps:curved cannot take 1 numbers \(a\)"),
    "wrong size of a module": ("--function|maps:net|--variables|a", r"maps:net cannot take 1 numbers \(a\)"),
    "not differentiable": (
        "--function|maps:flat|--variables|a,b",
        r"do not depend on its inputs by operations that torch",
    ),
    "names twice": ("--function|maps:curved|--variables|a,a", r"variables must be different names, got a, a"),
    "no names": (
        "--function|maps:curved|--variables|a,,b",
        r"variables must be names separated by commas, such as a,b",
    ),
    "no config": ("--config|none.yaml", r"none.yaml cannot be read: No such file"),
    "config": ("--config|bad.yaml", r"bad.yaml has an unknown setting 'polynomal'; did you mean 'polynomial'"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_settings(run: Run, arguments: str, message: str) -> None:
    np.save("three.npy", np.zeros((9, 3)))
    np.save("flat.npy", np.zeros(9))
    Path("bad.yaml").write_text("polynomal: a^2\n")
    check_refused(run(*filter(None, arguments.split("|")), "--out", "found"), message)


def test_what_fails_while_it_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--function", "maps:interrupted", "--variables", "a", "--out", "found").code == 130
    check_refused(run("--function", "maps:fails", "--variables", "a", "--out", "found"), "no licence", code=1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_settings", full)
    done = run("--polynomial", SIMPLE, "--rank", "2", "--out", "found")
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert "No space left on device" in done.err
    assert done.out == ""


def test_answers_without_a_folder(run: Run) -> None:
    done = run("--polynomial", SIMPLE, "--rank", "2")
    assert done.code == 0
    assert "Nothing was saved: give --out FOLDER to keep the solution." in done.out
    assert [path.name for path in Path().iterdir() if path.is_dir() and path.name != "__pycache__"] == []


def test_nothing_of_others_is_overwritten(run: Run) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    check_refused(run("--polynomial", SIMPLE, "--out", "mine"), r"mine holds other files than an earlier result")
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]
    Path("network").mkdir()
    Path("network/model.safetensors").write_bytes(b"")
    check_refused(run("--polynomial", SIMPLE, "--out", "network"), r"network holds other files than an earlier result")
    Path("file").write_text("")
    check_refused(run("--polynomial", SIMPLE, "--out", "file"), r"file is a file: choose a folder to save in")


# ---- settings ----


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("2", 2),
        (3, 3),
        ([3], 3),
        ("auto", AUTO),
        ("20,10", (20, 10)),
        ([20, 10], (20, 10)),
        ("20, 10", (20, 10)),
        ("20-10", (20, 10)),
        ("20,10,5", (20, 10, 5)),
        ([4, 3, 2, 1], (4, 3, 2, 1)),
    ],
)
def test_ranks_are_read(text: object, rank: object) -> None:
    assert read_rank("rank", text) == rank
    assert read_rank("rank", format_rank(read_rank("rank", text))) == rank


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"table": "t.csv", "inputs_columns": ["a"], "tolerance": 0.1, "seed": 5, "out": "o"}))
    settings = DecoupleSettings.merge(path, dict.fromkeys(DecoupleSettings.kinds()))
    assert settings == DecoupleSettings(out="o", table="t.csv", inputs_columns=("a",), tolerance=0.1, seed=5)
    other = DecoupleSettings.merge(path, {"polynomial": "a", "seed": 7})
    assert other == DecoupleSettings(out="o", polynomial="a", tolerance=0.1, seed=7)
    assert DecoupleSettings.merge(path, {"rank": "2"}) == DecoupleSettings(
        out="o", table="t.csv", inputs_columns=("a",), rank=2, seed=5
    )


def test_another_solver_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("{polynomial: a, solver: jacobian-cpd, starts: 9, refine: true, out: o}")
    assert DecoupleSettings.merge(path, {"solver": "default"}) == DecoupleSettings(out="o", polynomial="a")
    assert DecoupleSettings.merge(path, {"starts": 2}).solver == "jacobian-cpd"


def test_settings_come_back_as_they_were_written() -> None:
    settings = DecoupleSettings(
        out="o",
        polynomial="a*b",
        variables=("a", "b"),
        low=(0.0, 1.0),
        high=(2.0,),
        basis=BSpline(7),
        rank=(2, 3),
        starts=4,
    )
    assert DecoupleSettings.from_dict(yaml.safe_load(yaml.safe_dump(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 3}, r"there is no setting 'ranks'; did you mean 'rank'"),
        ({"polynomial": 3}, r"polynomial must be a text, got 3"),
        ({"normal": "yes"}, r"normal must be true or false, got 'yes'"),
        ({"variables": [1]}, r"variables must be names separated by commas, such as a,b, got \[1\]"),
        ({"rank": 2.5}, r"rank must be a whole number of at least 1, got 2.5"),
        ({"seed": 1.5}, r"seed must be a whole number of at least 0, got 1.5"),
    ],
)
def test_bad_files_of_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoupleSettings.from_dict({"out": "o", "polynomial": "a", **settings})
