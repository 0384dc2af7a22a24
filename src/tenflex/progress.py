"""What a callback is told of work that goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ESTIMATE = "estimate"
"""The stage in which is told how long a task will take."""


@dataclass(frozen=True)
class Progress:
    """Where a piece of work stands; `str()` names it.

    Args:
        stage: What is being done, such as "sample" or the name of an algorithm.
        done: Steps taken.
        total: The most steps there will be.
        error: The relative squared error of the outputs at this point; None outside of solving.
        task: What it is done for: the name of a block, or "rank 3, grown"; empty where there is one task only.
        seconds: About how long the whole task will take, told once before it begins; None else.

    Example:
        >>> seen = []
        >>> solution = decouple(problem, on_progress=seen.append)
        >>> isinstance(seen[-1], Progress), seen[-1].total >= seen[-1].done
        (True, True)
        >>> str(Progress("refine", 3, 10, 0.04, "fc1:fc3"))
        'fc1:fc3: refine'
    """

    stage: str
    done: int
    total: int
    error: float | None = None
    task: str = ""
    seconds: float | None = None

    def __str__(self) -> str:
        return f"{self.task}: {self.stage}" if self.task else self.stage


OnProgress = Callable[[Progress], None]
"""What is called with it."""


def listening(on_progress: OnProgress | None) -> OnProgress:
    """What is called, or nothing; TypeError if it cannot be called."""
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function of a tenflex.Progress, got {on_progress!r}")
    return on_progress or silent


def silent(progress: Progress) -> None:
    """Tell nobody."""
