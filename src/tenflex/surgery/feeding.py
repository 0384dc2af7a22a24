"""Modules that feed each other, wherever in a network they are registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from tenflex.surgery.batch import Batch
from tenflex.surgery.record import Call, Tape, record


def feeding(model: nn.Module, example: Batch, able: Callable[[nn.Module], bool]) -> list[list[str]]:
    """The rows of modules of which each is given what the one before it returned, or functions of that alone.

    The two linear layers of a feed-forward part are such a row in networks that keep them in modules of different
    parents, where neither the parents nor their order tell that they belong together.

    Args:
        model: The network.
        example: One batch of input.
        able: Which modules count; of those inside another one only the outer.

    Returns:
        The paths of the modules of each row of two and more, in the order of the calls.

    Raises:
        ValueError: if the forward pass fails.
    """
    tape = record(model, example, ())
    calls = [one for one in tape.calls if able(one.module) and _is_map(one) and len(tape.of(one.module)) == 1]
    outer = [one for one in calls if not any(other.contains(one) for other in calls)]
    rows: list[list[Call]] = []
    features = {id(one) for one in (*model.parameters(), *model.buffers()) if one.ndim < 2}
    for source, follower in _links(tape, outer, features):
        row = next((row for row in rows if row[-1] is source), None)
        if row is None:
            rows.append(row := [source])
        row.append(follower)
    return [[one.path for one in row] for row in rows]


def _is_map(one: Call) -> bool:
    """Whether a module was called with one tensor and gave one."""
    return len(one.args) == 1 and not one.kwargs and isinstance(one.args[0], Tensor) and isinstance(one.output, Tensor)


def _links(tape: Tape, calls: list[Call], features: set[int]) -> Iterator[tuple[Call, Call]]:
    """The calls that are given what another one returned, or a function of it alone, each with that other.

    Functions may take numbers of each feature, too, as normalisations do.
    """
    begins, ends = ({getattr(one, name): one for one in calls} for name in ("start", "end"))
    events = {one.time: one for one in tape.events}
    origins: dict[int, Call] = {}
    for time in sorted({*begins, *ends, *events}):
        if time in begins and id(begins[time].args[0]) in origins:
            yield origins[id(begins[time].args[0])], begins[time]
        if time in ends:
            origins[id(ends[time].output)] = ends[time]
        if time in events:
            used = [one for one in events[time].used if id(one) not in features]
            origin = origins.get(id(used[0])) if len(used) == 1 else None
            origins |= {id(one): origin for one in events[time].made if origin is not None}
