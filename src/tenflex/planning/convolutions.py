"""Rows of convolutions that a planner may replace together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise

from torch import nn

from tenflex.baselines.linear import is_dense, stored
from tenflex.kept.channels import own_channels
from tenflex.planning.candidates import WIDEST_PATCH
from tenflex.planning.surveyed import Candidate
from tenflex.sampling.capture import capture
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch
from tenflex.surgery.paths import has_forward, join
from tenflex.units.patch import find_patch

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Row = list[tuple[str, nn.Module]]

Find = Callable[[str], Cut]
"""How a block is taken out, by its name; ValueError if it cannot be."""


def convolutions(model: nn.Module, example: Batch, find: Find) -> list[Candidate]:
    """Blocks of several convolutions that act alike at all places, none of which overlaps another in part, or is it.

    Those with two convolutions and a known function between, such as the bodies of residual blocks, come first.
    """
    able = [one for row in rows_of(model) for name in spans_of(row) if (one := tried(model, name, example, find))]
    found: list[tuple[Candidate, frozenset[str], bool]] = []
    for one in sorted(able, key=lambda known: not known[2]):
        if all(one[1] < other or other < one[1] or not one[1] & other for _, other, _ in found):
            found.append(one)
    return [candidate for candidate, _, _ in found]


def single_convolutions(model: nn.Module, find: Find) -> list[Candidate]:
    """The convolutions of all channels that are called once and share their numbers with nothing."""
    uses = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    whole, found = sum(one.numel() for one in model.parameters()), []
    for name, module in model.named_modules():
        if (
            not isinstance(module, KINDS)
            or not is_dense(module)
            or any(uses[id(one)] > 1 for one in module.parameters())
        ):
            continue
        try:
            find(name)
        except ValueError:
            continue
        numbers, sizes = stored(module, None), (module.weight[0].numel(), len(module.weight))
        found.append(Candidate(name, 1, type(module).__name__, 1, numbers, numbers / whole, sizes))
    return found


def rows_of(model: nn.Module) -> Iterator[Row]:
    """The rows of modules, registered one after the other, that are convolutions or have no parameters."""
    for path, module in model.named_modules():
        if not has_forward(module) and not isinstance(module, nn.ModuleList):
            continue
        children = [(join(path, name), child) for name, child in module.named_children()]
        for alike, row in groupby(children, key=lambda one: is_convolutional(one[1])):
            if alike:
                yield list(row)


def is_convolutional(module: nn.Module) -> bool:
    """Whether all parameters of a module are those of convolutions and of normalisations behind them."""
    return all(isinstance(one, (*KINDS, *NORMS)) for one in module.modules() if stores(one))


def stores(module: nn.Module) -> bool:
    """Whether a module has parameters of its own."""
    return any(True for _ in module.parameters(recurse=False))


def count_in(module: nn.Module) -> int:
    """The convolutions in a module."""
    return sum(isinstance(one, KINDS) for one in module.modules())


def spans_of(row: Row) -> Iterator[str]:
    """Modules of several convolutions; all of a row, from its first one to the last module behind it; neighbours."""
    places = [place for place, (_, module) in enumerate(row) if count_in(module)]
    for place in places:
        if count_in(row[place][1]) > 1:
            yield row[place][0]
    ends = [*places[1:], len(row)]
    pairs = [(one, ends[index + 1]) for index, (one, _) in enumerate(pairwise(places))]
    if places and (places[0], len(row)) not in pairs and len(places) > 1:
        yield f"{row[places[0]][0]}:{row[-1][0]}"
    for first, end in pairs:
        behind = [place for place in range(first, end) if count_in(row[place][1]) or isinstance(row[place][1], NORMS)]
        yield f"{row[first][0]}:{row[behind[-1]][0]}"


def tried(model: nn.Module, name: str, example: Batch, find: Find) -> tuple[Candidate, frozenset[str], bool] | None:
    """A candidate with its modules, and whether its channels are known; None if it is no such block."""
    try:
        cut = find(name)
        arrived, left = capture(model, [cut], [example])[name]
        function = cut.function(model)
        own = own_channels(function, arrived) is not None
        patch = find_patch(function, arrived, None if own else WIDEST_PATCH)  # of wider ones nothing is made
    except (TypeError, ValueError):
        return None
    inside = [one for path, one in model.named_modules() if path in cut.modules]
    parts = {id(part): part for one in inside for part in one.modules()}.values()
    numbers = sum(one.numel() for part in parts for one in part.parameters(recurse=False))
    count = sum(isinstance(part, KINDS) for part in parts)
    if count < 2 or not (own or max(patch.places) > 1):
        return None
    whole = sum(one.numel() for one in model.parameters())
    sizes = arrived.shape[1] * patch.window.dims, left.shape[1]
    holding = {id(part) for part in parts if stores(part)}
    modules = frozenset(path for path, part in model.named_modules() if id(part) in holding)
    return Candidate(name, 1, f"{count} convolutions", count, numbers, numbers / whole, sizes), modules, own
