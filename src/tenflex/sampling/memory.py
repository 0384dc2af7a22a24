"""What Jacobians take in memory, and whether it fits: said before they are taken."""

from __future__ import annotations

from dataclasses import dataclass

from tenflex.checks import require_whole
from tenflex.scratch import require_disk
from tenflex.sums import CHUNK

MOST_MEMORY = 4 * 2**30
"""Bytes that sampling, and solving on the samples, may take at their peak, unless told otherwise."""

ROOM = 200 * 10**6
"""Bytes for what is at work at a time, beside the Jacobians that are kept."""

PER_NUMBER = 12
"""Bytes at the peak for each number of the reduced Jacobians: 8 for itself, and half as much for what solvers hold."""

PER_INPUT = 24
"""Bytes at the peak for each number of the inputs, while coordinates are chosen: copies in double precision."""

AT_WORK = 32
"""Bytes for each number of the Jacobians that are at work: as they come, in double precision, and two products."""

PER_VIEWED = 8
"""Bytes for each number of the views, and of the directions along which they look: solvers make no others as large."""

PER_OUTPUT = 32
"""Bytes for each number of the outputs, where there are no whole Jacobians beside which they are few."""

WIDE = 2**20
"""Of so many numbers a whole Jacobian is reduced row by row: only a few of them would pass a network together."""

AS_THEY_COME = 8
"""Bytes of those for one that only waits: what is made of the Jacobians is made of a chunk at a time."""


@dataclass(frozen=True)
class Budget:
    """How many samples of a block fit in memory.

    Args:
        most: The bytes that sampling the block and solving for its layer may take at their peak, beside the network and
            what arrives at the block.
        n: The number of outputs.
        m: The number of inputs.
        views: The views of each Jacobian that are kept; None where whole ones are.
    """

    most: int
    n: int
    m: int
    views: int | None = None

    @property
    def room(self) -> int:
        """Bytes for what is at work at a time: for two samples at least."""
        least = 2 * AT_WORK * self.n * self.m if self.views is None and self.n * self.m <= WIDE else 0
        return max(min(ROOM, self.most // 4), least)

    @property
    def together(self) -> int:
        """How many samples may be at work together."""
        numbers = max(self.room // AT_WORK, (self.room - (AT_WORK - AS_THEY_COME) * CHUNK) // AS_THEY_COME)
        return max(2, numbers // (self.n * self.m))

    def taken(self, count: int, active: int) -> int:
        """The bytes at the peak for so many samples, in so many active directions of the inputs."""
        return self.room + count * self._of_sample(active)

    def fitting(self, active: int) -> int:
        """The most samples that fit."""
        return max(0, (self.most - self.room) // self._of_sample(active))

    def require(self, count: int, active: int = 1) -> None:
        """Raise ValueError, with the number that fits, if so many samples do not, in so many active directions or more.

        While it is not known how many directions are active there is one at least.
        """
        if self.views == 0:  # what is large stands in files
            require_disk(count * 8 * (active + self.n))
            return
        fitting = self.fitting(active)
        if count <= fitting:
            return
        cure = f"use at most samples={fitting}, or allow more memory" if fitting >= 2 else "allow more memory"
        what = "Jacobians" if self.views is None else "views of the Jacobians"
        raise ValueError(
            f"the {what} of {count} samples, {self.n} outputs and {active} active inputs (of {self.m}) take "
            f"{in_units(self.taken(count, active))} at the peak, more than the {in_units(self.most)} that are "
            f"allowed: {cure}"
        )

    def _of_sample(self, active: int) -> int:
        if self.views is None:
            return max(PER_NUMBER * self.n * active, PER_INPUT * self.m)
        return PER_VIEWED * self.views * (active + self.n) + PER_OUTPUT * self.n + PER_INPUT * self.m


def require_whole_jacobians(shape: tuple[int, int, int], size: int, order: int, most_memory: int) -> None:
    """Raise ValueError, with the number that fits, if derivatives that are kept as they are do not fit.

    Args:
        shape: The numbers of samples, outputs and inputs.
        size: The bytes of a number.
        order: The highest derivatives that are taken.
        most_memory: The bytes that may be taken at the peak.
    """
    require_whole("most_memory", most_memory, at_least=1)
    count, n, m = shape
    each = size * n * m * (1 + m * (order - 1))
    room = min(ROOM, most_memory // 4)
    fitting = (most_memory - room) // each
    if count > fitting:
        what = "Jacobians" if order == 1 else "Jacobians and Hessians"
        cure = f"pass at most {fitting} points, or more most_memory" if fitting >= 2 else "pass more most_memory"
        raise ValueError(
            f"the {what} of {count} samples, {n} outputs and {m} inputs take {in_units(count * each + room)} at the "
            f"peak, more than most_memory={in_units(most_memory)}: {cure}"
        )


def in_units(size: int) -> str:
    """Bytes in the largest unit of which there is one."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size} bytes"
