"""Whether to read the nodes of a layer as facts about the map, or only to use them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.coordinates.standardize import deviations
from tenflex.factors import Factors, one_layer
from tenflex.identify.bounds import (
    Condition,
    collinear_columns,
    compounds,
    dead_nodes,
    degree_of,
    distinct_directions,
    jacobian_cpd,
    live_nodes,
    named_nodes,
    parameter_count,
)
from tenflex.identify.local import LocalRank, rank_of, told_rank, within_reach
from tenflex.identify.tangents import Compact, compact, output_units, require_inputs, units_of, used, without_bias
from tenflex.reading.errors import errors_at, mean_output, output_misfit
from tenflex.result import Judged
from tenflex.solution import Solution

READABLE = 0.1
"""The largest relative error at which a node still shows what it is."""

SINGLE_PRECISION = 1e-6
"""The relative error of samples that is supposed where none is known."""

STRAIGHT = 1e-6
"""An activation is linear if its slope varies less than this, relative to its size."""

NORMAL_INPUTS = 200
"""Inputs that are drawn for polynomials when none are given: where they are does not matter."""


class Uniqueness(Enum):
    """How far the nodes are unique; the value says what it means for the user.

    Example:
        >>> from tenflex.identify import identify
        >>> identify(decouple(problem)).uniqueness.name
        'GLOBAL'
    """

    GLOBAL = "unique: no other nodes, as few as these, have the same Jacobians"
    LOCAL = "locally unique: no other nodes nearby have the same outputs and Jacobians; those far away are unknown"
    NONE = "not unique: other nodes give the same outputs and Jacobians"
    UNKNOWN = "unknown: the layer is too large for the local test, and no condition in closed form decides"


@dataclass(frozen=True)
class Identification:
    """What is known about the uniqueness of the nodes of a layer.

    Args:
        uniqueness: How far they are unique, if the samples were exact.
        conditions: The conditions in closed form.
        local: The local test, or None where the layer is too large for it.
        error: The relative error of the layer's outputs and Jacobians on the samples, each output in units of its own
            deviation; None if it is not known.
        node_errors: A bound on the relative error of each node, to first order: its condition number times the error of
            the samples, or times 1e-6 where that is not known. None without a local test.
        dead: The nodes that contribute nothing.
        collinear: The pairs of nodes with the same direction.
        linear: The nodes whose activation is a straight line on the samples.
        interpolates: Whether all samples were fitted, and are no more numbers than the layer can adapt to: then it fits
            those of any map, noise included, and nothing is known of how well its nodes are those of this one.

    Example:
        >>> from tenflex.identify import identify
        >>> verdict = identify(decouple(problem))
        >>> verdict.trusted, verdict.trusted_nodes
        (True, (0, 1))
    """

    uniqueness: Uniqueness
    conditions: tuple[Condition, ...]
    local: LocalRank | None
    error: float | None
    node_errors: tuple[float, ...] | None
    dead: tuple[int, ...]
    collinear: tuple[tuple[int, int], ...]
    linear: tuple[int, ...]
    interpolates: bool = False

    @property
    def trusted_nodes(self) -> tuple[int, ...]:
        """The nodes that are unique and known to one digit at least."""
        mixed = {node for pair in self.collinear for node in pair}
        errors = enumerate(self.node_errors or ())
        return tuple(node for node, error in errors if error <= READABLE and node not in mixed)

    @property
    def trusted(self) -> bool:
        """Whether all nodes are."""
        unique = self.uniqueness in (Uniqueness.GLOBAL, Uniqueness.LOCAL)
        return unique and self.node_errors is not None and len(self.trusted_nodes) == len(self.node_errors)

    @property
    def advice(self) -> str:
        """What to do with the nodes, in a sentence."""
        if self.trusted:
            return "Trust the nodes."
        if self.node_errors is None and self.uniqueness is Uniqueness.GLOBAL:
            return (
                "Trust the nodes if the samples are exact: the layer is too large to say how errors grow in its nodes."
            )
        if self.trusted_nodes:
            return f"Trust {named_nodes(self.trusted_nodes)} only: the others are good for fit, not for recovery."
        if self.uniqueness is not Uniqueness.NONE and self.error is not None and self.error > READABLE:
            return f"Do not trust the nodes: the layer is an approximation, with a relative error of {self.error:.2g}."
        return "Do not trust the nodes: good for fit, not for recovery."

    def __str__(self) -> str:
        return "\n  ".join([self.advice, *self._reasons(), *map(str, self.conditions)])

    def _reasons(self) -> Iterator[str]:
        yield self.uniqueness.value
        if self.local is not None:
            yield from _local_reasons(self.local)
        if self.interpolates:
            yield "the samples are no more numbers than the layer can adapt to: those of any map are fitted; take more"
        if len(self.linear) > 1:
            yield f"{named_nodes(self.linear)} are linear on the samples: only their sum, a matrix, is determined"
        if self.node_errors is not None and max(self.node_errors) < inf:
            known = "are reproduced to" if self.error is not None else "are supposed to be exact to"
            error = SINGLE_PRECISION if self.error is None else self.error
            yield f"the samples {known} {error:.1e}, so the nodes are known to {max(self.node_errors):.1e}, relatively"


def _local_reasons(local: LocalRank) -> Iterator[str]:
    yield f"local rank {local.rank} of {local.expected}, condition number {local.condition:.1e}"
    if local.exchanges:
        kept = tuple(node for node, condition in enumerate(local.conditions) if condition < inf)
        rest = f"; {named_nodes(kept)} cannot" if kept else ""
        ways = "1 direction" if local.exchanges == 1 else f"{local.exchanges} directions"
        yield f"on these samples, nodes can move, or be exchanged for one another, in {ways}{rest}"
    if local.expected > local.alone:
        yield (
            f"{local.expected - local.alone} parameters of single nodes have no effect on the samples: functions of "
            f"the basis that no sample reaches, or knots of an activation that does not bend there"
        )


def identify(subject: Factors | Solution, inputs: Float[Tensor, "S m"] | None = None) -> Identification:
    r"""Say whether the nodes of a layer are the only ones with its outputs and Jacobians, and how well they are known.

    A good fit does not make the nodes true: other nodes may fit as well (then the answer is not unique), or nearly as
    well (then the condition number is large, and the error of the fit comes back multiplied in the nodes).

    References:
        Comon, Qi, Usevich, "Identifiability of an X-rank decomposition of polynomial maps", 2017,
        https://arxiv.org/abs/1603.01566
        Breiding, Vannieuwenhoven, "The condition number of join decompositions", 2018, https://arxiv.org/abs/1611.08117

    Args:
        subject: A layer, or the solution of a problem, whose samples and error are then used.
        inputs: Points where the layer is used, `(S, m)`; needed for a layer unless its activations are polynomials.

    Returns:
        The verdict; `str()` of it is readable.

    Raises:
        TypeError: if `subject` is something else, or inputs are not floating-point numbers.
        ValueError: if inputs are missing, have the wrong shape or never vary, or a number is not finite.

    Example:
        >>> zero = torch.zeros(2)
        >>> from tenflex.factors import Activations
        >>> layer = Factors.single(torch.eye(2), torch.eye(2), Activations(torch.ones(2, 3), zero, Monomial(3)), zero)
        >>> verdict = identify(layer)
        >>> verdict.trusted, verdict.uniqueness.name
        (True, 'GLOBAL')
    """
    estimated = _covariance(subject) if inputs is None else None
    factors, inputs, units = _read(subject, inputs)
    small = compact(factors, inputs, units)
    own, points = in_own_units(factors, inputs, units)
    conditions, proof = _conditions(own, points), compounds(own, points)
    if estimated is not None:
        local = told_rank(factors, inputs, estimated, units)
    else:
        local = rank_of(small) if within_reach(small) else None
    error = _error(subject, units) if isinstance(subject, Solution) else None
    interpolates = isinstance(subject, Solution) and local is not None and _interpolates(subject, small, local)
    supposed = inf if interpolates else SINGLE_PRECISION if error is None else error
    return Identification(
        _uniqueness(conditions, proof, local),
        (*conditions, proof),
        local,
        error,
        None if local is None else _node_errors(local, supposed),
        dead_nodes(own, points),
        collinear_columns(own.V),
        _linear_nodes(factors, inputs),
        interpolates,
    )


def _interpolates(solution: Solution, small: Compact, local: LocalRank) -> bool:
    """Whether all samples were fitted, and are no more numbers than the bias and moves of the nodes, in their spans."""
    samples, (rank,) = solution.problem.samples, small.factors.ranks
    count, p, q = len(samples), len(small.factors.V), len(small.factors.W)
    moves = local.expected - rank * (small.more_inputs + small.more_outputs)
    rows = 0 if samples.covariance is not None else q if samples.views is None else samples.views
    few = count * (q + rows * p) <= moves + q  # slopes that were estimated tell nothing more than outputs
    return solution.judged is Judged.FITTED and few


def in_own_units(
    factors: Factors, inputs: Float[Tensor, "S m"], units: Float[Tensor, " n"]
) -> tuple[Factors, Float[Tensor, "S m"]]:
    """The layer and its inputs with every input and output in units of its own deviation: no verdict is to change."""
    x = inputs.detach().double()
    size = deviations(x)[1]
    V, W = factors.V.detach().double() * size[:, None], factors.W.detach().double() / units[:, None]
    own = factors.only
    activations = replace(own, coefficients=own.coefficients.detach().double(), shift=own.shift.detach().double())
    return Factors.single(V, W, activations, factors.bias.detach().double() / units), x / size


def _error(solution: Solution, units: Float[Tensor, " n"]) -> float:
    """The relative error of the outputs on the samples that tell it, and of Jacobians on some fitted ones, in units.

    Of Jacobians that were estimated or of which there are views it is that of the solver, in its own coordinates.
    """
    factors, problem = solution.factors, solution.problem
    frame = mean_output(factors, problem), 1 / units
    fitted, validation, test = problem.split
    judged = next((one for one in (test, validation) if len(one)), fitted)
    outputs = output_misfit(factors, problem, judged, frame).total
    whole = problem.samples.covariance is None and problem.samples.directions is None
    some = fitted[used(len(fitted))]
    slopes = errors_at(factors, problem, some, frame).jacobians if whole else solution.jacobian_error
    return ((slopes**2 + outputs**2) / 2) ** 0.5


def _read(subject: object, inputs: Tensor | None) -> tuple[Factors, Tensor, Tensor]:
    """The layer, where it is used, and the units of its outputs: their deviations, at the samples if there are any."""
    if isinstance(subject, Solution):
        samples, factors = subject.problem.samples, one_layer(subject.factors, "the uniqueness is known of")
        varying = without_bias(factors, samples.original_inputs)
        units = units_of(samples.original_outputs.to(varying.device), varying)
        return factors, samples.original_inputs if inputs is None else inputs, units
    if not isinstance(subject, Factors):
        raise TypeError(f"expected a tenflex.Factors or a tenflex.Solution, got {type(subject).__name__}")
    if inputs is None and degree_of(subject.only.basis) is None:
        raise ValueError(f"inputs are needed for {subject.only.basis!r}: pass points (S, m) where the layer is used")
    if inputs is None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(NORMAL_INPUTS, len(subject.V), generator=generator, dtype=torch.float64, device="cpu")
    require_inputs(subject, inputs)
    return subject, inputs, output_units(subject, inputs)


def _covariance(subject: object) -> Tensor | None:
    """That of the Jacobians of the samples, if they were estimated, in the coordinates of the layer."""
    if not isinstance(subject, Solution) or subject.problem.samples.reduction is not None:
        return None
    return subject.problem.samples.covariance


def _conditions(factors: Factors, inputs: Tensor) -> tuple[Condition, ...]:
    """What is necessary, and what the sizes lead one to expect, which decides nothing about one layer."""
    m, n, (rank,), degree = len(factors.V), len(factors.W), factors.ranks, degree_of(factors.only.basis)
    counted = () if degree is None else (parameter_count(m, n, rank, degree),)
    return (
        live_nodes(factors, inputs),
        distinct_directions(factors.V),
        *counted,
        jacobian_cpd(m, n, rank, degree),
    )


def _uniqueness(conditions: tuple[Condition, ...], proof: Condition, local: LocalRank | None) -> Uniqueness:
    if any(condition.proves is False for condition in conditions) or (local is not None and local.exchanges):
        return Uniqueness.NONE
    if proof.proves:
        return Uniqueness.GLOBAL
    return Uniqueness.UNKNOWN if local is None else Uniqueness.LOCAL


def _node_errors(local: LocalRank, error: float) -> tuple[float, ...]:
    return tuple(inf if condition == inf else condition * error for condition in local.conditions)


def _linear_nodes(factors: Factors, inputs: Tensor) -> tuple[int, ...]:
    with torch.no_grad():
        H = factors.slopes(inputs.to(factors.bias))[0].double()
    size = H.square().mean(0).sqrt()
    straight = (H.std(0, correction=0) <= STRAIGHT * size) & (size > 0)
    return tuple(straight.nonzero().flatten().tolist())
