"""Spans of modules whose outputs arrive unchanged at the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tenflex.surgery.batch import tensors_in
from tenflex.surgery.record import Call, Event, Tape


def follow(tape: Tape, first: Call, last: Call) -> list[Call] | None:
    """The calls from the first module to the last, each given the very tensor that the one before it returned.

    Returns:
        The chain, or None where there is none: functions stand between, or a module on the way is called elsewhere too.
    """
    chains = follow_each(tape, [first], [last])
    return None if chains is None else chains[0]


def follow_each(tape: Tape, firsts: Sequence[Call], lasts: Sequence[Call]) -> list[list[Call]] | None:
    """The chains of modules that are called several times, one for each call of the first of them.

    Returns:
        The chains, all of the same modules; None where there is none, or one is of other modules.
    """
    chains = []
    for first, last in zip(firsts, lasts, strict=True):
        chain = [first]
        while chain[-1] is not last:
            following = _next(tape, chain[-1], last)
            if following is None:
                return None
            chain.append(following)
        chains.append(chain)
    links = [link for chain in chains for link in chain]
    alone = all(one in links for link in links for one in tape.of(link.module))
    alike = all([link.module for link in chain] == [link.module for link in chains[0]] for chain in chains)
    return chains if alone and alike else None


def _next(tape: Tape, call: Call, last: Call) -> Call | None:
    """The outermost module that is given the output of `call` and does more than hold `last`."""
    for one in tape.calls:
        takes = len(one.args) == 1 and not one.kwargs and one.args[0] is call.output
        if takes and one.start > call.end and one.end <= last.end and not one.contains(last):
            return one if isinstance(one.output, Tensor) or one is last else None
    return None


def crossings(tape: Tape, chain: list[Call]) -> list[str]:
    """The tensors that cross the border of a chain besides its input and its output, in words."""
    return _leaving(tape, chain) + _entering(tape, chain)


def readings(tape: Tape, chain: list[Call], own: Mapping[str, nn.Parameter]) -> list[str]:
    """Parameters of a chain that are used outside, as by a method of a module that is kept elsewhere, in words."""
    names = {id(one): name for name, one in own.items()}
    return [
        f"the parameter {names[id(tensor)]!r} is used by {_place(event)}"
        for event in tape.events
        if not _inside(chain, event)
        for tensor in event.used
        if id(tensor) in names
    ]


def _leaving(tape: Tape, chain: list[Call]) -> list[str]:
    """Tensors made inside and used outside."""
    made = _made_inside(tape, chain)
    outputs, end = {id(one) for one in tensors_in(chain[-1].output)}, chain[-1].end
    found = [
        f"{made[id(tensor)]} is used by {_place(event)}"
        for event in tape.events
        if not _inside(chain, event)
        for tensor in event.used
        if id(tensor) in made and not (id(tensor) in outputs and event.time > end)
    ]
    returned = [one for one in tensors_in(tape.output) if id(one) in made and id(one) not in outputs]
    return found + [f"{made[id(one)]} is returned by the network" for one in returned]


def _entering(tape: Tape, chain: list[Call]) -> list[str]:
    """Tensors made outside and used inside."""
    made = {id(one): "the input of the network" for one in tensors_in(tape.inputs)}
    for event in tape.events:
        if not _inside(chain, event):
            made |= {id(one): f"the result of {_place(event)}" for one in event.made}
    for known in [*_made_inside(tape, chain), id(chain[0].args[0])]:
        made.pop(known, None)
    return [
        f"{made[id(tensor)]} is used inside by {_place(event)}"
        for event in tape.events
        if _inside(chain, event)
        for tensor in event.used
        if id(tensor) in made
    ]


def _made_inside(tape: Tape, chain: list[Call]) -> dict[int, str]:
    """What to call each tensor made inside, by identity: after the module that returns it, or after the function."""
    events = [event for event in tape.events if _inside(chain, event)]
    made = {id(one): f"the result of {_place(event)}" for event in events for one in event.made}
    made |= {id(one): f"the output of {link.path!r}" for link in chain for one in tensors_in(link.output)}
    made.pop(id(chain[0].args[0]), None)
    return made


def _inside(chain: list[Call], event: Event) -> bool:
    return any(link.at(event.time) for link in chain)


def _place(event: Event) -> str:
    return f"{event.name!r} in {event.module!r}" if event.module else f"{event.name!r}"
