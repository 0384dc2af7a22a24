"""Sums over samples: who forms them, and that two halves of the samples, each with its own process, give the same.

Not split here, because they need all samples at hand: a full covariance, the cores of a decomposition
(`objective/compressed.py`, `objective/multilinear.py`), finite differences along all points, whitening with fewer
samples than inputs, and whatever draws samples at random.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from inspect import isabstract
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import random, seeded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tenflex
from tenflex import solvers, sums
from tenflex.bases import Basis, BSpline, Hinge, Monomial, Monotone, Smooth, TwoSidedHinge
from tenflex.bases.bspline import quantiles
from tenflex.coordinates import PerOutput, Standardize, Whiten
from tenflex.coordinates.active import active_axes
from tenflex.decouple import decouple
from tenflex.factors import Activations, Factors
from tenflex.objective import paratuck
from tenflex.objective.coefficients import CoefficientSystem
from tenflex.objective.decomposition import Decomposition, freed, improved_directions, leading_rows
from tenflex.objective.line_search import longest_step, longest_weighted_step, overlap, squared_norm
from tenflex.objective.multilinear import multilinear_svd
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared, prepare
from tenflex.objective.rest import Rest
from tenflex.objective.roughness import choose_smoothing, roughness
from tenflex.objective.steps import activate, coefficient_system, output_moments
from tenflex.objective.tensor import Contracted, JacobianTensor
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.sampling.views import directions_like
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    FilteredCPD,
    GaussNewton,
    GeneralizedEigenvalues,
    HessianCPD,
    JacobianCPD,
    LayeredALS,
    Leading,
    Lifted,
    MultiStart,
    ProjectedALS,
    ProjectedLayeredALS,
    Refine,
    SketchedNewton,
    Solver,
    State,
    StructuredCPD,
    Truncate,
    Unweighted,
    WeightedCPD,
)
from tenflex.solvers.base import measured
from tenflex.solvers.grow import Grow

PACKAGE = f"{Path(tenflex.__file__).parent}/"

COUNT = 211
"""The samples: a prime number unlike any other size, so that it tells which dimension is theirs."""


def curved(x: Tensor) -> Tensor:
    """A map from 3 to 4 numbers that is near two nodes."""
    V, W = random(seeded(1), 3, 2).to(x), random(seeded(2), 4, 2).to(x)
    t = x @ V
    return W @ torch.stack([t[0] ** 2, t[1] ** 3 + t[1]]) + 0.1 * torch.sin(3 * x.sum())


def points(count: int = COUNT) -> Tensor:
    return torch.rand(count, 3, generator=seeded(0), dtype=torch.float64) * 2 - 1


SAMPLES = tenflex.sample(curved, points(), order=2)
VARIANCES = torch.rand(COUNT, 4, 3, generator=seeded(3), dtype=torch.float64) + 0.5
SPREAD = random(seeded(4), COUNT, 12, 12) / 4
BLOCKS = torch.diag_embed(VARIANCES.flatten(1)) + SPREAD @ SPREAD.mT


def viewed(views: int) -> Samples:
    """The samples through so many views, with whole Jacobians of two outputs as their pilot."""
    u = directions_like(SAMPLES.outputs[0], COUNT, views, seeded(5))
    pilot = Samples(SAMPLES.inputs, SAMPLES.outputs[:, :2], SAMPLES.jacobians[:, :2])
    return replace(SAMPLES, hessians=None, jacobians=u @ SAMPLES.jacobians, directions=u, pilot=pilot)


def problem_of(basis: Basis | None = None, rank: int | tuple[int, ...] = 2, **settings: Any) -> Problem:
    covariance, views = settings.pop("covariance", None), settings.pop("views", None)
    samples = replace(SAMPLES, covariance=covariance) if views is None else viewed(views)
    return Problem(samples, rank=rank, basis=basis or Monomial(3), held_out=0, **settings)


# ---- who sums ----

SMOOTH, MONOTONE, PRICED = Smooth(BSpline(6)), Monotone(BSpline(6)), Smooth(Monomial(3))
ONE, TWO = {"rank": 2}, {"rank": (2, 2)}

# A new solver is one row.
RUNS: list[tuple[dict[str, Any], Solver[Any] | None]] = [
    (ONE, None),
    ({"basis": SMOOTH}, Chain((ConstrainedALS(2), Refine(2)))),
    ({"basis": MONOTONE}, Chain((ConstrainedALS(2), Refine(2)))),
    ({"basis": BSpline(6, spacing="quantile")}, ConstrainedALS(2)),
    ({"basis": TwoSidedHinge(4)}, Chain((ConstrainedALS(2), Refine(2)))),
    (ONE, MultiStart(BestSoFar(Chain((ProjectedALS(2), GaussNewton(2)))), 2)),
    (ONE, StructuredCPD(4)),
    (ONE, JacobianCPD(4)),
    (ONE, FilteredCPD(2)),
    (ONE, GeneralizedEigenvalues(2)),
    (ONE, HessianCPD(4)),
    ({"factor": 1, "output_factor": 1}, Chain((ConstrainedALS(2), Truncate(), Refine(2)))),
    ({"factor": 1}, Leading(ConstrainedALS(2))),
    (TWO, Chain((LayeredALS(2), GaussNewton(2), Refine(2), SketchedNewton(2)))),
    ({**TWO, "basis": SMOOTH}, ProjectedLayeredALS(2)),
    ({"covariance": VARIANCES}, Chain((Unweighted(ConstrainedALS(2)), WeightedCPD(4), Refine(2)))),
    ({"covariance": BLOCKS}, Chain((ConstrainedALS(2), GaussNewton(2)))),
    ({**TWO, "covariance": VARIANCES}, Chain((Unweighted(LayeredALS(2)), Refine(2)))),
    ({"views": 2}, Chain((Lifted(JacobianCPD(4)), Refine(2), SketchedNewton(2)))),
    ({"views": 1, "factor": 1}, Chain((Leading(ConstrainedALS(2)), Refine(2)))),
    ({**TWO, "views": 1}, Chain((Lifted(LayeredALS(2)), Refine(2)))),
]
SUMMING = {"sums.py", "objective", "sampling", "coordinates", "bases", "checks.py", "covariance.py"}
"""Who may contract the dimension of samples; the checks look for what is not finite."""

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "vdot"}
PICKS = {"select", "slice", "index", "index_select", "gather", "as_strided", "unbind", "split", "multinomial", "topk"}
MAKES = {"new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "randperm"}


def sized(shape: torch.Size) -> bool:
    """Whether a dimension is that of samples, alone or together with others."""
    return any(size > 0 and size % COUNT == 0 for size in shape)


class Contractions(TorchDispatchMode):
    """Counts the operations in which the dimension of samples disappears, by the room that calls for them."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [one for one in args if isinstance(one, Tensor)]
        if name in PRODUCTS:
            gone = sized(tensors[-1].shape[-2:][:1])
        elif name in PICKS | MAKES or not isinstance(out, Tensor):
            gone = False
        else:
            gone = any(sized(one.shape) for one in tensors) and not sized(out.shape)
        if gone:
            self.rooms[caller()] += 1
        return out


def caller() -> str:
    """The room of the nearest frame in the package; for those of solvers with file and line."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGE):
            place = path.removeprefix(PACKAGE)
            room = place.split("/")[0]
            return f"{place}:{frame.f_lineno}" if room not in SUMMING else room
        frame = frame.f_back
    return "elsewhere"


@pytest.mark.parametrize(("settings", "solver"), RUNS, ids=[repr(solver)[:60] for _, solver in RUNS])
def test_only_the_rooms_for_it_sum_over_samples(settings, solver):
    problem = problem_of(**settings)
    with Contractions() as found:
        decouple(problem, solver)
    assert set(found.rooms) <= SUMMING
    assert found.rooms["sums.py"] > 10


def test_growing_sums_over_no_samples():
    problem = problem_of(rank=3)
    known = prepare(problem_of())[0]
    solver = Grow(ConstrainedALS(2).init(known, seeded(0)).factors)
    with Contractions() as found:
        decouple(problem, solver)
    assert set(found.rooms) <= SUMMING
    assert found.rooms["objective"] > 10


def test_every_solver_is_run():
    whole = {one for one in vars(solvers).values() if isinstance(one, type) and issubclass(one, Solver)}
    names = {one.__name__ for one in whole if not isabstract(one)}
    assert {name for name in names if not any(f"{name}(" in repr(solver) for _, solver in RUNS)} == set()


@pytest.mark.parametrize("source", ["H.mT @ H", "H.mean(0)", "H.norm()", "H @ H.new_ones(2) @ H[:, 0]", "H.any()"])
def test_a_sum_in_a_solver_is_found(source):
    code = compile(source, f"{PACKAGE}solvers/other.py", "eval")
    with Contractions() as found:
        eval(code, {"H": torch.ones(COUNT, 2)})
    assert set(found.rooms) == {"solvers/other.py:1"}


def test_a_sum_in_the_gradient_is_found():
    code = compile("(H @ V).square().sum()", f"{PACKAGE}objective/other.py", "eval")
    V = torch.ones(2, 1, requires_grad=True)
    loss = eval(code, {"H": torch.ones(COUNT, 2), "V": V})
    with Contractions() as found:
        eval(compile("loss.backward()", f"{PACKAGE}solvers/other.py", "eval"), {"loss": loss})
    assert set(found.rooms) == {"solvers/other.py:1"}


# ---- two halves ----


@dataclass
class Meeting:
    """Where two threads add up what each of them has, in the same order."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=10))
    here: threading.local = field(default_factory=threading.local)
    parts: list[Tensor] = field(default_factory=lambda: [torch.empty(0)] * 2)
    times: int = 0

    def over_samples(self, partial: Tensor, operation: str = "sum") -> Tensor:
        return Met.apply(partial, self, operation) if hasattr(self.here, "number") else partial

    def exchanged(self, partial: Tensor, operation: str) -> Tensor:
        self.parts[self.here.number] = partial
        self.barrier.wait()
        first, second = self.parts
        assert first.shape == second.shape
        self.times += 1
        self.barrier.wait()
        combine = {"sum": torch.add, "smallest": torch.minimum, "largest": torch.maximum}
        return combine[operation](first, second)


class Met(torch.autograd.Function):
    """A sum over both threads, whose gradient passes through."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, meeting: Meeting, operation: str) -> Tensor:
        return meeting.exchanged(partial.detach(), operation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Meeting:
    """`over_samples` adds up what two threads have."""
    one, original = Meeting(), sums.over_samples
    for name, module in list(sys.modules.items()):
        if name.startswith("tenflex.") and getattr(module, "over_samples", None) is original:
            monkeypatch.setattr(module, "over_samples", one.over_samples)
    for cached in (JacobianTensor.energy, Contracted.gram, *vars(CoefficientSystem).values()):
        if hasattr(cached, "lock"):  # before Python 3.12 one lock for all instances, so no two threads compute at once
            monkeypatch.setattr(cached, "lock", nullcontext())
    return one


Results = tuple[Any, ...]
PARTS = (torch.arange(0, COUNT, 3), torch.tensor([s for s in range(COUNT) if s % 3]))
"""A third of the samples, and the others."""


def in_halves(meeting: Meeting, task: Callable[[Tensor], Results]) -> list[Results]:
    """What two threads find, each with its part of the samples; what one of them raises is raised."""
    found: list[Any] = [None, None]

    def work(number: int) -> None:
        meeting.here.number = number
        try:
            with torch.no_grad():
                found[number] = task(PARTS[number])
        except BaseException as problem:  # the other must not wait
            found[number] = problem
            meeting.barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    broken = [one for one in found if isinstance(one, BaseException)]
    for one in sorted(broken, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
        raise one
    return found


def require_same(halves: list[Results], whole: Results, tolerance: float) -> None:
    """The same bits in both threads, and the numbers of all samples."""
    for first, second, expected in zip(*halves, whole, strict=True):
        one, other, all_samples = (torch.as_tensor(each, dtype=torch.float64) for each in (first, second, expected))
        assert torch.equal(one, other)
        assert one.isfinite().all()
        assert (one - all_samples).norm() <= tolerance * all_samples.norm() + 1e-13  # of numbers of about one


def value_and_gradient(exact: bool) -> Callable[[Prepared, Factors], Results]:
    def task(problem: Prepared, factors: Factors) -> Results:
        parameters = [one.clone().requires_grad_() for one in factors.tensors()]
        with torch.enable_grad():
            errors = problem.fitted.value(factors.with_tensors(parameters), exact)
            gradient = torch.autograd.grad(problem.fitted.total(*errors), parameters)
        return (*(one.detach() for one in errors), *gradient)

    return task


def loss_and_gradient(problem: Prepared, factors: Factors) -> Results:
    parameters = [one.clone().requires_grad_() for one in factors.tensors()]
    with torch.enable_grad():
        loss = problem.fitted.loss(factors.with_tensors(parameters))
        return loss.detach(), *torch.autograd.grad(loss, parameters)


def knots(problem: Prepared, factors: Factors) -> Results:
    levels = torch.tensor([0.1, 0.5, 0.55, 0.999], dtype=torch.float64)
    return quantiles(problem.fitted.inputs, levels), quantiles(problem.fitted.inputs.round(decimals=1), levels)


def moments(problem: Prepared, factors: Factors) -> Results:
    return output_moments(problem.fitted, factors)


def errors(problem: Prepared, factors: Factors) -> Results:
    objective = problem.fitted
    off = replace(factors, bias=factors.bias + 0.1)
    best, *least = objective.measured(factors)
    weights = objective.count, objective.mean, objective.size_j, objective.size_f
    return (*objective.errors(off), *least, best.bias, objective.with_best_bias(off).bias, *weights)


def newton(problem: Prepared, factors: Factors) -> Results:
    return normal_equations(problem, factors.full(), 0.3)


def system_at(problem: Prepared, factors: Factors) -> CoefficientSystem:
    one = factors.only
    activated = activate(one.basis, problem.fitted, factors.V, one.shift)
    return coefficient_system(problem, activated, factors.V, factors.W)


def coefficient_step(problem: Prepared, factors: Factors) -> Results:
    system, C = system_at(problem, factors), factors.only.coefficients
    parts = system.right(), system.dense(), system.diagonal(), system.apply(C)
    return *parts, system.solve(C, 1e-3), system.among(torch.arange(1), C).right()


def coefficients_one_by_one(problem: Prepared, factors: Factors) -> Results:
    """By conjugate gradients, and what a hat matrix with a small ridge gives: both forget digits."""
    system, C = system_at(problem, factors), factors.only.coefficients
    return system._iterate(system.right(), torch.zeros_like(C), 1e-3), system.freedom(1e-3)


def seen(state: State[Any]) -> Results:
    """The errors of layers, and the layers at some points."""
    somewhere = random(seeded(9), 20, len(state.factors.V)) / 2
    maps = state.factors.outputs(somewhere), state.factors.jacobians(somewhere)
    return *maps, state.factors.V, state.jacobian_error, state.output_error


def stepped(solver: Solver[Any]) -> Callable[[Prepared, Factors], Results]:
    """The layers after a step from given ones, as functions: with splines a constant may be in several coefficients."""

    def task(problem: Prepared, factors: Factors) -> Results:
        state: State[Any] = measured(problem, State(factors, None, smoothing=problem.smoothing or 0.0), factors)
        after = solver.step(problem, solver.resume(problem, state))
        return *seen(after), after.smoothing

    return task


def projected_step(problem: Prepared, factors: Factors) -> Results:
    after = ProjectedALS().step(problem, State(factors, None))
    return seen(after)


def decomposition(problem: Prepared, factors: Factors) -> Results:
    tensor = problem.fitted.jacobians
    parts = freed(tensor, factors.V, factors.W)
    V, W = improved_directions(tensor, parts)
    after = freed(tensor, V, W)
    length = longest_step(tensor, (parts.V, parts.W, parts.H), (V, W, after.H))
    core = multilinear_svd(tensor, 2)
    moves = V - parts.V, W - parts.W, after.H - parts.H
    searched = squared_norm((parts.V, parts.W, parts.H), moves), overlap(tensor, (parts.V, parts.W, parts.H), moves)
    bends = leading_rows(tensor.entries @ factors.V)
    axes = *(one @ one.mT for one in core.axes), *core.values[1:]
    return V, W, parts.error(tensor), after.error(tensor), length, *searched, bends @ bends.mT, *axes


def near_exact(problem: Prepared, factors: Factors) -> Results:
    """By residuals: the error of a decomposition that is almost exact, as a tensor of its own."""
    tensor = problem.fitted.jacobians
    parts = freed(tensor, factors.V, factors.W)
    model = torch.einsum("sr,nr,mr->snm", parts.H, parts.W, parts.V)
    near = type(tensor)(model + 1e-5 * tensor.entries)
    return (parts.error(near),)


def weighted_search(problem: Prepared, factors: Factors) -> Results:
    term, V, W = problem.fitted.term, factors.V, factors.W
    before = Decomposition(V, W, term.slopes(V, W))
    V = term.input_map(V, W, before.H)
    return V, longest_weighted_step(problem.fitted, before, Decomposition(V, W, term.slopes(V, W)))


def smoothing(problem: Prepared, factors: Factors) -> Results:
    return choose_smoothing(problem, system_at(problem, factors)), roughness(problem, factors, 0.5)


def layered(problem: Prepared, factors: Factors) -> Results:
    objective = problem.fitted
    slopes = factors.slopes(objective.inputs)
    maps = [paratuck.hidden_map(objective, factors, slopes, k) for k in range(1, len(slopes))]
    systems = [paratuck.coefficient_system(problem, factors, slopes, k) for k in range(len(slopes))]
    influence = paratuck.influence(objective, factors)
    return paratuck.input_map(objective, factors, slopes), *maps, *influence, *(one.dense() for one in systems)


def grown(problem: Prepared, factors: Factors) -> Results:
    rest = Rest(problem.fitted, factors)
    V, W = random(seeded(6), len(factors.V), 2), random(seeded(7), len(factors.W), 2)
    onward = rest._unfold(V, W, rest._onto(V, W))
    return *onward, rest.gains(problem, V, W, torch.zeros(2, dtype=V.dtype))


WEIGHTED = {"covariance": VARIANCES}
TASKS: dict[str, tuple[dict[str, Any], Callable[[Prepared, Factors], Results], float]] = {
    "value": (ONE, value_and_gradient(False), 1e-10),
    "value by residuals": (ONE, value_and_gradient(True), 1e-10),
    "value of splines": ({"basis": BSpline(6)}, value_and_gradient(False), 1e-10),
    "value of products": ({"factor": 1, "output_factor": 1}, value_and_gradient(False), 1e-10),
    "value of two layers": (TWO, value_and_gradient(False), 1e-10),
    "value of two layers by residuals": (TWO, value_and_gradient(True), 1e-10),
    "weighted value": (WEIGHTED, value_and_gradient(False), 1e-10),
    "block-weighted value": ({"covariance": BLOCKS}, value_and_gradient(False), 1e-10),
    "weighted value of two layers": ({**TWO, **WEIGHTED}, value_and_gradient(False), 1e-10),
    "loss": (ONE, loss_and_gradient, 1e-10),
    "loss of products": ({"factor": 1, "output_factor": 1}, loss_and_gradient, 1e-10),
    "quantile knots": (ONE, knots, 1e-13),
    "moments of the outputs": (ONE, moments, 1e-10),
    "errors": (ONE, errors, 1e-10),
    "errors of two layers": (TWO, errors, 1e-10),
    "weighted errors": (WEIGHTED, errors, 1e-10),
    "normal equations": ({"basis": SMOOTH}, newton, 1e-10),
    "normal equations of two layers": (TWO, newton, 1e-10),
    "weighted normal equations": (WEIGHTED, newton, 1e-10),
    "coefficients": ({"basis": PRICED}, coefficient_step, 1e-10),
    "weighted coefficients": ({"basis": PRICED, **WEIGHTED}, coefficient_step, 1e-10),
    "coefficients by conjugate gradients": ({"basis": SMOOTH}, coefficients_one_by_one, 1e-6),
    "smoothing": ({"basis": SMOOTH}, smoothing, 1e-10),
    "decomposition": (ONE, decomposition, 1e-10),
    "decomposition, nearly exact": (ONE, near_exact, 1e-8),
    "weighted decomposition": (WEIGHTED, weighted_search, 1e-10),
    "several layers": ({"rank": (2, 3, 2), "basis": SMOOTH}, layered, 1e-10),
    "one node more": (ONE, grown, 1e-10),
    "ConstrainedALS": (ONE, stepped(ConstrainedALS()), 1e-10),
    "ConstrainedALS, smooth": ({"basis": PRICED}, stepped(ConstrainedALS()), 1e-10),
    "ConstrainedALS, splines": ({"basis": SMOOTH}, stepped(ConstrainedALS()), 1e-8),
    # Where an inequality hardly holds its step is known to the root of the precision, 1.5e-8.
    "ConstrainedALS, monotone": ({"basis": MONOTONE}, stepped(ConstrainedALS()), 1e-7),
    "ConstrainedALS, hinges": ({"basis": Hinge(4)}, stepped(ConstrainedALS()), 1e-10),
    "ConstrainedALS, weighted": (WEIGHTED, stepped(ConstrainedALS()), 1e-10),
    "ProjectedALS": (ONE, projected_step, 1e-10),
    "StructuredCPD": (ONE, stepped(StructuredCPD(3, stride=3)), 1e-10),
    "WeightedCPD": (WEIGHTED, stepped(WeightedCPD(3, stride=3)), 1e-10),
    "LayeredALS": ({**TWO, "basis": SMOOTH}, stepped(LayeredALS()), 1e-8),
    "ProjectedLayeredALS": (TWO, stepped(ProjectedLayeredALS()), 1e-8),
    "GaussNewton": (ONE, stepped(GaussNewton()), 1e-8),
    "Refine": (ONE, stepped(Refine(3, stride=3)), 1e-8),
    "Refine, monotone": ({"basis": MONOTONE}, stepped(Refine(3, stride=3)), 1e-4),
    "Refine, two layers": (TWO, stepped(Refine(3, stride=3)), 1e-8),
    "Truncate": ({"factor": 1, "output_factor": 1}, stepped(Truncate()), 1e-10),
}


def some_layers(problem: Prepared) -> Factors:
    """Layers in the form that a problem asks for, not good ones, whose bases fit."""
    m, n = problem.fitted.inputs.shape[1], problem.fitted.centred.shape[1]
    sizes, generator = (m, *problem.ranks, n), seeded(5)
    maps = tuple((random(generator, a, b) / 4,) for a, b in pairwise(sizes))
    if problem.factor:
        maps = ((random(generator, m, problem.factor), random(generator, problem.factor, sizes[1])), *maps[1:])
    if problem.output_factor:
        maps = (*maps[:-1], (random(generator, sizes[-2], problem.output_factor), maps[-1][0][: problem.output_factor]))
    parts = [
        Activations(random(generator, r, problem.basis.size).abs(), torch.zeros(r).double(), problem.basis)
        for r in problem.ranks
    ]
    return Factors(maps, tuple(parts), random(generator, n))


def require_halves_agree(meeting: Meeting, name: str, tolerance: float) -> None:
    settings, task, _ = TASKS[name]
    problem = prepare(problem_of(**settings))[0]
    factors, samples = some_layers(problem), problem.fitted.samples

    def half(part: Tensor) -> Results:
        return task(replace(problem, fitted=Objective(samples.select(part), problem.fitted.coupling)), factors)

    with torch.no_grad():
        whole = task(problem, factors)
    require_same(in_halves(meeting, half), whole, tolerance)
    assert meeting.times > 4


@pytest.mark.parametrize("name", TASKS)
def test_two_halves_give_what_all_samples_give(name, meeting):
    require_halves_agree(meeting, name, TASKS[name][2])


def test_conjugate_gradients_for_a_hidden_map_meet_as_well(meeting, monkeypatch):
    monkeypatch.setattr(paratuck, "DENSE", 0)
    require_halves_agree(meeting, "several layers", 1e-6)


BASES = [Monomial(3), BSpline(6), Hinge(4), TwoSidedHinge(4)]


@pytest.mark.parametrize("basis", BASES, ids=repr)
def test_halves_place_a_basis_alike(basis, meeting):
    t = random(seeded(8), COUNT, 3) * 2 + 1
    require_same(in_halves(meeting, lambda part: basis.place(t[part])), basis.place(t), 1e-12)


@pytest.mark.parametrize("rule", [Standardize(), Whiten(), PerOutput()], ids=repr)
def test_halves_choose_the_same_coordinates(rule, meeting):
    def chosen(part: Tensor) -> Results:
        some = SAMPLES.select(part)
        one = rule.choose(some.inputs * torch.tensor([1.0, 5.0, 0.1]), some.outputs, some.jacobians)
        return one.mean, one.down @ one.down.mT, one.output_mean, one.output_down

    require_same(in_halves(meeting, chosen), chosen(torch.arange(COUNT)), 1e-12)


def test_halves_have_the_same_active_axes(meeting):
    def found(part: Tensor) -> Results:
        inner, outer = active_axes(SAMPLES.jacobians[part], 0.0)
        leading = inner[:, :1]
        return inner @ inner.mT, leading @ leading.mT, outer @ outer.mT

    require_same(in_halves(meeting, found), found(torch.arange(COUNT)), 1e-10)


def test_half_of_the_samples_alone_is_not_all():
    """The measure of the tests above: it tells a half from the whole."""
    objective = prepare(problem_of())[0].fitted
    half = Objective(objective.samples.select(PARTS[0]), 1.0)
    with pytest.raises(AssertionError):
        require_same([(half.size_j,)] * 2, (objective.size_j,), 1e-2)


def test_what_one_thread_raises_is_raised(meeting):
    def task(part: Tensor) -> Results:
        if part[0] == 1:
            raise ValueError("only here")
        return (sums.sum_of(part.double()),)

    with pytest.raises(ValueError, match="only here"):
        in_halves(meeting, task)


# ---- the helpers ----


def test_helpers_are_what_torch_gives(generator):
    x, y = random(generator, 7, 3), random(generator, 7, 2)
    torch.testing.assert_close(sums.mean_of(x), x.mean(0))
    torch.testing.assert_close(sums.centred(x), x - x.mean(0))
    torch.testing.assert_close(sums.gram_matrix(x, y), torch.einsum("si,sj->ij", x, y))
    torch.testing.assert_close(sums.squared_norm(x), sums.inner_product(x, x))
    assert torch.equal(sums.smallest(x), -sums.largest(-x))
    assert sums.sample_count(x) == 7


def test_samples_are_alike_only_without_any_difference():
    assert sums.alike(torch.ones(4, 3))
    assert not sums.alike(torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-7]]))


def test_shared_tensors_have_the_gradient_of_the_tensors_themselves(generator):
    V, x = random(generator, 3, 2).requires_grad_(), random(generator, 5, 3)
    expected = torch.autograd.grad((x @ V).square().sum(), V)[0]
    (same,) = sums.shared(V)
    assert torch.equal(torch.autograd.grad((x @ same).square().sum(), V)[0], expected)
