"""Cores of tensors: what they hold and drop, that sweeps on them are sweeps on the tensor, and when they are made."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from planted import direction_error, factored, random, seeded
from test_cpd import noisy, states, with_hessians
from test_objective import Largest
from torch import Tensor

from tenflex.bases import Monomial
from tenflex.decouple import decouple
from tenflex.objective.compressed import compressed, core_shape, counted, pays, swept, triangular, width
from tenflex.objective.decomposition import Decomposition, freed
from tenflex.objective.tensor import JacobianTensor
from tenflex.problem import Problem
from tenflex.result import Result
from tenflex.samples import Samples
from tenflex.solvers import HessianCPD, JacobianCPD, prepare
from tenflex.solvers.cpd import CORES, Inside, core_of, led_back, led_in, random_directions

DTYPES = [torch.float32, torch.float64]
SIZES = {"samples and inputs": (300, 6, 50), "all modes": (90, 40, 30), "inputs": (12, 5, 80), "samples": (400, 7, 9)}
"""What is cut for rank 3, of which cores have 11 numbers along each mode."""


def low_rank(shape: tuple[int, int, int], rank: int = 3, level: float = 0.0, seed: int = 0) -> Tensor:
    """A tensor of a rank with noise on it, relative to its size."""
    generator = seeded(seed)
    J = torch.einsum("sr,nr,mr->snm", *(random(generator, size, rank) for size in shape))
    return J + level * J.square().mean().sqrt() * random(generator, *shape)


def core_for(J: Tensor, rank: int = 3):
    return compressed(JacobianTensor(J), rank, seeded(0))


def dense(core) -> Tensor:
    """The tensor that a core stands for."""
    J = core.core.entries
    for mode, basis in enumerate((core.samples, core.outputs, core.inputs)):
        if basis is not None:
            J = torch.tensordot(J, basis, dims=([mode], [1])).movedim(-1, mode)
    return J


def relative(J: Tensor, other: Tensor) -> float:
    return ((J - other).norm() / J.norm()).item()


def inside(core, rank: int, seed: int = 0) -> Decomposition:
    """Factors in the bases of a core, and the best H."""
    return freed(core.core, *random_directions(core.core, rank, seeded(seed)))


# ---- the core ----


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_the_core_holds_all_of_a_tensor_of_low_rank(shape, dtype):
    J = low_rank(shape).to(dtype)
    core = core_for(J)
    eps = torch.finfo(dtype).eps
    assert core.core.entries.shape == core_shape(shape, 3) != shape
    assert core.core.entries.dtype == dtype
    assert core.lossless
    assert relative(J, dense(core)) < 100 * eps
    for basis in filter(lambda one: one is not None, (core.samples, core.outputs, core.inputs)):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=dtype), rtol=0, atol=100 * eps)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_what_is_dropped_is_counted(shape):
    """From a large share, by norms, to one that no difference of norms could show."""
    for level in (0.3, 1e-4, 1e-9):
        J = low_rank(shape, level=level)
        core = core_for(J)
        assert not core.lossless
        assert core.dropped == pytest.approx(relative(J, dense(core)) ** 2, rel=1e-6)
        assert 0.1 * level**2 < core.dropped < level**2


def test_small_but_exact_directions_are_kept():
    """Singular values over six orders of magnitude: Gram matrices would have lost the least ones in rounding."""
    generator = seeded(0)
    factors = [random(generator, size, 6) for size in (400, 8, 60)]
    J = torch.einsum("sr,nr,mr,r->snm", *factors, torch.logspace(0, -6, 6, dtype=torch.float64))
    core = core_for(J, rank=6)
    assert core.core.entries.numel() < J.numel() / 20
    assert core.lossless
    assert relative(J, dense(core)) < 1e-14


def test_the_core_is_about_as_good_as_the_best_one():
    """Of a tensor with noise: what is left outside of the leading singular vectors, and little more."""
    J = low_rank((300, 8, 60), rank=5, level=0.05)
    kept, best = width(5), 0.0
    for mode in (0, 2):
        values = torch.linalg.svdvals(J.movedim(mode, 0).flatten(1))
        best += float(values[kept:].square().sum() / values.square().sum())
    assert core_for(J, rank=5).dropped < 1.1 * best


def test_many_samples_are_replaced_by_a_triangle():
    """Nothing is dropped, whatever the tensor, and every inner product over the samples stays."""
    J = random(seeded(0), 500, 3, 4)
    assert triangular(J.shape, 3)
    core = core_for(J)
    assert core.core.entries.shape == (12, 3, 4)
    assert core.summed_up
    assert core.samples is core.inputs is core.outputs is None
    products = torch.einsum("snm,sij->nmij", J, J)
    torch.testing.assert_close(torch.einsum("snm,sij->nmij", core.core.entries, core.core.entries), products)


def test_the_triangle_is_made_by_parts(monkeypatch):
    J = JacobianTensor(random(seeded(0), 500, 3, 4))
    whole = compressed(J, 3, seeded(0)).core.entries.flatten(1)
    monkeypatch.setattr("tenflex.sums.CHUNK", 12 * 40)
    with Largest(J.entries) as largest:
        parts = compressed(J, 3, seeded(0)).core.entries.flatten(1)
    torch.testing.assert_close(parts.mT @ parts, whole.mT @ whole)
    assert largest.numbers <= 12 * (40 + 12)


@pytest.mark.parametrize("level", [0.0, 0.1])
@pytest.mark.parametrize("shape", [*SIZES.values(), (500, 3, 4)], ids=[*SIZES, "triangle"])
def test_the_error_on_the_core_is_that_of_the_tensor(shape, level):
    """Pythagoras: for factors in the bases the dropped energy is all that is to be added."""
    J = low_rank(shape, level=level)
    core = core_for(J)
    parts = inside(core, 2)
    found = led_back(JacobianTensor(J), core, parts)
    model = torch.einsum("sr,nr,mr->snm", found.H, found.W, found.V)
    assert core.error(parts.error(core.core)) == pytest.approx(relative(J, model) ** 2, rel=1e-9)
    again = led_in(found)
    for one, other in ((again.V, parts.V), (again.W, parts.W), (again.H, parts.H)):
        torch.testing.assert_close(one, other)


# ---- sweeps ----


@pytest.mark.parametrize("shape", [(300, 6, 50), (12, 5, 80), (500, 4, 5)], ids=["bases", "inputs", "triangle"])
def test_sweeps_on_the_core_are_sweeps_on_the_tensor(shape):
    tensor = JacobianTensor(low_rank(shape, rank=4))
    core = compressed(tensor, 3, seeded(0))
    start = led_back(tensor, core, inside(core, 3))
    plain = Decomposition(start.V, start.W, start.H)
    solver = JacobianCPD()
    found, error = solver.swept(None, tensor, start, start.error(tensor), 7)
    expected, expected_error = solver.swept(None, tensor, plain, start.error(tensor), 7)
    assert isinstance(found, Inside)
    assert not isinstance(expected, Inside)
    assert error == pytest.approx(expected_error, rel=1e-9)
    assert expected_error < 0.9 * start.error(tensor)
    for name in ("V", "W", "H"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-7, atol=1e-7)


def test_sweeps_in_single_precision():
    tensor = JacobianTensor(low_rank((300, 6, 50), rank=3).float())
    core = core_of(tensor, 3)
    start = Inside(*(getattr(freed(tensor, *random_directions(tensor, 3, seeded(1))), name) for name in "VWH"), core)
    found, error = JacobianCPD().swept(None, tensor, start, 1.0, 60)
    assert found.V.dtype == torch.float32
    assert error < 1e-10
    assert found.error(tensor) < 1e-10


BLOCK = factored(60, 6, 5, None, None, seed=0, count=600)
"""A layer on a tensor that is worth a core."""


def test_planted_layers_are_found_on_their_cores():
    planted = factored(9, 30, 3, None, None, seed=0, count=1500)
    seen = states(JacobianCPD(), planted.problem(held_out=0))
    assert all(isinstance(state.memory.parts, Inside) for state in seen)
    assert seen[0].memory.parts.core.core.entries.shape == (11, 11, 3)
    assert seen[-1].memory.parts.core.lossless
    assert seen[-1].memory.error < 1e-24
    found = [decouple(planted.problem(held_out=0), JacobianCPD(), seed=seed).factors for seed in range(6)]
    assert sum(direction_error(one, planted.factors) < 1e-11 for one in found) >= 4


def test_many_samples_of_few_entries_are_found_on_their_triangle():
    planted = factored(8, 5, 4, None, None, seed=1, count=5000)
    seen = states(JacobianCPD(), planted.problem(held_out=0))
    assert seen[0].memory.parts.core.core.entries.shape == (20, 5, 4)  # of the eight inputs four count
    assert seen[-1].memory.parts.H.shape == (5000, 4)
    solution = decouple(planted.problem(held_out=0), JacobianCPD())
    assert direction_error(solution.factors, planted.factors) < 1e-10


def test_hessians_have_cores_as_well():
    planted = factored(8, 1, 8, None, None, seed=0, count=1000)
    problem = with_hessians(planted, held_out=0)
    seen = states(HessianCPD(30), problem)
    assert all(isinstance(state.memory.parts, Inside) for state in seen)
    assert seen[-1].memory.parts.H.shape == (1000, 8)
    assert seen[-1].memory.error < 1e-20
    assert seen[-1].jacobian_error < 1e-16


def test_with_noise_the_last_sweeps_are_on_the_tensor(monkeypatch):
    """The core only leads near: where it ends is where sweeps on the tensor end, to the tolerance of convergence."""
    problem, solver = noisy(BLOCK, 0.05, held_out=0), JacobianCPD(tolerance=1e-7)
    seen = states(solver, problem)
    assert isinstance(seen[1].memory.parts, Inside)
    assert not seen[1].memory.parts.core.lossless
    assert not isinstance(seen[-1].memory.parts, Inside)
    assert seen[-1].stopped is Result.CONVERGED
    monkeypatch.setattr("tenflex.solvers.cpd.pays", lambda *sizes: False)
    whole = states(solver, problem)
    assert not any(isinstance(state.memory.parts, Inside) for state in whole)
    assert seen[-1].memory.error == pytest.approx(whole[-1].memory.error, rel=1e-6)


@pytest.mark.parametrize("level", [0.05, 1.0])
def test_the_error_never_rises_and_is_that_of_the_factors(level):
    problem = noisy(BLOCK, level, held_out=0)
    prepared, _ = prepare(problem)
    for solver, seed in ((JacobianCPD(30, stride=1), 0), (JacobianCPD(60, stride=5), 1)):
        seen = states(solver, problem, seed)
        assert all(later.memory.error <= earlier.memory.error * (1 + 1e-9) for earlier, later in pairwise(seen))
        for state in seen[1:]:
            error = state.memory.parts.error(prepared.fitted.jacobians)
            assert error == pytest.approx(state.memory.error, rel=1e-6)


def test_a_start_that_is_better_than_the_core_is_not_spoilt(monkeypatch):
    """Cores with fewer numbers than nodes: what lies in their bases is worse than where it stands."""
    problem = noisy(BLOCK, 0.01, held_out=0)
    prepared, _ = prepare(problem)
    last = states(JacobianCPD(), problem)[-1]
    monkeypatch.setattr("tenflex.objective.compressed.width", lambda rank: 3)
    solver = JacobianCPD()
    state = solver.resume(prepared, last)
    assert isinstance(state.memory.parts, Inside)
    assert state.memory.parts.core.dropped > 10 * state.memory.error
    after = solver.step(prepared, state)
    assert not isinstance(after.memory.parts, Inside)
    assert after.memory.error <= state.memory.error * (1 + 1e-9)


# ---- when, and at what price ----


def test_cores_are_made_where_they_pay():
    assert pays((1000, 10, 300), 20, sweeps=30)
    assert pays((100_000, 10, 20), 20, sweeps=30)
    assert not pays((1000, 10, 300), 20, sweeps=1)  # what it costs would not come back
    assert not pays((50, 2, 2), 2, sweeps=200)  # nothing to gain
    assert not pays((200, 50, 50), 150, sweeps=200)  # no mode is as large as two cores
    for shape, rank in (((1000, 10, 300), 20), ((5000, 3, 40), 10), ((40, 30, 2000), 5)):
        assert pays(shape, rank, 10)
        assert counted(shape, rank) < 5 * swept(shape, rank)
        assert swept(core_shape(shape, rank), rank) < swept(shape, rank) / 4


def test_where_it_does_not_pay_there_is_none():
    prepared, _ = prepare(noisy(BLOCK, 0.1, held_out=0))
    state = JacobianCPD(1).init(prepared, seeded(0))
    assert type(state.memory.parts) is Decomposition
    assert prepared.fitted.jacobians not in CORES
    JacobianCPD(30).init(prepared, seeded(0))
    assert list(CORES[prepared.fitted.jacobians]) == [5]


def test_cores_are_forgotten_with_their_tensors():
    tensor = JacobianTensor(low_rank((300, 6, 50)))
    core_of(tensor, 3)
    gone = weakref.ref(tensor)
    known = len(CORES)
    del tensor
    gc.collect()
    assert gone() is None
    assert len(CORES) < known


def test_starts_share_a_core_and_repeat_their_bits():
    prepared, _ = prepare(noisy(BLOCK, 0.1, held_out=0))
    solver = JacobianCPD(20)
    first, second = (solver.step(prepared, solver.init(prepared, seeded(seed))) for seed in (0, 1))
    assert first.memory.parts.core is second.memory.parts.core
    other, _ = prepare(noisy(BLOCK, 0.1, held_out=0))
    again = solver.step(other, solver.init(other, seeded(0)))
    assert again.memory.parts.core is not first.memory.parts.core
    assert torch.equal(again.factors.V, first.factors.V)
    assert again.memory.error == first.memory.error


def test_a_decomposition_that_is_not_a_number_is_never_shown():
    for level in (0.0, 0.1):
        prepared, _ = prepare(noisy(BLOCK, level, held_out=0))
        state = JacobianCPD().init(prepared, seeded(0))
        parts = state.memory.parts
        broken = replace(parts, H=torch.full_like(parts.H, torch.nan))
        after = JacobianCPD().step(prepared, replace(state, memory=replace(state.memory, parts=broken)))
        assert after.stopped is Result.DIVERGED
        assert torch.equal(after.factors.V, state.factors.V)


def test_nothing_larger_than_a_core_is_made(monkeypatch):
    S, n, m, rank, chunk = 700, 9, 50, 3, 4000
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    generator = seeded(0)
    samples = Samples(random(generator, S, m), random(generator, S, n), random(generator, S, n, m))
    prepared, _ = prepare(Problem(samples, rank, Monomial(2), held_out=0))
    solver = JacobianCPD(30, tolerance=0.0)
    with torch.no_grad(), Largest(prepared.fitted.jacobians.entries) as largest:
        state = solver.init(prepared, seeded(1))
        assert isinstance(state.memory.parts, Inside)
        while not solver.finished(prepared, state):
            state = solver.step(prepared, state)
    kept = width(rank)
    assert largest.numbers <= max(kept * n * m, S * kept, chunk, S * n * rank) < S * n * m / 10
