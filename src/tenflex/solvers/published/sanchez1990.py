"""The decomposition of the Jacobians by linear algebra alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tenflex.checks import require_whole
from tenflex.objective.multilinear import MODES, NOTHING, Core, multilinear_svd
from tenflex.objective.prepared import Prepared
from tenflex.result import Result
from tenflex.solvers.base import EXACT, Solver, State, penalized, unfit
from tenflex.solvers.constrained_als import fitted_layer
from tenflex.solvers.pencil import decomposed, sliced_mode
from tenflex.solvers.published.dreesen2015 import require_tensor


@dataclass(frozen=True)
class Drawn:
    """Pencils of a core.

    Args:
        core: The core.
        sliced: The mode along which it is sliced.
        least: The least error of a decomposition so far.
    """

    core: Core
    sliced: int
    least: float


@dataclass(frozen=True)
class GeneralizedEigenvalues(Solver[Drawn]):
    r"""The canonical polyadic decomposition of the Jacobians from generalized eigenvectors: a start without iterations.

    The tensor is compressed to its leading singular vectors. Two random combinations of its slices along one mode,
    :math:`X_1 = A D_1 B^\top` and :math:`X_2 = A D_2 B^\top`, have the factors of the other two modes in common, and
    :math:`X_1 z = \lambda X_2 z` gives them. Exact without noise; with noise, a start for `JacobianCPD` or
    `GaussNewton`. Two of the three modes need rank r: r is at most the number of inputs and the number of outputs; or
    at most one of them, the other being at least 2, with r linearly independent slopes.

    A state is the best of the pencils drawn so far, by the decomposition's own error.

    References:
        Sanchez, Kowalski, "Tensorial resolution: a direct trilinear decomposition", 1990,
        https://doi.org/10.1002/cem.1180040105
        Leurgans, Ross, Abel, "A decomposition for three-way arrays", 1993, https://doi.org/10.1137/0614071

    Args:
        redraws: How many further pencils are drawn at most; none after an exact one.

    Raises:
        ValueError: if `redraws` is not a whole number of at least 1, or, when it starts, if the ranks of the Jacobian
            tensor are too low.

    Example:
        >>> from tenflex.solvers import GeneralizedEigenvalues
        >>> solution = decouple(problem, GeneralizedEigenvalues())
        >>> solution.validation_error < 1e-3
        True
    """

    redraws: int = 4

    def __post_init__(self) -> None:
        require_whole("redraws", self.redraws, at_least=1)

    def total(self, problem: Prepared) -> int:
        return self.redraws

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, shapes=True)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Drawn]:
        require_tensor(problem, type(self).__name__)
        core = multilinear_svd(problem.fitted.jacobians, problem.rank)
        return self._drawn(problem, core, required_slices(core, problem.rank), generator)

    def step(self, problem: Prepared, state: State[Drawn]) -> State[Drawn]:
        drawn, generator = state.memory, torch.Generator()
        if state.randomness is not None:
            generator.set_state(state.randomness)
        other = self._drawn(problem, drawn.core, drawn.sliced, generator)
        best = other if other.memory.least < drawn.least else state
        stopped = best.stopped or (Result.CONVERGED if state.taken + 1 == self.redraws else None)
        return replace(best, taken=state.taken + 1, stopped=stopped, randomness=other.randomness)

    def _drawn(self, problem: Prepared, core: Core, sliced: int, generator: torch.Generator) -> State[Drawn]:
        tensor = problem.fitted.jacobians
        parts = decomposed(tensor, core, problem.rank, sliced, generator)
        error = parts.error(tensor)
        state = fitted_layer(problem, parts.V, parts.W, None, repeats=1)
        stopped = Result.EXACT if penalized(problem, state) < EXACT else None
        memory, randomness = Drawn(core, sliced, error if error == error else float("inf")), generator.get_state()
        return state.holding(memory, stage="generalized eigenvalues", stopped=stopped, randomness=randomness)


def required_slices(core: Core, rank: int) -> int:
    """The mode to slice; ValueError if two modes with rank r and a third with two slices do not exist."""
    sliced = sliced_mode(core, rank)
    if sliced is None:
        ranks = ", ".join(f"{one} along the {mode}" for one, mode in zip(core.ranks(), MODES, strict=True))
        raise ValueError(
            f"GeneralizedEigenvalues needs a Jacobian tensor of rank {rank}, that of the problem, along two of its "
            f"modes and of at least 2 along the third, got {ranks} (singular values below {NOTHING:g} of the largest "
            f"count as none): lower the rank, or start from JacobianCPD() or StructuredCPD() instead"
        )
    return sliced
