"""From the name of a block to its cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.surgery.batch import Batch, backwards, call, clone, count_samples, describe, few, nearly_equal
from tenflex.surgery.carry import Passed
from tenflex.surgery.chain import crossings, follow, follow_each, readings
from tenflex.surgery.cut import Cut
from tenflex.surgery.door import require_module
from tenflex.surgery.facts import question
from tenflex.surgery.find import split
from tenflex.surgery.parts import MODULES, Parts
from tenflex.surgery.paths import below, encloses, get_module, join, smallest_parent
from tenflex.surgery.quiet import undisturbed
from tenflex.surgery.record import Call, Tape, record
from tenflex.surgery.refuse import (
    only_call,
    parameters_below,
    parameters_named,
    require_alike,
    require_order,
    require_parameters,
    require_plain,
    require_untied,
    several_calls,
)
from tenflex.surgery.region import Region, find_region, require_no_crossing
from tenflex.surgery.trace import UntraceableError, trace_example
from tenflex.surgery.twin import twin


def find_cut(model: nn.Module, name: str, example: Batch) -> Cut:
    """Find out how a block is taken out of a network, and try it.

    The network runs twice on the example: once to see which tensors go where, and once, as a copy that shares all
    parameters, with the block taken out and put back. The first must have given the same as the second.

    Args:
        model: The network, in eval mode; nothing of it changes.
        name: A module ("encoder.layer.3.mlp"), a span of two ("fc1:fc3"), or "" for the whole network.
        example: One batch of input, samples first: a tensor, a tuple of tensors, or a mapping of keyword tensors. The
            first few samples are used.

    Returns:
        The cut.

    Raises:
        TypeError: if the network is not a module, or the example is not made of tensors.
        ValueError: if the block cannot be taken out: tensors cross its border, its modules do not feed each other, are
            never called, or several times but not in a chain and alike, take something else than one tensor, return
            something else than one or several, share parameters with others, or have none.
    """
    require_module(model)
    ends = split(model, name)
    example = few(example)
    tape = record(model, example, tuple(get_module(model, end) for end in ends))
    calls = [tape.of(get_module(model, end)) for end in ends]
    if min(map(len, calls)) > 1:
        return _repeated(model, tape, name, (calls[0], calls[1]), example)
    first, last = (only_call(model, tape, end) for end in ends)
    require_order(name, first, last)
    require_plain(first, last)
    cut, own = _cut(model, tape, name, ends, (first, last))
    if cut.parts is None:
        cut = replace(cut, parts=Parts.of(last.output))
    require_parameters(name, own)
    require_untied(model, name, own)
    if cut.parent is None:
        chain = [one for path in cut.modules for one in tape.of(get_module(model, path))]
        require_no_crossing(readings(tape, chain, own))
    return _tried(model, cut, example, (tape, first, last))


def _repeated(model: nn.Module, tape: Tape, name: str, calls: tuple[list[Call], list[Call]], example: Batch) -> Cut:
    """The cut of a chain that is called several times, as a tower that two inputs share."""
    ends, (firsts, lasts) = split(model, name), calls
    chains = follow_each(tape, firsts, lasts) if len(firsts) == len(lasts) else None
    if chains is None or not (len(chains[0]) == 1 or _have_one_name(model, chains[0])):
        raise several_calls(ends[0], len(firsts))
    for chain in chains:
        require_plain(chain[0], chain[-1])
        require_no_crossing(crossings(tape, chain))
    require_alike(name, [(chain[0], chain[-1]) for chain in chains])
    paths = (ends[0], *(link.path for link in chains[0][1:]))
    own = parameters_below(model, paths)
    require_parameters(name, own)
    require_untied(model, name, own)
    require_no_crossing(readings(tape, [link for chain in chains for link in chain], own))
    cut = Cut(name, *ends, paths[1:], parts=Parts.of(lasts[0].output), calls=len(chains))
    for chain in chains[1:]:
        arrived, left = chain[0].arrived, _left(model, cut, example, chain[-1])
        if arrived is not None and left is not None:
            with undisturbed(model):
                function = cut.function(model)
                _require_same(cut, function, arrived, left)
                _require_rows(cut, function, arrived, left)
    return _tried(model, cut, example, (tape, chains[0][0], chains[0][-1]))


def _cut(
    model: nn.Module, tape: Tape, name: str, ends: tuple[str, str], calls: tuple[Call, Call]
) -> tuple[Cut, dict[str, nn.Parameter]]:
    """The cut and the block's parameters: a chain if there is one, else a graph."""
    chain = follow(tape, *calls)
    crossing = [] if chain is None else crossings(tape, chain)
    if chain is not None and len(chain) == 1:
        require_no_crossing(crossing)
    if chain is not None and not crossing and (len(chain) == 1 or _have_one_name(model, chain)):
        paths = (ends[0], *(link.path for link in chain[1:]))
        return Cut(name, *ends, paths[1:]), parameters_below(model, paths)
    try:
        return _graph_cut(model, tape, name, ends)
    except UntraceableError:
        require_no_crossing(crossing)
        raise


def _have_one_name(model: nn.Module, chain: list[Call]) -> bool:
    """Whether no module of a chain is registered twice: replaced under one name, the other would still be called."""
    modules = {link.module for link in chain}
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module in modules]
    return len(names) == len(modules)


def _graph_cut(model: nn.Module, tape: Tape, name: str, ends: tuple[str, str]) -> tuple[Cut, dict[str, nn.Parameter]]:
    """The cut of a block with functions between its modules, and the block's parameters."""
    parent = smallest_parent(model, *ends)
    module, outer = get_module(model, parent), only_call(model, tape, parent)
    traced = trace_example(module, parent, ends, outer.args, outer.kwargs)
    region = find_region(traced, below(ends[0], parent), below(ends[1], parent))
    called, read = ([join(parent, one) for one in region.targets(kind)] for kind in ("call_module", "get_attr"))
    shared = {join(parent, one) for kind in ("call_module", "get_attr") for one in region.shared(kind)}
    own = parameters_below(model, called) | parameters_named(model, read)
    _require_unshared(name, own, shared)
    passed = tuple(path for path in region.own("call_module") if path != ends[0])
    facts = replace(traced.facts, sizes=_outer_sizes(region))
    parts = _parts(region, parent) if region.heads else None
    return Cut(name, *ends, passed, parent, facts, region.own("get_attr"), parts=parts), own


def _parts(region: Region, parent: str) -> Parts:
    """The tensors that several modules of a block give.

    Raises:
        ValueError: if one of them gives something else.
    """
    paths = [join(parent, str(node.target)) for node in region.ends]
    parts = Parts.leaving(paths, [region.traced.values[node] for node in region.ends])
    if parts is None:
        raise ValueError(
            f"expected a block that one tensor leaves, or several modules with one tensor each, but what leaves "
            f"{paths} is {describe(tuple(region.traced.values[node] for node in region.ends))}: choose a smaller block"
        )
    return parts


def _outer_sizes(region: Region) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shapes of tensors outside whose sizes are used inside."""
    asked = [node.all_input_nodes[0] for node in region.needed if question(node) in ("shape", "size")]
    return tuple((tensor.name, tuple(region.traced.values[tensor].shape)) for tensor in dict.fromkeys(asked))


def _require_unshared(name: str, own: dict[str, nn.Parameter], shared: set[str]) -> None:
    """Raise ValueError if a module or a tensor of the block that has parameters is used outside as well."""
    for path in sorted(shared):
        if any(encloses(path, parameter) for parameter in own):
            raise ValueError(
                f"expected a block with parameters of its own, but {path!r} of {name!r} is also used outside the "
                f"block, so that nothing would be saved: widen the block, or give the other use a copy"
            )


def _tried(model: nn.Module, cut: Cut, example: Batch, seen: tuple[Tape, Call, Call]) -> Cut:
    """The cut with the functions on its way; ValueError unless the block alone and put back give what they gave."""
    tape, first, last = seen
    arrived, left = first.arrived, _left(model, cut, example, last)
    if arrived is None or left is None:  # refused before
        return cut
    _require_precision(cut, arrived, (left, *last.left))
    cut = replace(cut, axis=_axis(model, cut, example, arrived))
    with undisturbed(model):
        function = cut.function(model)
        _require_same(cut, function, arrived, left)
        _require_rows(cut, function, arrived, left)
        again = twin(model)
        output = _called(cut, cut.replace_(again, cut.function(again)), clone(example))
    if not nearly_equal(output, tape.output):
        raise ValueError(
            f"expected a block that acts by its output alone, but with {cut.name!r} taken out and put back the "
            f"network gives another output: perhaps it changes its input in place, and that is used again; choose "
            f"another block"
        )
    end = get_module(again, cut.last)
    return replace(cut, functions=end.way.functions) if isinstance(end, Passed) and end.way else cut


def _axis(model: nn.Module, cut: Cut, example: Batch, arrived: Tensor) -> int:
    """Where examples stand in what arrives: 1 if positions come first, as is seen when examples are turned round."""
    count = count_samples(example)
    if arrived.ndim < 3 or arrived.shape[1] != count or count < 2:
        return 0
    turned = record(model, backwards(example), (get_module(model, cut.first),)).of(get_module(model, cut.first))
    after = turned[0].arrived if turned else None
    first_come = len(arrived) == count and nearly_equal(after, arrived.flip(0))
    return 1 if not first_come and nearly_equal(after, arrived.flip(1)) else 0


def _require_same(cut: Cut, function: nn.Module, arrived: Tensor, left: Tensor) -> None:
    """Raise ValueError unless the block alone gives what it gave in the network."""
    if not nearly_equal(call(function, arrived), left):
        raise ValueError(
            f"expected a block whose output depends on its input alone, but {cut.name!r} taken out gives other outputs "
            f"than in the network: it uses something besides what arrives at {cut.first!r}; choose another block"
        )


def _require_precision(cut: Cut, arrived: Tensor, leaving: Sequence[Tensor]) -> None:
    """Raise ValueError unless a block gives the precision that it is given, as the layer in its place does.

    Where PyTorch chooses precisions itself the layer gives what the block gives.
    """
    others = [one.dtype for one in leaving if one.dtype != arrived.dtype]
    if others and not torch.is_autocast_enabled(arrived.device.type):
        raise ValueError(
            f"expected a block that gives numbers of the dtype that it is given, as its layer does, but {cut.name!r} "
            f"is given {arrived.dtype} and gives {others[0]}: name a block that ends before numbers are converted"
        )


def _left(model: nn.Module, cut: Cut, example: Batch, last: Call) -> Tensor | None:
    """What left the block, several tensors joined."""
    if cut.parts is None:
        return last.left[0] if last.left else None
    if cut.parts.kind != MODULES:
        return cut.parts.joined(last.left)
    modules = tuple(get_module(model, path) for path in cut.parts.names)
    tape = record(model, example, modules)
    return cut.parts.joined([only_call(model, tape, path).left[0] for path in cut.parts.names])


def _called(cut: Cut, model: nn.Module, example: Batch) -> Any:
    """The output of the network with the block put back; ValueError that names the block if that fails."""
    try:
        return call(model, example)
    except ValueError as error:
        raise ValueError(
            f"expected a block that the network needs for its output alone, but with {cut.name!r} taken out and put "
            f"back {error}; choose another block, such as one of its modules"
        ) from None


def _require_rows(cut: Cut, function: nn.Module, arrived: Tensor, left: Tensor) -> None:
    """Raise ValueError unless the block maps one sample after the other."""
    good = arrived.ndim > 0 and left.ndim > 0 and len(arrived) == len(left)
    if good and len(arrived) > 1:
        try:
            good = nearly_equal(call(function, arrived[:1]), left[:1])
        except ValueError:
            good = False
    if not good:
        raise ValueError(
            f"expected a block that maps each sample by itself, samples first, but {cut.name!r}, from "
            f"{describe(arrived)} to {describe(left)}, does not map the first sample alone to the same: choose a "
            f"block that keeps samples apart"
        )
