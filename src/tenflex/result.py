"""Why a solver stopped, as advice, and what it was like after every step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Result(Enum):
    """Why a solver stopped; the value says what it means for the user.

    Example:
        >>> decouple(problem).result.name
        'EXACT'
        >>> print(Result.EXACT.value)
        exact: the samples are reproduced to rounding error
    """

    CONVERGED = "converged: the error no longer falls"
    EXACT = "exact: the samples are reproduced to rounding error"
    MOST_STEPS = "took all its steps: more steps may lower the error a little"
    DIVERGED = (
        "diverged: the error grew or became NaN; the best state seen is returned. "
        "Lower the rank, pass more samples, or use ConstrainedALS and Refine"
    )
    SINGULAR = (
        "singular: two nodes became the same, or cancel each other, or a node died; lower the rank, or try other "
        "starts with MultiStart"
    )


class Judged(Enum):
    """Of which samples an error is; the value says it in words."""

    TEST = "held-out inputs that chose nothing"
    VALIDATION = "held-out inputs on which starts and steps were chosen, which flatters"
    FITTED = "the fitted inputs, which flatters"


@dataclass(frozen=True)
class Record:
    """One line of a solution's history.

    Args:
        stage: The algorithm at work.
        jacobian_error: Relative squared error of the Jacobians of the fitted samples.
        output_error: The same of the outputs.
        held_out_error: The relative squared error of the outputs of the validation samples, on which starts and steps
            are chosen; None when all are fitted.
        seconds: Time since the start.
    """

    stage: str
    jacobian_error: float
    output_error: float
    held_out_error: float | None
    seconds: float
