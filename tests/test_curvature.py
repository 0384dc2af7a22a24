"""The coordinates of the exact refinement: what they are, and that they lead lower."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import torch
from planted import random, seeded, state_at
from torch import Tensor

from tenflex.bases import BSpline, Monomial
from tenflex.decouple import decouple
from tenflex.factors import Activations, Factors
from tenflex.objective.curvature import Scaling, moments_of, root, scalings
from tenflex.objective.objective import Objective
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.solvers import Chain, JacobianCPD, MultiStart, Refine

S, M, N, R = 40, 5, 4, 3


def layer(generator, factored: bool = False, basis=None) -> Factors:
    basis = basis or Monomial(3)
    V = (random(generator, M, 2), random(generator, 2, R)) if factored else (random(generator, M, R),)
    W = (random(generator, R, 2), random(generator, 2, N)) if factored else (random(generator, R, N),)
    activations = Activations(random(generator, R, basis.size), random(generator, R), basis)
    return Factors((V, W), (activations,), random(generator, N))


def samples(generator, views: int | None = None) -> Samples:
    x, F, J = random(generator, S, M), random(generator, S, N), random(generator, S, N, M)
    if views is None:
        return Samples(x, F, J)
    u = random(generator, S, views, N)
    return Samples(x, F, u @ J, directions=u)


def test_moments_are_sums_over_samples(monkeypatch) -> None:
    objective, factors = Objective(samples(seeded(0)), 3.0), layer(seeded(1))
    G, H, K = factors.only.curves(objective.inputs @ factors.V + factors.only.shift)
    G = G - G.mean(0)
    for chunk in (1, 2**22):
        monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
        seen = moments_of(objective, factors)
        torch.testing.assert_close(seen.values, G.mT @ G)
        torch.testing.assert_close(seen.slopes, H.mT @ H)
        torch.testing.assert_close(seen.bends, K.mT @ K)
        torch.testing.assert_close(seen.inputs, objective.inputs.mT @ objective.inputs)


def test_a_root_makes_a_matrix_the_identity_but_for_its_damping() -> None:
    A = random(seeded(0), 30, R)
    P = root(A.mT @ A, 0.1)
    torch.testing.assert_close(P.mT @ (A.mT @ A + 0.1 * torch.diag((A.mT @ A).diagonal())) @ P, torch.eye(R).double())
    for nothing in (torch.zeros(R, R).double(), torch.full((R, R), torch.nan).double()):
        torch.testing.assert_close(root(nothing, 0.1), torch.eye(R).double())


@pytest.mark.parametrize("factored", [False, True])
def test_the_output_map_curves_as_its_normal_equations_say(factored: bool, monkeypatch) -> None:
    """In it the objective is quadratic and the Kronecker product exact: all second differences are those of |Y|^2."""
    monkeypatch.setattr("tenflex.objective.curvature.DAMPING", 1e-9)
    monkeypatch.setattr("tenflex.objective.curvature.FEW", 0.0)
    objective, factors = Objective(samples(seeded(0)), 3.0), layer(seeded(1), factored)
    place = len(factors.maps[0])
    before, scaling = list(factors.tensors()), scalings(objective, factors)[place]

    def loss(Y: Tensor) -> float:
        moved = [*before[:place], scaling.moved(before[place], Y), *before[place + 1 :]]
        return float(objective.total(*objective.value(factors.with_tensors(moved))))

    directions = random(seeded(2), 6, *before[place].shape)
    for Y in directions:
        assert loss(Y) - 2 * loss(0 * Y) + loss(-Y) == pytest.approx(2 * float(Y.square().sum()), rel=1e-6)


def test_the_fewer_the_samples_the_shorter_are_steps() -> None:
    """Of the same samples again and again the mean objective is the same, and its flat directions are believed."""
    few, factors = samples(seeded(0)), layer(seeded(1))
    many = Samples(*(each.repeat(50, *[1] * (each.ndim - 1)) for each in (few.inputs, few.outputs, few.jacobians)))
    long, short = (scalings(Objective(each, 3.0), factors) for each in (many, few))
    for X, *both in zip(factors.tensors(), long, short, strict=True):
        reach = []
        for one in both:
            ends = (one.left, one.right)[: X.ndim]
            sides = [torch.eye(n).double() if P is None else P for n, P in zip(X.shape, ends, strict=True)]
            whole = reduce(lambda A, B: torch.kron(A.contiguous(), B.contiguous()), sides)
            reach.append(whole @ whole.mT)
        assert torch.linalg.eigvalsh(reach[0] - reach[1]).amin() > 0


def test_of_outputs_alone_no_jacobians_count() -> None:
    whole = samples(seeded(0))
    alone = Samples(whole.inputs, whole.outputs, whole.jacobians[:, :0], directions=whole.inputs.new_zeros(S, 0, N))
    free = Objective(whole, 3.0)
    free.weight_j = torch.zeros_like(free.weight_j)
    for one, other in zip(
        scalings(Objective(alone, 3.0), layer(seeded(1))), scalings(free, layer(seeded(1))), strict=True
    ):
        torch.testing.assert_close(one.left, other.left)
        torch.testing.assert_close(one.right, other.right)


@pytest.mark.parametrize("k", [None, 0, 2])
@pytest.mark.parametrize("factored", [False, True])
def test_how_a_node_is_shared_out_between_its_map_and_its_function_changes_nothing(k, factored: bool) -> None:
    """Without coordinates the descent would be another one."""
    problem = Problem(samples(seeded(0), k), R, Monomial(3), factor=2 if factored else None, held_out=0)
    one = layer(seeded(1), factored)
    shares = torch.tensor([8.0, 0.25, 2.0], dtype=torch.float64)
    outer = list(one.maps[1])
    outer[0] = shares[:, None] * outer[0]
    other = replace(one, maps=(one.maps[0], tuple(outer)))
    other = other.with_activations(0, coefficients=one.only.coefficients / shares[:, None])
    if factored:
        one, other = (replace(each, maps=(each.maps[0], (each.map(-1),))) for each in (one, other))
    reached = {}
    for renewal in (0, 2):
        solver, errors = Refine(40, single=False, renewal=renewal), []
        for factors in (one, other):
            prepared, state = state_at(problem, factors)
            state = solver.resume(prepared, state)
            for _ in range(4):
                state = solver.step(prepared, state)
            errors.append(prepared.fitted.total(state.jacobian_error, state.output_error))
        reached[renewal] = errors
    assert reached[2][1] == pytest.approx(reached[2][0], rel=1e-6)
    assert reached[0][1] != pytest.approx(reached[0][0], rel=1e-4)


def test_the_error_falls_faster() -> None:
    """Where inputs and outputs matter unequally, as in trained networks."""
    for seed in range(3):
        generator, unequal = seeded(seed), (torch.logspace(0, -1, n, dtype=torch.float64) for n in (20, 8))
        V, W = next(unequal)[:, None] * random(generator, 20, 60), random(generator, 60, 8) * next(unequal)
        seen = sample(lambda x, V=V, W=W: torch.tanh(x @ V) @ W, random(generator, 150, 20))
        problem = Problem(seen, 10, BSpline(7), held_out=0)
        errors = []
        for renewal in (0, 5):
            found = decouple(problem, Chain((MultiStart(JacobianCPD(10), 1), Refine(40, renewal=renewal))))
            errors.append(found.jacobian_error**2 + problem.coupling * found.output_error**2)
        assert errors[1] < errors[0]


def test_a_layer_that_does_nothing_has_coordinates() -> None:
    objective, factors = Objective(samples(seeded(0)), 3.0), layer(seeded(1))
    for silent in (
        factors.with_map(-1, torch.zeros(R, N).double()),
        factors.with_map(0, torch.zeros(M, R).double()),
        factors.with_activations(0, coefficients=torch.zeros(R, 3).double()),
    ):
        for one in scalings(objective, silent):
            assert all(torch.isfinite(each).all() for each in (one.left, one.right) if each is not None)


def test_the_identity_moves_by_what_it_is_told() -> None:
    X, Y = random(seeded(0), 2, 3), random(seeded(1), 2, 3)
    assert torch.equal(Scaling().moved(X, Y), X + Y)


def test_a_number_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="renewal must be"):
        Refine(renewal=-1)


def test_memory_of_the_descent_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr("tenflex.solvers.refine.HELD", 200)
    problem = Problem(samples(seeded(0)), R, Monomial(3), held_out=0)
    prepared, state = state_at(problem, layer(seeded(1)))
    solver = Refine(10)
    state = solver.step(prepared, solver.resume(prepared, state))
    unknowns = sum(one.numel() for one in state.factors.tensors())
    assert state.memory.history == 200 // (2 * unknowns)
