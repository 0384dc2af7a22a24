"""Nothing of the size of J, `S n m`, or of a Khatri-Rao product, `m n r`, is made but J itself, when it is sampled."""

from __future__ import annotations

import pytest
import torch
from peak import MEGABYTE, peak_of
from planted import random, seeded
from test_objective import Largest

from tenflex import Monomial, Problem, Samples
from tenflex.solvers import (
    Chain,
    ConstrainedALS,
    FilteredCPD,
    GeneralizedEigenvalues,
    JacobianCPD,
    LayeredALS,
    ProjectedALS,
    ProjectedLayeredALS,
    Refine,
    Solver,
    StructuredCPD,
    prepare,
)

S, N, M, R, CHUNK = 24, 14, 40, 3, 900

SOLVERS: dict[str, tuple[Solver, int | tuple[int, int]]] = {
    "ConstrainedALS": (ConstrainedALS(2), R),
    "ProjectedALS": (ProjectedALS(2), R),
    "JacobianCPD": (JacobianCPD(4, stride=2), R),
    "StructuredCPD": (StructuredCPD(4, stride=2), R),
    "FilteredCPD": (FilteredCPD(4, stride=2), R),
    "GeneralizedEigenvalues": (GeneralizedEigenvalues(), R),
    "Refine": (Chain((ConstrainedALS(1), Refine(4, stride=2))), R),
    "LayeredALS": (LayeredALS(2), (R, 2)),
    "ProjectedLayeredALS": (ProjectedLayeredALS(2), (R, 2)),
    "Refine, two layers": (Chain((LayeredALS(1), Refine(4, stride=2))), (R, 2)),
}


@pytest.mark.parametrize(("solver", "rank"), SOLVERS.values(), ids=SOLVERS)
def test_nothing_of_the_size_of_the_jacobians_is_made(solver, rank, monkeypatch):
    monkeypatch.setattr("tenflex.sums.CHUNK", CHUNK)
    generator = seeded(0)
    samples = Samples(random(generator, S, M), random(generator, S, N), random(generator, S, N, M))
    with torch.no_grad():
        prepared, _ = prepare(Problem(samples, rank, Monomial(2), held_out=0))
        with Largest(prepared.fitted.jacobians.entries) as largest:
            state = solver.init(prepared, seeded(1))
            while not solver.finished(prepared, state):
                state = solver.step(prepared, state)
    assert S * N * R < M * N * R < S * N * M  # else the bound below would say nothing
    assert largest.numbers < M * N * R


# The peak may be this many J and 200 MB: by half a J more than what has to be there.
PEAKS = [
    ("sample_block, few active inputs", 1.5),
    ("compress", 1.5),
    pytest.param("sample_block", 1.5, marks=pytest.mark.slow),
    pytest.param("sample", 1.5, marks=pytest.mark.slow),
    pytest.param("sample and decouple", 2.5, marks=pytest.mark.slow),  # the samples as they were passed are there, too
]


@pytest.mark.parametrize(("job", "bound"), PEAKS)
def test_the_peak_is_half_as_much_again_as_the_jacobians(job, bound):
    peak, size = peak_of(job)
    assert size > 150 * MEGABYTE
    assert peak <= bound * size + 200 * MEGABYTE
