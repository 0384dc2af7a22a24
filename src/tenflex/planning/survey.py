"""Which blocks of a network a flexible layer can replace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from tenflex.baselines.linear import weight_of
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.nn.attention import is_openable
from tenflex.planning.plan import Block
from tenflex.planning.sizes import first_try
from tenflex.planning.surveyed import Candidate, Survey
from tenflex.sampling.capture import capture
from tenflex.sampling.checks import require_samplable
from tenflex.sampling.order import require_rows_in_order, require_rows_of_all
from tenflex.surgery import find_blocks, find_cut
from tenflex.surgery.batch import Batch, backwards, count_samples
from tenflex.surgery.door import require_module, require_modules
from tenflex.surgery.feeding import feeding
from tenflex.surgery.find import is_plain
from tenflex.surgery.paths import has_forward, join
from tenflex.surgery.twin import twin
from tenflex.units.position import positions

LONGEST_IN_PAIRS = 4
"""Of longer rows of layers only the whole is a candidate, not every pair of neighbours."""


def survey(model: nn.Module, example: Batch | None) -> Survey:
    """Find the blocks of linear layers, and with an example of the input try to take each of them out.

    Raises:
        TypeError: if the model is no module.
        ValueError: if no block of it could be replaced, or it cannot be run on the example.
    """
    require_modules(model)
    if example is not None:
        require_module(model)
        model = twin(model)  # which may be run: the network stays as it is
        require_samplable(model, example)
    blocks = {name: _members(model, name) for name in _names(model)}
    found = [_candidate(model, *block) for block in blocks.items()]
    if example is not None:
        found = [_tried(model, one, example) for one in found]
        for name, members in _fed(model, example).items():
            one = _tried(model, _candidate(model, name, members), example)
            if name not in blocks and one.obstacle is None:
                inner = [index for index, other in enumerate(found) if _inside(blocks[other.name]) <= _inside(members)]
                found.insert(min(inner, default=len(found)), one)
                blocks[name] = members
    found = _suggesting(found, {name: _inside(members) for name, members in blocks.items()})
    inside = set[int]().union(*(_inside(blocks[one.name]) for one in found if one.layers > 1))
    candidates = tuple(_alike(model, found, blocks))
    return Survey(type(model).__name__, _numbers(model), example is not None, candidates, _others(model, inside))


def _names(model: nn.Module) -> Iterator[str]:
    """The network, its modules, and spans of neighbours, of linear layers and what may stand between them.

    Modules with names that are no plain ones, as keys may be, are left out.
    """
    for path, module in model.named_modules():
        if not is_plain(path):
            continue
        alone = not (is_linear(module) and is_parametrized(module))  # there is no thin layer for such a one
        callable_block = alone and _is_dense(module) and has_forward(module)
        if callable_block:
            yield path
        for run in _runs(path, module):
            whole = f"{run[0]}:{run[-1]}"
            if not (callable_block and path and len(run) == len(_children(module))):  # that is the module itself
                yield whole
            if 2 < len(run) <= LONGEST_IN_PAIRS:
                yield from (f"{first}:{last}" for first, last in pairwise(run))


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if _numbers(child)]


def _runs(path: str, module: nn.Module) -> list[list[str]]:
    """The rows of two and more children of linear layers, registered one after the other but for what stands between.

    Blocks that are attributes, each with a norm of its own, mostly have connections around them: there every block
    stays alone, and only layers themselves make a row across norms.
    """
    children = _children(module)
    dense, between = ({name for name, child in children if is_(child)} for is_ in (_is_dense, _is_between))
    if isinstance(module, nn.Sequential):
        rows = _rows(children, dense, between)
    else:
        layers = {name for name, child in children if name in dense and is_linear(child)}
        rows = _rows(children, dense, set()) + _rows(children, layers, between)
    return [[join(path, name) for name in row] for row in rows if len(row) > 1 and all(map(is_plain, row))]


def _rows(children: list[tuple[str, nn.Module]], able: set[str], between: set[str]) -> list[list[str]]:
    """The names that are able, in rows that end where another child stands, unless it may stand between them."""
    rows = groupby((name for name, _ in children), key=lambda name: name in able | between)
    return [[name for name in row if name in able] for inside, row in rows if inside]


def _is_dense(module: nn.Module) -> bool:
    """Whether a module has linear layers, and no parameters but theirs and, in a row of modules, of what is between."""
    layers = [one for one in module.modules() if is_linear(one)]
    theirs = {id(part) for one in layers for part in one.modules()}  # what computes their weights, too
    others = any(_own(one) and id(one) not in theirs for one in module.modules())
    fit = not others or (isinstance(module, nn.Sequential) and _is_row(module))
    return bool(layers) and fit and _numbers(module) > 0


def _is_row(module: nn.Sequential) -> bool:
    """Whether a row of modules has nothing but dense ones and what may stand between them."""
    return all(_is_dense(child) or _is_between(child) for _, child in _children(module))


def _is_between(module: nn.Module) -> bool:
    """Whether a module is a function with some numbers for each feature: a normalisation, an activation."""
    return not any(module.children()) and all(one.ndim < 2 for one in module.parameters())


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, by whatever name."""
    return _widths(module) is not None


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """How many numbers go into a linear map and come out; None of another module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = weight_of(module)
    return None if weight is None else (weight.shape[1], len(weight))


def _own(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters(recurse=False))


def _numbers(module: nn.Module) -> int:
    """What a file of a module holds: buffers too, such as masks and statistics, which go with their block."""
    return stored_numbers(module)


def _members(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules of a block: of a span, the children of one parent from the first to the last."""
    first, colon, last = name.partition(":")
    if not colon:
        return [model.get_submodule(name)]
    children = model.get_submodule(first.rpartition(".")[0]).named_children()
    names, modules = zip(*children, strict=True)
    start, end = (names.index(one.rpartition(".")[2]) for one in (first, last))
    return list(modules[start : end + 1])


def _fed(model: nn.Module, example: Batch) -> dict[str, list[nn.Module]]:
    """The modules of each span of dense ones that feed each other, as those of different parents may."""
    found = {}
    for row in feeding(model, example, lambda one: _is_dense(one) and has_forward(one)):
        pairs = list(pairwise(row)) if 2 < len(row) <= LONGEST_IN_PAIRS else []
        for part in (row, *pairs):
            if all(map(is_plain, part)):
                found[f"{part[0]}:{part[-1]}"] = [model.get_submodule(path) for path in part]
    return found


def _inside(members: list[nn.Module]) -> set[int]:
    """All modules that some hold, by identity."""
    return {id(one) for part in members for one in part.modules()}


def _candidate(model: nn.Module, name: str, members: list[nn.Module]) -> Candidate:
    maps = (_widths(one) for member in members for one in member.modules())
    linear = [one for one in maps if one is not None]
    parameters = _numbers(nn.ModuleList(members))  # tied ones once
    kind = f"{sum(1 for one in members if _numbers(one))} modules" if len(members) > 1 else type(members[0]).__name__
    sizes = linear[0][0], linear[-1][1]
    return Candidate(name, 1, kind, len(linear), parameters, parameters / _numbers(model), sizes)


def _tried(model: nn.Module, one: Candidate, example: Batch) -> Candidate:
    """The candidate, taken out of the network once."""
    try:
        cut = find_cut(model, one.name, example)
        arrived, left = capture(model, [cut], [example])[one.name]
        require_rows_of_all(arrived, count_samples(example))
        turned, _ = capture(model, [cut], [backwards(example)])[one.name]
        require_rows_in_order(arrived, turned, count_samples(example))
    except ValueError as error:
        return replace(one, obstacle=" ".join(str(error).split()), sizes=None)
    function = cut.function(model)
    rows = positions(function, arrived)
    sizes = (arrived.shape[-1], left.shape[-1]) if rows else (arrived[0].numel(), left[0].numel())
    macs = cost(function, arrived).times(len(arrived) // count_samples(example)).macs
    return replace(one, sizes=sizes, macs=macs)


def _suggesting(found: list[Candidate], inside: Mapping[str, set[int]]) -> list[Candidate]:
    """The candidates, with a layer to begin with for those that lie in no other one but the whole network."""
    layers = {one.name: _first_layer(one) for one in found}
    able = [name for name, layer in layers.items() if layer is not None]
    able = [name for name in able if name] or able
    outermost = [name for name in able if not any(inside[name] < inside[other] for other in able)]
    return [replace(one, suggestion=layers[one.name]) if one.name in outermost else one for one in found]


def _first_layer(one: Candidate) -> Block | None:
    """A layer to begin with, if the block can be replaced and has functions between layers to make flexible."""
    if one.obstacle is not None or one.sizes is None or one.layers < 2:
        return None
    return first_try(*one.sizes, one.parameters)


def _alike(model: nn.Module, found: list[Candidate], blocks: Mapping[str, list[nn.Module]]) -> list[Candidate]:
    """The candidates, where those that differ in numbers of their names alone become one."""
    most = max((one.name.count(".") + 2 for one in found), default=0)
    for wildcards in range(most, 0, -1):
        groups: dict[Any, list[Candidate]] = {}
        for one in found:
            key = one.kind, one.parameters, one.sizes, one.obstacle is None
            groups.setdefault((_pattern(one.name, wildcards), *key), []).append(one)
        found = [one for (pattern, *_), group in groups.items() for one in _joined(model, pattern, group, blocks)]
    return found


def _joined(
    model: nn.Module, pattern: str, group: list[Candidate], blocks: Mapping[str, list[nn.Module]]
) -> list[Candidate]:
    """The group as one candidate, if the pattern stands for exactly its blocks."""
    if len(group) == 1 or not _names_all(model, pattern, group):
        return group
    stored = _numbers(nn.ModuleList(part for one in group for part in blocks[one.name]))  # tied ones once
    return [replace(group[0], name=pattern, count=len(group), share=stored / _numbers(model))]


def _pattern(name: str, wildcards: int) -> str:
    """The name with wildcards for its first numbers: "layers.3.fc1" as "layers.*.fc1"."""
    ends = []
    for end in name.split(":"):
        parts = end.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdecimal()][:wildcards]
        ends.append(".".join("*" if index in numbers else part for index, part in enumerate(parts)))
    return ":".join(ends)


def _names_all(model: nn.Module, pattern: str, group: list[Candidate]) -> bool:
    """Whether a pattern stands for exactly these blocks."""
    try:
        return set(find_blocks(model, [pattern])) == {one.name for one in group}
    except ValueError:
        return False


def _others(model: nn.Module, inside: set[int]) -> dict[str, int]:
    """What modules store that are no linear layers and in no block, by type."""
    counted: Counter[str] = Counter()
    for module in model.modules():
        if _own(module) and not is_linear(module) and id(module) not in inside:
            kind = PARAMETRIZED if isinstance(module, ParametrizationList) else type(module).__name__
            kind = OPENABLE if is_openable(module) else kind
            buffers = (one for one in module.buffers(recurse=False) if one.is_floating_point())
            counted[kind] += _own(module) + sum(one.numel() for one in buffers)
    return dict(counted)


OPENABLE = "MultiheadAttention (layers in tenflex.nn.opened(model))"
"""What stands for attention whose projections can be made layers."""

PARAMETRIZED = "layers with parametrizations (plain after torch.nn.utils.parametrize.remove_parametrizations)"
"""What stands for weights that are computed from others."""
