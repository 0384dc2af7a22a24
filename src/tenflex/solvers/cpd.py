"""The canonical polyadic decomposition of a tensor of derivatives by alternating least squares, as a solver."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_number, require_whole
from tenflex.factors import Factors
from tenflex.objective.compressed import Compressed, compressed, pays
from tenflex.objective.decomposition import Decomposition, freed, improved_directions
from tenflex.objective.line_search import longest_step
from tenflex.objective.prepared import Prepared
from tenflex.objective.steps import normalized
from tenflex.objective.tensor import JacobianTensor
from tenflex.result import Result
from tenflex.solvers.base import EXACT, Solver, State, penalized, unfit
from tenflex.solvers.constrained_als import fitted_layer

ROUNDING = 1e-24
"""Below this relative squared error a decomposition that no longer falls goes up and down by rounding only."""

SEARCH = 3
"""A line search follows every so many sweeps: it costs about as much as one of them."""


@dataclass(frozen=True, eq=False)
class Inside(Decomposition):
    """A decomposition that goes on inside a core of the tensor.

    Args:
        core: The core. The first V and W need not lie in its bases; those of every later step do.
    """

    core: Compressed


def random_directions(
    tensor: JacobianTensor, rank: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """Unit columns for V and W, uniform in direction.

    Drawn gradients, the start of the coupled solvers, are often alike: from these more runs of a CPD succeed.
    """
    like = tensor.entries
    V, W = (torch.randn(size, rank, generator=generator, dtype=like.dtype, device="cpu") for size in like.shape[:0:-1])
    return normalized(V.to(like)), normalized(W.to(like))


@dataclass(frozen=True)
class Swept:
    """Where a decomposition stands.

    Args:
        parts: Its factors.
        error: Its relative squared error.
    """

    parts: Decomposition
    error: float


@dataclass(frozen=True)
class AlternatingCPD(Solver[Swept]):
    """Alternating least squares over V, W and the third factor; after each step a layer with these directions.

    Args:
        sweeps: The most sweeps over the three factors.
        stride: The sweeps that make one step of the loop, after which the coefficients are fitted.
        tolerance: It has converged when a step changes the decomposition's own error by less than this share.

    Raises:
        ValueError: if a number is out of its range.
    """

    sweeps: int = 200
    stride: int = 10
    tolerance: float = 1e-5
    stage: ClassVar[str] = "CPD"

    def __post_init__(self) -> None:
        require_whole("sweeps", self.sweeps, at_least=1)
        require_whole("stride", self.stride, at_least=1)
        require_number("tolerance", self.tolerance, at_least=0)

    @abstractmethod
    def tensor(self, problem: Prepared) -> JacobianTensor:
        """The tensor to decompose; ValueError if the problem has none that can be."""

    @abstractmethod
    def slopes(self, problem: Prepared, V: Tensor, W: Tensor) -> Tensor:
        """The third factor for given directions."""

    def directions(self, problem: Prepared, factors: Factors) -> tuple[Tensor, Tensor]:
        """V and W of a layer, as they enter the decomposition."""
        return normalized(factors.V), normalized(factors.W)

    def layer(self, problem: Prepared, parts: Decomposition) -> State[Any]:
        """The layer of a decomposition: coefficients, and the output map once more, by least squares on F and J."""
        return replace(fitted_layer(problem, parts.V, parts.W, None, repeats=1), stage=self.stage)

    def refusal(self, problem: Prepared) -> str | None:
        return unfit(self, problem, shapes=True)  # of the layers; the decomposition itself knows nothing of them

    def total(self, problem: Prepared) -> int:
        return -(-self.sweeps // self.stride)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Swept]:
        return self._begin(problem, *random_directions(self.tensor(problem), problem.rank, generator))

    def resume(self, problem: Prepared, state: State[Any]) -> State[Swept]:
        return self._begin(problem, *self.directions(problem, state.factors))

    def _begin(self, problem: Prepared, V: Tensor, W: Tensor) -> State[Swept]:
        return self.begun(problem, Decomposition(V, W, self.slopes(problem, V, W)))

    def begun(self, problem: Prepared, parts: Decomposition) -> State[Swept]:
        """The first state, from a decomposition."""
        return self.layer(problem, parts).holding(Swept(parts, parts.error(self.tensor(problem))))

    def step(self, problem: Prepared, state: State[Swept]) -> State[Swept]:
        parts, before = state.memory.parts, state.memory.error
        count = min(self.stride, self.sweeps - self.stride * state.taken)
        parts, error = self.swept(problem, self.tensor(problem), parts, before, count)
        if not math.isfinite(error):
            return replace(state, taken=state.taken + 1, stopped=Result.DIVERGED)
        after = self.layer(problem, parts).holding(Swept(parts, error), taken=state.taken + 1)
        return replace(after, stopped=self._judged(problem, after, before, error))

    def swept(
        self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, before: float, count: int
    ) -> tuple[Decomposition, float]:
        """The decomposition after the sweeps of a step, and its error; `before` is that of `parts`."""
        for number in range(count):
            parts = self.sweep(problem, tensor, parts, number)
        return parts, parts.error(tensor)

    def sweep(self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, number: int) -> Decomposition:
        """One sweep, the `number`-th of its step."""
        V, W = improved_directions(tensor, parts)
        return Decomposition(V, W, self.slopes(problem, V, W))

    def _judged(self, problem: Prepared, after: State[Swept], before: float, error: float) -> Result | None:
        if penalized(problem, after) < EXACT:
            return Result.EXACT
        rounding = error < ROUNDING and error > before / 2
        return Result.CONVERGED if rounding or abs(before - error) < self.tolerance * before else None


@dataclass(frozen=True)
class FreeCPD(AlternatingCPD):
    """The same with a free third factor: a line search lengthens the sweeps, and the error never rises.

    Where it saves time the sweeps are taken on a core of the tensor. One that holds all of it gives the same numbers up
    to rounding. Another is left as soon as a step on it lowers the error by less than `tolerance`: one sweep on the
    tensor itself then tells whether the decomposition has converged, and further ones, if it has not, are taken there.
    """

    def slopes(self, problem: Prepared, V: Tensor, W: Tensor) -> Tensor:
        return self.tensor(problem).slopes(V, W)

    def begun(self, problem: Prepared, parts: Decomposition) -> State[Swept]:
        state, tensor = super().begun(problem, parts), self.tensor(problem)
        if not pays(tensor.entries.shape, problem.rank, self.sweeps):
            return state
        inside = Inside(parts.V, parts.W, parts.H, core_of(tensor, problem.rank))
        return state.holding(Swept(inside, state.memory.error))

    def swept(
        self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, before: float, count: int
    ) -> tuple[Decomposition, float]:
        if not isinstance(parts, Inside):
            return super().swept(problem, tensor, parts, before, count)
        core = parts.core
        inside, core_error = super().swept(problem, core.core, led_in(parts), before, count)
        error = core.error(core_error)
        if not core.lossless and error > before:  # the start was better than what lies in the bases
            return super().swept(problem, tensor, Decomposition(parts.V, parts.W, parts.H), before, count)
        found = led_back(tensor, core, inside)
        if core.lossless or error < (1 - self.tolerance) * before:
            return found, error
        return super().swept(problem, tensor, Decomposition(found.V, found.W, found.H), error, 1)

    def sweep(self, problem: Prepared, tensor: JacobianTensor, parts: Decomposition, number: int) -> Decomposition:
        after = freed(tensor, *improved_directions(tensor, parts))
        if number % SEARCH:
            return after
        step = longest_step(tensor, (parts.V, parts.W, parts.H), (after.V, after.W, after.H))
        if step == 1:
            return after
        pairs = ((parts.V, after.V), (parts.W, after.W))
        return freed(tensor, *(normalized(torch.lerp(before, end, step)) for before, end in pairs))


CORES: WeakKeyDictionary[JacobianTensor, dict[int, Compressed]] = WeakKeyDictionary()
"""The cores of tensors by the ranks that they are for: several starts share them."""


def core_of(tensor: JacobianTensor, rank: int) -> Compressed:
    """The core of a tensor for a rank, made once."""
    cores = CORES.setdefault(tensor, {})
    if rank not in cores:
        cores[rank] = compressed(tensor, rank, torch.Generator().manual_seed(0))
    return cores[rank]


def led_in(parts: Inside) -> Decomposition:
    """What of a decomposition lies in the bases of its core; with the best H where the core sums the samples up."""
    V, W, H = parts.core.inside(parts.V, parts.W, parts.H)
    return freed(parts.core.core, V, W) if parts.core.summed_up else Decomposition(V, W, H)


def led_back(tensor: JacobianTensor, core: Compressed, inside: Decomposition) -> Inside:
    """A decomposition of the core as one of the tensor, in the same way."""
    V, W, H = core.expanded(inside.V, inside.W, inside.H)
    return Inside(V, W, tensor.slopes(V, W) if core.summed_up else H, core)
