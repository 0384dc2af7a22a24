"""The covariance of the Jacobians: its forms, the weighted objective and its solvers, against dense references."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from planted import CUBIC, MORE_NODES, SUM_AND_DIFFERENCE, direction_error, factored, random, seeded
from torch import Tensor
from torch.func import jacrev

from tenflex.bases import BSpline, Monomial, Smooth
from tenflex.coordinates.active import to_active_axes
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.covariance import transformed
from tenflex.decouple import decouple
from tenflex.factors import Activations, Factors
from tenflex.objective.decomposition import Decomposition
from tenflex.objective.line_search import longest_weighted_step
from tenflex.objective.normal_equations import normal_equations
from tenflex.objective.objective import Objective
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import activate, coefficient_system, output_step
from tenflex.objective.weighted import WeightedMisfit
from tenflex.objective.weights import Blocks, Variances, weights_of
from tenflex.problem import Problem
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.solvers import (
    BestSoFar,
    Chain,
    ConstrainedALS,
    GaussNewton,
    Leading,
    MultiStart,
    ProjectedALS,
    Refine,
    Truncate,
    Unweighted,
    WeightedCPD,
    prepare,
)
from tenflex.solvers.base import State, measured
from tenflex.solvers.published.dreesen2015 import JacobianCPD
from tenflex.solvers.published.zniyed2021_structured import StructuredCPD

S, M, N, R = 7, 3, 2, 2
SIZE = N * M
FORMS = ["diagonal", "block", "full"]
forms = pytest.mark.parametrize("form", FORMS)


def spd(generator, size: int) -> Tensor:
    """A positive definite matrix with standard deviations from 0.3 to 3 or so, and correlations."""
    root = 0.7 * random(generator, size, size) / size**0.5 + torch.eye(size, dtype=torch.float64)
    scale = (random(generator, size) / 2).exp()
    return scale[:, None] * (root @ root.mT) * scale


def covariance_of(form: str, generator, count: int = S, n: int = N, m: int = M) -> Tensor:
    if form == "diagonal":
        return random(generator, count, n, m).exp().square()
    if form == "block":
        return torch.stack([spd(generator, n * m) for _ in range(count)])
    return spd(generator, count * n * m)


def dense(covariance: Tensor) -> Tensor:
    """The covariance of all entries, `(S n m, S n m)`, whatever the form."""
    if covariance.ndim == 2:
        return covariance
    if covariance.shape[1] == covariance.shape[2] == SIZE:
        return torch.block_diag(*covariance)
    return torch.diag(covariance.flatten())


def unrelated(form: str, generator) -> Samples:
    """Samples that no layer fits."""
    x, F, J = random(generator, S, M), random(generator, S, N), random(generator, S, N, M)
    return Samples(x, F, J, covariance=covariance_of(form, generator))


def layer(generator, basis=None, m: int = M, n: int = N, r: int = R) -> Factors:
    basis = basis or Monomial(3)
    V, W = random(generator, m, r) / 2, random(generator, n, r)
    C, shift = random(generator, r, basis.size), 0.1 * random(generator, r)
    return Factors.single(V, W, Activations(C, shift, basis), random(generator, n))


def prepared_at(samples: Samples, basis, generator, held_out: float = 0) -> tuple[Prepared, State]:
    """A problem and a state that is nowhere near its solution."""
    prepared, _ = prepare(Problem(samples, R, basis, held_out=held_out))
    m, n = prepared.fitted.inputs.shape[1], prepared.fitted.centred.shape[1]
    factors = layer(generator, prepared.basis, m, n)
    return prepared, measured(prepared, State(factors, 0.0, 0.0), factors)


# ---- the forms ----


@forms
def test_selected_samples_keep_their_part(form, generator):
    samples = unrelated(form, generator)
    index = torch.tensor([4, 0, 6])
    entries = (index[:, None] * SIZE + torch.arange(SIZE)).flatten()
    chosen = samples.select(index)
    assert chosen.covariance.ndim == samples.covariance.ndim
    torch.testing.assert_close(dense(chosen.covariance), dense(samples.covariance)[entries][:, entries], rtol=0, atol=0)


@forms
def test_samples_can_drop_it(form, generator):
    samples = unrelated(form, generator)
    plain = samples.unweighted()
    assert plain.covariance is None
    assert samples.covariance is not None
    assert torch.equal(plain.jacobians, samples.jacobians)


@forms
@pytest.mark.parametrize("shape", [(N, M), (N, 2), (1, M)], ids=str)
def test_the_covariance_of_a_linear_map_of_the_jacobians(form, shape, generator):
    """vec(L^T J R) = (L^T kron R^T) vec(J), sample by sample."""
    covariance = covariance_of(form, generator)
    left, right = random(generator, N, shape[0]), random(generator, M, shape[1])
    J = random(generator, S, N, M)

    def flat(J: Tensor) -> Tensor:
        return (left.mT @ J.view(S, N, M) @ right).flatten()

    A = jacrev(flat)(J.flatten())
    turned = transformed(covariance, left, right)
    expected = A @ dense(covariance) @ A.mT
    torch.testing.assert_close(torch.block_diag(*turned) if turned.ndim == 3 else turned, expected)
    torch.testing.assert_close(turned, turned.mT, rtol=0, atol=0)


def test_variances_stay_variances_where_entries_stay_apart(generator):
    covariance = covariance_of("diagonal", generator)
    exchange = torch.eye(M, dtype=torch.float64)[[2, 0, 1]] * torch.tensor([-2.0, 3.0, 0.5])
    scale = torch.diag(torch.tensor([5.0, -0.1], dtype=torch.float64))
    turned = transformed(covariance, scale, exchange)
    assert turned.shape == (S, N, M)
    A = torch.kron(scale.mT, exchange.mT)
    torch.testing.assert_close(torch.diag(turned[3].flatten()), A @ torch.diag(covariance[3].flatten()) @ A.mT)


@forms
@pytest.mark.parametrize("coordinates", [Standardize(), Whiten()], ids=repr)
def test_reduced_samples_have_the_covariance_of_their_jacobians(form, coordinates, generator):
    """The reduction of Jacobians is linear: A Sigma A^T, with A by autograd."""
    samples = unrelated(form, generator)
    reduction = coordinates.choose(samples.inputs, samples.outputs)
    reduced, turned = to_active_axes(samples.reduced(reduction), reduction, 0.0)

    def flat(J: Tensor) -> Tensor:
        return turned.jacobians(J.view(S, N, M)).flatten()

    A = jacrev(flat)(samples.jacobians.flatten())
    expected = A @ dense(samples.covariance) @ A.mT
    torch.testing.assert_close(dense(reduced.covariance), expected)


@pytest.mark.parametrize("form", ["diagonal", "block", "full"])
def test_prepared_problems_keep_the_form(form, generator):
    samples = unrelated(form, generator)
    prepared, reduction = prepare(Problem(samples, 1, Monomial(2), held_out=0))
    found = prepared.fitted.samples.covariance
    assert found.shape == samples.covariance.shape  # independent entries are not tied together by a rotation
    J = random(generator, S, N, M)
    A = jacrev(lambda J: reduction.jacobians(J.view(S, N, M)).flatten())(J.flatten())
    torch.testing.assert_close(dense(found), A @ dense(samples.covariance) @ A.mT)


@pytest.mark.parametrize("n", [1, 2])
def test_a_single_input_is_no_exception(n, generator):
    """With n = m = 1 the diagonal and the block form are the same."""
    J, x = random(generator, S, n, 1), random(generator, S, 1)
    variances = random(generator, S, n, 1).exp()
    samples = Samples(x, x.expand(S, n), J, covariance=variances)
    whole = Samples(x, x.expand(S, n), J, covariance=torch.diag(variances.flatten()))
    factors = layer(generator, m=1, n=n)
    torch.testing.assert_close(Objective(samples, 1.0).errors(factors), Objective(whole, 1.0).errors(factors))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda c: c.tolist(), TypeError, r"covariance must be a torch.Tensor, got list"),
        (lambda c: c.long(), TypeError, r"covariance must be real floating-point numbers, got torch.int64"),
        (
            lambda c: c[:-1],
            ValueError,
            r"covariance must have one of the shapes diagonal \(7, 2, 3\), block \(7, 6, 6\), full \(42, 42\) for 7 "
            r"Jacobians \(2, 3\), got \(6, 2, 3\)",
        ),
        (lambda c: c.mT, ValueError, r"covariance must have one of the shapes .*, got \(7, 3, 2\)"),
        (lambda c: c * torch.nan, ValueError, r"covariance must be finite, but 42 of 42 numbers are NaN or infinite"),
        (
            lambda c: c.index_fill(2, torch.tensor(1), 0.0),
            ValueError,
            r"the variances in covariance must be above 0, but that at \[0, 0, 1\] is 0: give entries that are known "
            r"exactly a small variance",
        ),
        (lambda c: -c, ValueError, r"must be above 0, but that at \[0, 0, 0\] is -"),
        (
            lambda c: -torch.diag_embed(c.flatten(1)),
            ValueError,
            r"must be positive definite, but its block of sample 0",
        ),
        (lambda c: torch.ones(42, 42), ValueError, r"covariance must be positive definite, but it is not: add a small"),
        (
            lambda c: torch.eye(42) + torch.ones(42, 42).triu(1),
            ValueError,
            r"covariance must be symmetric: pass \(C \+ C.mT\) / 2",
        ),
    ],
)
def test_what_is_no_covariance_is_refused(spoil, error, message, generator):
    samples = unrelated("diagonal", generator)
    with pytest.raises(error, match=message):
        replace(samples, covariance=spoil(samples.covariance))


def test_weights_need_a_covariance(generator):
    with pytest.raises(ValueError, match="expected samples with a covariance of their Jacobians, got samples without"):
        weights_of(unrelated("diagonal", generator).unweighted())


# ---- the weights ----


@forms
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_whitened_vectors_have_the_weighted_norm(form, chunk, monkeypatch, generator):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    samples = unrelated(form, generator)
    weights, inverse = weights_of(samples), torch.linalg.inv(dense(samples.covariance))
    x, y = random(generator, S, SIZE, 2), random(generator, S, SIZE, 2)
    parts = list(weights.parts(2))
    assert len(parts) == (1 if form == "full" or chunk > 1 else S)
    white, other = (torch.cat([weights.whiten(one[part], part) for part in parts]) for one in (x, y))
    products = x.flatten(0, 1).mT @ inverse @ x.flatten(0, 1)
    torch.testing.assert_close(white.flatten(0, 1).mT @ white.flatten(0, 1), products)
    back = torch.cat([weights.adjoint(one, part) for one, part in ((white[part], part) for part in parts)])
    torch.testing.assert_close(back.flatten(0, 1), inverse @ x.flatten(0, 1))
    torch.testing.assert_close((white * other).sum(), (back * y).sum())


@forms
def test_spreading_is_whitening_a_block_diagonal_matrix(form, generator):
    weights = weights_of(unrelated(form, generator))
    design = random(generator, SIZE, R)
    columns = torch.block_diag(*[design] * S).view(S, SIZE, S * R)
    whole = weights.whiten(columns, slice(0, S)).flatten(0, 1)
    torch.testing.assert_close(torch.block_diag(*weights.spread(design)), whole)


def test_the_forms_agree(generator):
    """Variances as blocks, and blocks as one matrix, are the same weights."""
    variances = covariance_of("diagonal", generator)
    blocks = torch.diag_embed(variances.flatten(1))
    x = random(generator, S, SIZE, 1)
    whole = slice(0, S)
    expected = Variances(variances.flatten(1)).whiten(x, whole)
    torch.testing.assert_close(Blocks(blocks, S).whiten(x, whole), expected)
    torch.testing.assert_close(Blocks(torch.block_diag(*blocks)[None], S).whiten(x, whole), expected)


# ---- the objective ----


@forms
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_objective_is_the_weighted_one(form, chunk, monkeypatch, generator):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    samples = unrelated(form, generator)
    factors = layer(generator)
    inverse = torch.linalg.inv(dense(samples.covariance))
    left = (samples.jacobians - factors.jacobians(samples.inputs)).flatten()
    expected = (left @ inverse @ left) / (samples.jacobians.flatten() @ inverse @ samples.jacobians.flatten())
    objective = Objective(samples, 2.0)
    for exact in (False, True):
        torch.testing.assert_close(objective.value(factors, exact)[0], expected)
    assert objective.errors(factors)[0] == pytest.approx(expected.item())
    assert objective.errors(factors)[1] == pytest.approx(Objective(samples.unweighted(), 2.0).errors(factors)[1])


@forms
def test_gradients_of_the_weighted_misfit_are_exact(form, generator):
    samples = unrelated(form, generator)
    term = Objective(samples, 1.0).term
    inputs = [random(generator, *shape).requires_grad_() for shape in ((M, R), (N, R), (S, R))]
    assert torch.autograd.gradcheck(lambda V, W, H: WeightedMisfit.apply(term, V, W, H), inputs)


@forms
def test_gradients_of_factored_maps_are_exact(form, generator):
    samples = unrelated(form, generator)
    objective, factors = Objective(samples, 1.0), layer(generator)
    factors = factors.with_map(0, random(generator, M, 1), random(generator, 1, R))
    tensors = [one.requires_grad_() for one in factors.tensors()]
    assert torch.autograd.gradcheck(lambda *all: objective.value(factors.with_tensors(all)), tensors)


@forms
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_objective_is_invariant(form, size, generator):
    """To the unit of the covariance, and to the coordinates of the Jacobians."""
    samples, factors = unrelated(form, generator), layer(generator)
    error = Objective(samples, 1.0).errors(factors)[0]
    assert Objective(replace(samples, covariance=size * samples.covariance), 1.0).errors(factors)[0] == (
        pytest.approx(error)
    )
    reduction = Whiten(0.0).choose(samples.inputs, samples.outputs)
    within = reduction.narrow(factors)
    assert Objective(samples.reduced(reduction), 1.0).errors(within)[0] == pytest.approx(error)


# ---- least-squares steps ----


def whitened_design(objective: Objective, rows) -> tuple[Tensor, Tensor]:
    """A and b of the plain least-squares problem in unknowns in which the model of vec(J) is linear, by autograd."""
    samples = objective.samples
    root = torch.linalg.inv(torch.linalg.cholesky(dense(samples.covariance)))
    A = jacrev(lambda x: rows(x).flatten())
    return lambda x: objective.weight_j.sqrt() * root @ A(x), objective.weight_j.sqrt() * root @ (
        samples.jacobians.flatten()
    )


@forms
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_step_in_v_is_generalized_least_squares(form, chunk, monkeypatch, generator):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    objective = Objective(unrelated(form, generator), 1.0)
    V, W, H = random(generator, M, R), random(generator, N, R), random(generator, S, R)
    design, b = whitened_design(objective, lambda v: torch.einsum("sr,nr,mr->snm", H, W, v.view(M, R)))
    expected = torch.linalg.lstsq(design(V.flatten()), b, driver="gelsd").solution
    torch.testing.assert_close(objective.term.input_map(V, W, H).flatten(), expected)


@forms
def test_free_slopes_are_generalized_least_squares(form, generator):
    objective = Objective(unrelated(form, generator), 1.0)
    V, W, H = random(generator, M, R), random(generator, N, R), random(generator, S, R)
    design, b = whitened_design(objective, lambda h: torch.einsum("sr,nr,mr->snm", h.view(S, R), W, V))
    expected = torch.linalg.lstsq(design(H.flatten()), b, driver="gelsd").solution
    torch.testing.assert_close(objective.term.slopes(V, W).flatten(), expected)


@forms
@pytest.mark.parametrize("basis", [Monomial(3), Smooth(BSpline(6), 0.3)], ids=repr)
def test_the_steps_in_c_and_w_are_generalized_least_squares(form, basis, generator):
    """At the solution of each step, the gradient of the weighted objective in its unknowns vanishes."""
    prepared, state = prepared_at(unrelated(form, generator), basis, generator)
    factors, objective = state.factors, prepared.fitted
    activated = activate(factors.only.basis, objective, factors.V, factors.only.shift)
    smoothing = 0.0 if prepared.penalty is None else 0.3

    def total(C: Tensor, W: Tensor) -> Tensor:
        errors = objective.value(factors.with_activations(0, coefficients=C).with_map(-1, W.mT))
        total = objective.total(*errors)
        if prepared.penalty is not None:
            price = torch.einsum("rd,de,re->r", C, prepared.penalty, C)
            total = total + smoothing * objective.weight_f * (W.square().sum(0) * price).sum()
        return total

    def slope(C: Tensor, W: Tensor, argument: int) -> Tensor:
        with torch.enable_grad():
            inputs = [C.clone().requires_grad_(), W.clone().requires_grad_()]
            return torch.autograd.grad(total(*inputs), inputs[argument])[0]

    C, W = factors.only.coefficients, factors.W
    system = coefficient_system(prepared, activated, factors.V, W)
    torch.testing.assert_close(system.dense() @ C.flatten(), system.apply(C).flatten())
    blocks = system.diagonal_blocks()
    size = blocks.shape[1]
    for k, block in enumerate(blocks):
        part = slice(k * size, (k + 1) * size)
        torch.testing.assert_close(system.dense()[part, part], block)
    best = system.solve(C, smoothing)
    size = slope(C, W, 0).abs().max().item()
    assert slope(best, W, 0).abs().max().item() < 1e-7 * size  # a ridge of 1e-9
    W = output_step(prepared, activated, factors.V, W, C, smoothing).W
    assert slope(C, W, 1).abs().max().item() < 1e-9 * slope(C, factors.W, 1).abs().max().item()


@forms
def test_groups_of_nodes_see_what_the_others_leave(form, generator):
    """With some nodes fixed, the system of the others is the whole one restricted."""
    prepared, state = prepared_at(unrelated(form, generator), Monomial(3), generator)
    factors = state.factors
    activated = activate(factors.only.basis, prepared.fitted, factors.V, factors.only.shift)
    system = coefficient_system(prepared, activated, factors.V, factors.W)
    nodes, C = torch.tensor([1]), factors.only.coefficients
    some = system.among(nodes, C)
    whole = system.right() - system.apply(C)
    torch.testing.assert_close(some.right() - some.apply(C[nodes]), whole[nodes])


@forms
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_the_rows_of_gauss_newton_are_whitened(form, chunk, monkeypatch, generator):
    """`D^T e` is minus half the gradient of the weighted objective, and `D^T D` its Hessian for a small residual."""
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    prepared, state = prepared_at(unrelated(form, generator), Monomial(3), generator)
    gram, slope = normal_equations(prepared, state.factors, state.smoothing)
    objective, factors = prepared.fitted, state.factors
    with torch.enable_grad():
        unknowns = [one.clone().requires_grad_() for one in factors.tensors()]
        errors = objective.value(factors.with_tensors(unknowns))
        gradient = torch.autograd.grad(errors[0] + objective.coupling * errors[1], unknowns)
    torch.testing.assert_close(slope, -torch.cat([one.flatten() for one in gradient]) / 2)
    # On the samples of the layer itself the residual is zero.
    exact = replace(
        objective.samples, outputs=factors.outputs(objective.inputs), jacobians=factors.jacobians(objective.inputs)
    )
    exact = replace(prepared, fitted=Objective(exact, objective.coupling))
    gram = normal_equations(exact, state.factors, state.smoothing)[0]

    def misfit(flat: Tensor) -> Tensor:
        moved = factors.with_flat(flat)
        left = (exact.fitted.samples.jacobians - moved.jacobians(objective.inputs)).flatten()
        outputs = exact.fitted.samples.outputs - moved.outputs(objective.inputs)
        outputs = outputs - outputs.mean(0)
        inverse = torch.linalg.inv(dense(objective.samples.covariance))
        return exact.fitted.weight_j * left @ inverse @ left + exact.fitted.weight_f * outputs.square().sum()

    flat = factors.flat()
    torch.testing.assert_close(2 * gram, torch.func.hessian(misfit)(flat), rtol=1e-6, atol=1e-8)


# ---- solvers ----


def weighted(planted, form: str, generator, **settings) -> Problem:
    """The problem of a planted layer, whose Jacobians have a covariance though they have no errors."""
    problem = planted.problem(**settings)
    covariance = covariance_of(form, generator, *problem.samples.jacobians.shape)
    return replace(problem, samples=replace(problem.samples, covariance=covariance))


SOLVERS = {
    "default": None,
    "constrained ALS, Gauss-Newton": MultiStart(Chain((ConstrainedALS(10), GaussNewton(60))), 4),
    "constrained ALS, refine": Chain(
        (MultiStart(Chain((ConstrainedALS(10), Refine(40))), 3), Refine(200, tolerance=0.0))
    ),
    "weighted CPD": MultiStart(WeightedCPD(200, tolerance=1e-9), 2),
    "weighted CPD, Gauss-Newton": Chain((MultiStart(WeightedCPD(20), 3), GaussNewton(60))),
    "unweighted start": Chain((Unweighted(MultiStart(ConstrainedALS(10), 6)), GaussNewton(60))),
}


@forms
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_exact_jacobians_are_found_under_any_covariance(form, solver, generator):
    planted = replace(SUM_AND_DIFFERENCE, inputs=SUM_AND_DIFFERENCE.inputs[:40])
    solution = decouple(weighted(planted, form, generator, held_out=0), solver)
    assert direction_error(solution.factors, planted.factors) < 1e-6


@pytest.mark.parametrize("planted", [CUBIC, MORE_NODES], ids=["cubic", "more nodes"])
def test_planted_layers_are_found_to_rounding(planted, generator):
    solution = decouple(weighted(planted, "diagonal", generator))
    assert solution.result is Result.EXACT
    assert direction_error(solution.factors, planted.factors) < 1e-8


@pytest.mark.parametrize("form", ["diagonal", "block"])
def test_factored_maps_are_found_without_leading_axes(form, generator):
    planted = factored(4, 3, 2, 1, None, seed=1, count=60)
    solution = decouple(weighted(planted, form, generator))
    assert list(map(len, solution.factors.maps)) == [2, 1]
    assert solution.output_error < 1e-6


def constant(problem: Problem, form: str, size: float) -> Problem:
    """The same problem with all errors alike, said in one of the three forms."""
    J = problem.samples.jacobians
    covariance = {
        "diagonal": torch.full_like(J, size),
        "block": size * torch.eye(J[0].numel(), dtype=J.dtype).expand(len(J), -1, -1),
        "full": size * torch.eye(J.numel(), dtype=J.dtype),
    }[form]
    return replace(problem, samples=replace(problem.samples, covariance=covariance))


@forms
@pytest.mark.parametrize(
    "solver",
    [ConstrainedALS(3), Refine(5), GaussNewton(3), WeightedCPD(6, stride=2)],
    ids=lambda one: type(one).__name__,
)
def test_equal_errors_give_the_unweighted_answer(form, solver, generator):
    """Step by step, from the same layer, up to rounding."""
    samples = unrelated("diagonal", generator).unweighted()
    samples = samples.reduced(Standardize().choose(samples.inputs, samples.outputs))
    problem = Problem(samples, R, Monomial(2), held_out=0)
    factors = layer(generator, Monomial(2))

    def run(problem: Problem) -> Factors:
        prepared, _ = prepare(problem)
        own = replace(prepared.basis, basis=factors.only.basis, template=prepared.basis.basis)
        within = factors.with_activations(0, basis=own)
        state = solver.resume(prepared, measured(prepared, State(within, None), within))
        while not solver.finished(prepared, state):
            state = solver.step(prepared, state)
        return state.factors

    x = problem.samples.inputs
    expected, found = run(problem), run(constant(problem, form, 7.3))
    torch.testing.assert_close(found.outputs(x), expected.outputs(x), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.jacobians(x), expected.jacobians(x), rtol=1e-6, atol=1e-8)


@forms
def test_the_error_of_the_weighted_decomposition_never_rises(form, generator):
    prepared, _ = prepare(Problem(unrelated(form, generator), R, Monomial(2), held_out=0))
    solver = WeightedCPD(40, stride=1, tolerance=0.0)
    state = solver.init(prepared, generator)
    errors = [state.memory.error]
    while not solver.finished(prepared, state):
        state = solver.step(prepared, state)
        errors.append(state.memory.error)
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@forms
def test_longer_steps_minimize_the_weighted_error(form, generator):
    """Among the steps on a fine grid, by the dense error."""
    objective = Objective(unrelated(form, generator), 1.0)
    before, after = (
        Decomposition(random(generator, M, R), random(generator, N, R), random(generator, S, R)) for _ in range(2)
    )
    inverse = torch.linalg.inv(dense(objective.samples.covariance))

    def error(rho: float) -> float:
        V, W, H = (torch.lerp(getattr(before, k), getattr(after, k), rho) for k in "VWH")
        left = (objective.samples.jacobians - torch.einsum("sr,nr,mr->snm", H, W, V)).flatten()
        return (left @ inverse @ left).item()

    grid = [error(rho) for rho in torch.logspace(0, 2, 1000, dtype=torch.float64).tolist()]
    assert error(longest_weighted_step(objective, before, after)) <= 1.01 * min(grid)


@pytest.mark.parametrize("solver", [Refine(30), GaussNewton(10)], ids=lambda one: type(one).__name__)
@forms
def test_refinements_lower_the_weighted_objective(form, solver, generator):
    problem = Problem(unrelated(form, generator), R, Monomial(2), held_out=0)
    solution = decouple(problem, Chain((ConstrainedALS(2), solver)))
    errors = [one.jacobian_error + problem.coupling * one.output_error for one in solution.history]
    first = next(i for i, one in enumerate(solution.history) if one.stage != "constrained ALS")
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors[first - 1 :]))
    assert errors[-1] < errors[first - 1]


# ---- noise ----


def uneven(form: str, generator, J: Tensor) -> Tensor:
    """A covariance with standard deviations from 0.02 to 2."""
    size = 0.02 * (4.6 * torch.rand(J.shape, generator=generator, dtype=J.dtype)).exp()
    if form == "diagonal":
        return size.square()
    if form == "block":
        size = size.flatten(1)
        return torch.stack([one[:, None] * spd(generator, len(one)) * one for one in size])
    return size.flatten()[:, None] * spd(generator, J.numel()) * size.flatten()


def noisy(seed: int, form: str) -> Problem:
    """The cubic of 2015 with Jacobians of which some entries are a hundred times less certain than others."""
    generator = seeded(seed)
    planted = replace(CUBIC, inputs=2 * torch.rand(60, 2, generator=generator, dtype=torch.float64) - 1)
    problem = planted.problem(held_out=0, coupling=1.0)
    J = problem.samples.jacobians
    covariance = uneven(form, generator, J)
    root = torch.linalg.cholesky(covariance if form == "full" else dense_of(covariance, J))
    errors = (root @ random(generator, J.numel())).view_as(J)
    return replace(problem, samples=replace(problem.samples, jacobians=J + errors, covariance=covariance))


def dense_of(covariance: Tensor, J: Tensor) -> Tensor:
    """The covariance of all entries of these Jacobians, for the two sparse forms."""
    if covariance.shape == J.shape:
        return torch.diag(covariance.flatten())
    return torch.block_diag(*covariance)


PLAIN_CPD = MultiStart(JacobianCPD(60), 2)
COUPLED = MultiStart(Chain((ConstrainedALS(10), GaussNewton(30))), 2)
CONTESTS = {
    "CPD": (Chain((Unweighted(PLAIN_CPD), WeightedCPD(60))), PLAIN_CPD),
    "coupled": (COUPLED, COUPLED),
}


@pytest.mark.parametrize(
    "form", ["diagonal", pytest.param("block", marks=pytest.mark.slow), pytest.param("full", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("with_it", "without"), CONTESTS.values(), ids=CONTESTS)
def test_weighted_solvers_win_where_errors_differ(form, with_it, without):
    """The directions are nearer to the planted ones for every draw of the noise, and typically several times."""
    ratios = []
    for seed in range(5):
        problem = noisy(seed, form)
        plain = replace(problem, samples=problem.samples.unweighted())
        known, ignored = decouple(problem, with_it), decouple(plain, without)
        ratios.append(direction_error(known.factors, CUBIC.factors) / direction_error(ignored.factors, CUBIC.factors))
    assert sorted(ratios)[2] < 0.5
    assert max(ratios) < 1


# ---- who may ignore it ----


@pytest.mark.parametrize(
    "solver",
    [
        ProjectedALS(2),
        JacobianCPD(2),
        BestSoFar(ProjectedALS(2)),
        MultiStart(Chain((ConstrainedALS(1), BestSoFar(JacobianCPD(2)))), 2),
        Chain((ConstrainedALS(1), MultiStart(StructuredCPD(1)))),
    ],
    ids=repr,
)
def test_solvers_that_would_ignore_it_are_refused(solver, generator):
    names = "ProjectedALS|JacobianCPD|StructuredCPD"
    message = (
        rf"^({names}) does not use the covariance of the Jacobians: use WeightedCPD, ConstrainedALS, Refine or "
        r"GaussNewton, or drop it with samples.unweighted\(\)"
    )
    problem = weighted(CUBIC, "diagonal", generator)
    with pytest.raises(ValueError, match=message):
        decouple(problem, solver)
    if not isinstance(solver, Chain):
        decouple(replace(problem, samples=problem.samples.unweighted()), solver)
        decouple(problem, Unweighted(solver))


def test_leading_axes_are_refused(generator):
    with pytest.raises(ValueError, match="Leading takes the axes along which plain Jacobians are largest"):
        decouple(weighted(CUBIC, "block", generator, factor=1), Leading(ConstrainedALS(1)))


def test_every_solver_says_whether_it_uses_it(generator):
    weighted = prepare(Problem(unrelated("diagonal", generator), R, Monomial(2)))[0]
    using = (ConstrainedALS(), Refine(), GaussNewton(), WeightedCPD(), Truncate())
    assert [one.refusal(weighted) for one in using] == [None] * 5
    for one in (ProjectedALS(), JacobianCPD(), StructuredCPD()):
        assert "does not use the covariance" in one.refusal(weighted)
        assert Unweighted(one).refusal(weighted) is None


@forms
def test_an_unweighted_start_is_the_start_without_weights(form, generator):
    """The same states, with the errors of the weighted problem."""
    problem = weighted(CUBIC, form, generator, held_out=0)
    prepared, _ = prepare(problem)
    plain = replace(prepared, fitted=Objective(prepared.fitted.samples.unweighted(), problem.coupling))
    inside = ConstrainedALS(4)
    solver = Unweighted(inside)
    expected, state = inside.init(plain, seeded(3)), solver.init(prepared, seeded(3))
    while not solver.finished(prepared, state):
        assert not inside.finished(plain, expected)
        expected, state = inside.step(plain, expected), solver.step(prepared, state)
        torch.testing.assert_close(state.factors.tensors(), expected.factors.tensors())
        assert state.jacobian_error == pytest.approx(prepared.fitted.errors(state.factors)[0])
    assert inside.finished(plain, expected)
    assert state.jacobian_error != pytest.approx(expected.jacobian_error)


def test_an_unweighted_solver_can_follow_another(generator):
    solver = Chain((ConstrainedALS(2), Unweighted(Refine(20)), GaussNewton(40)))
    solution = decouple(weighted(CUBIC, "diagonal", generator), MultiStart(solver, 4))
    assert direction_error(solution.factors, CUBIC.factors) < 1e-6


def test_only_solvers_can_be_unweighted():
    with pytest.raises(TypeError, match=r"solver must be a solver such as ConstrainedALS\(\), got 3"):
        Unweighted(3)
