"""The recipes that work: what runs when no solver is named."""

from __future__ import annotations

from operator import mul

from tenflex.bases.chebyshev import Chebyshev
from tenflex.bases.monomial import Monomial
from tenflex.objective.multilinear import multilinear_svd
from tenflex.objective.prepared import Prepared
from tenflex.solvers.constrained_als import ConstrainedALS
from tenflex.solvers.gauss_newton import MOST_UNKNOWNS, GaussNewton
from tenflex.solvers.leading import Leading, Truncate
from tenflex.solvers.lifted import Lifted
from tenflex.solvers.pencil import sliced_mode
from tenflex.solvers.published.dejonghe2026 import LayeredALS
from tenflex.solvers.published.dreesen2015 import JacobianCPD
from tenflex.solvers.published.dreesen2018 import HessianCPD
from tenflex.solvers.published.sanchez1990 import GeneralizedEigenvalues
from tenflex.solvers.published.zniyed2021_structured import StructuredCPD
from tenflex.solvers.refine import Refine
from tenflex.solvers.sketched_newton import SketchedNewton
from tenflex.solvers.wrap import BestSoFar, Chain, Inner, MultiStart, Unweighted

SMALL = 2e9
"""Multiply-adds of a Gauss-Newton step up to which many starts of it are affordable: a fraction of a second each."""

EASY = 5e4
"""Multiply-adds of an evaluation up to which many starts that are refined cost two or three seconds in all."""

STARTS = 10
"""Where steps cost nothing."""


def default_solver(problem: Prepared, exact: bool = True) -> Inner:
    """Starts by the CPD of the Jacobians, and the exact refinement over everything.

    The CPD knows nothing of the basis, so it is not led astray by activations that do not fit yet: from its starts more
    runs find planted layers, and networks are met more closely in the same time. With one output it has no unique
    answer: then the CPD of the Hessians takes its place where they are known, else the structured one; and constrained
    ALS with one input, or where activations must be monotone or non-negative. Where linear algebra alone would find an
    exact layer, that is the first start.

    Factored maps are solved in their leading directions first; with a covariance of the Jacobians, which has none, they
    are solved in full and cut down.

    Args:
        problem: The problem, prepared.
        exact: Whether an exact layer may exist and is worth many starts, as for maps that are decoupled; blocks of
            networks are only approximated.

    Example:
        >>> prepared, _ = tenflex.solvers.prepare(problem)
        >>> isinstance(default_solver(prepared), tenflex.solvers.Solver)
        True
    """
    if problem.fitted.samples.views is not None:
        return for_views(problem)
    if len(problem.ranks) > 1:
        return for_several_layers(problem, exact)
    factored = problem.factor is not None or problem.output_factor is not None
    leads = problem.fitted.samples.covariance is None
    m, n = sizes(problem, leads)
    pencil = GeneralizedEigenvalues(1) if exact and not factored and has_pencil(problem) else None
    if exact and step_cost(problem, m, n) <= SMALL:
        full = many_starts(problem, m, n, pencil)
    elif not factored and evaluation_cost(problem, m, n) <= EASY:
        # They end in many places: the best of ten is some 6 % better than what three unrefined ones lead to.
        refined = Chain((start(problem, m, n), BestSoFar(Refine(60))))
        full = Chain((MultiStart(refined, STARTS), BestSoFar(Refine(150))))
    else:
        first = None if pencil is None else Chain((pencil, BestSoFar(Refine(100))))
        screened = MultiStart(start(problem, m, n), 3 + (first is not None), first)
        full = Chain((screened, Refine(60) if factored else BestSoFar(Refine(150))))
    if not factored:
        return full
    return Chain((Leading(full) if leads else Chain((full, Truncate())), BestSoFar(Refine(200))))


def for_views(problem: Prepared) -> Inner:
    """The same where there are views in place of whole Jacobians: a start from the pilot, and L-BFGS.

    Raises:
        ValueError: if there are several layers with activations that must be monotone or non-negative.
    """
    samples = problem.fitted.samples
    factored = problem.factor is not None or problem.output_factor is not None
    if len(problem.ranks) > 1:
        first: Inner = BestSoFar(LayeredALS(15))
    elif samples.pilot is None or problem.nonnegative:
        first = ConstrainedALS(10)
    else:
        _, n, m = samples.pilot.sizes
        first = start(problem, m, n)
    if samples.pilot is not None:
        first = Lifted(first)
    last: Inner = Refine(60) if factored else BestSoFar(Refine(150))
    if len(problem.ranks) > 1:
        first, last = Chain((first, Refine(50))), BestSoFar(Refine(600, history=100))
    full = Chain((MultiStart(first, 3), last))
    return Chain((Leading(full), BestSoFar(Refine(200)))) if factored else full


def for_several_layers(problem: Prepared, exact: bool) -> Inner:
    """The same for two layers and more: alternating least squares first, then everything together, for longer.

    Raises:
        ValueError: if the activations must be monotone or non-negative.
    """
    if problem.nonnegative:
        raise ValueError(
            "several layers with Monotone or NonNegative activations cannot be found: use one layer, rank=r, or a "
            "basis without these constraints"
        )
    leads = problem.fitted.samples.covariance is None
    m, n = sizes(problem, leads)
    unknowns = unknowns_of(problem, m, n)
    cost = step_cost(problem, m, n)
    many = exact and cost <= SMALL
    first: Inner = LayeredALS(3, bend=2.0) if many else BestSoFar(LayeredALS(15))
    if not leads:
        first = Unweighted(first)
    if many:  # one start of eight leads to the composed quadratics of the tests, through long flat valleys
        starts = min(60, max(10, int(SMALL / (20 * cost))))
        full: Inner = MultiStart(Chain((first, GaussNewton(200, tolerance=1e-5))), starts)
    else:
        sketched = leads and unknowns <= MOST_UNKNOWNS and is_held(problem)
        last = SketchedNewton() if sketched else Refine(600, history=100)
        full = Chain((MultiStart(Chain((first, Refine(50))), 3), BestSoFar(last)))
    if problem.factor is None and problem.output_factor is None:
        return full
    return Chain((Leading(full) if leads else Chain((full, Truncate())), BestSoFar(Refine(300))))


def start(problem: Prepared, m: int, n: int) -> Inner:
    """What a problem from m to n numbers begins with."""
    if m == 1 or problem.nonnegative:
        return ConstrainedALS(10)
    free: Inner = JacobianCPD(30)
    if n == 1:
        free = StructuredCPD(50) if problem.fitted.samples.hessians is None else HessianCPD(50)
    return free if problem.fitted.samples.covariance is None else Unweighted(free)


def has_pencil(problem: Prepared) -> bool:
    """Whether linear algebra alone finds an exact layer: where the Jacobians have rank r along two of their modes."""
    samples = problem.fitted.samples
    if samples.views is not None or samples.covariance is not None or len(problem.ranks) > 1 or problem.nonnegative:
        return False
    _, n, m = problem.fitted.jacobians.entries.shape
    if min(n, m) == 1 or sum(size >= problem.rank for size in (problem.fitted.count, n, m)) < 2:
        return False
    return sliced_mode(multilinear_svd(problem.fitted.jacobians, problem.rank), problem.rank) is not None


def many_starts(problem: Prepared, m: int, n: int, pencil: Inner | None = None) -> Inner:
    """For small problems with an exact answer: one start of several leads to it, and the last steps are the fast ones.

    Fewer of them, but three, where steps cost a second: where no layer is exact, all are made. Gauss-Newton knows no
    inequalities. A pencil, where there is one, comes first.
    """
    if problem.nonnegative:
        return Chain((MultiStart(Chain((ConstrainedALS(10), Refine(50))), STARTS), Refine(500, tolerance=1e-7)))
    cost = step_cost(problem, m, n)
    starts = min(STARTS, max(3, int(SMALL / (4 * cost))))
    steps = GaussNewton(50, tolerance=1e-4)
    first = None if pencil is None else Chain((pencil, steps))
    screened = MultiStart(Chain((start(problem, m, n), steps)), starts + (first is not None), first)
    return Chain((screened, GaussNewton(100)))


def refinement(problem: Prepared) -> Inner:
    """What follows a start: Gauss-Newton where it can be used and a step of it is affordable, else L-BFGS."""
    m, n = problem.fitted.inputs.shape[1], problem.fitted.centred.shape[1]
    factored = problem.factor is not None or problem.output_factor is not None
    if problem.fitted.samples.views is not None or problem.nonnegative or factored or step_cost(problem, m, n) > SMALL:
        return BestSoFar(Refine(150))
    return GaussNewton(100)


def sizes(problem: Prepared, leads: bool) -> tuple[int, int]:
    """The inputs and outputs of the full maps that are solved for, in the leading directions or in all."""
    m, n = problem.fitted.inputs.shape[1], problem.fitted.centred.shape[1]
    return (problem.factor or m, problem.output_factor or n) if leads else (m, n)


def is_held(problem: Prepared) -> bool:
    """Whether activations go on beyond the samples much as among them: polynomials, and all with a price on roughness.

    Coefficients of others that only the outermost samples tell of are as good as free. Whatever finds the lowest error
    quickly makes them large, and inputs that fall just beyond meet that; L-BFGS hardly moves them.
    """
    priced = problem.penalty is not None and problem.smoothing != 0
    return priced or isinstance(problem.basis.basis, (Monomial, Chebyshev))


def unknowns_of(problem: Prepared, m: int, n: int) -> int:
    """The unknowns of layers with full maps from m to n numbers."""
    sizes = (m, *problem.ranks, n)
    return sum(map(mul, sizes, sizes[1:])) + sum(problem.ranks) * (problem.basis.size + 1)


def evaluation_cost(problem: Prepared, m: int, n: int) -> float:
    """Multiply-adds of an evaluation of the Jacobians' term, for a full map from m to n numbers."""
    return problem.fitted.count * n * m * problem.rank


def step_cost(problem: Prepared, m: int, n: int) -> float:
    """Multiply-adds of a Gauss-Newton step for full maps from m to n numbers."""
    return problem.fitted.count * n * (m + 1) * unknowns_of(problem, m, n) ** 2
