"""The part of a graph between what arrives at one module and what leaves another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from tenflex.surgery.facts import question
from tenflex.surgery.paths import get_module, join, title
from tenflex.surgery.trace import Traced


@dataclass(frozen=True)
class Region:
    """A block as nodes of a graph: everything that lies on a way from what arrives at the first module to the last one.

    Branches that start at the same tensor and come back before the last module are part of it, such as the second
    factor of a gated feed-forward block.

    Args:
        traced: The module that holds the block.
        source: What arrives at the first module.
        first: The call of the first module.
        last: The call of the last module.
        inside: The nodes of the block, in order, with first and last.
        needed: Nodes outside that make what is used inside of stored tensors and of sizes of others alone, in order.
        heads: The calls of other modules inside whose tensors are used outside alone, in order.
    """

    traced: Traced
    source: fx.Node
    first: fx.Node
    last: fx.Node
    inside: tuple[fx.Node, ...]
    needed: tuple[fx.Node, ...]
    heads: tuple[fx.Node, ...] = ()

    @property
    def ends(self) -> tuple[fx.Node, ...]:
        """All that leaves it."""
        return (*self.heads, self.last)

    @cached_property
    def nodes(self) -> dict[fx.Node, None]:
        """All that the block computes, in an order in which it can be computed."""
        return dict.fromkeys((*self.needed, *self.inside))

    def targets(self, operation: str) -> tuple[str, ...]:
        """The modules that are called ("call_module") or the tensors that are read ("get_attr"), once each."""
        return tuple(dict.fromkeys(str(node.target) for node in self.nodes if node.op == operation))

    def shared(self, operation: str) -> set[str]:
        """Those that are also called or read outside, or whose result is also used there."""
        others = [node for node in self.traced.graph.nodes if node not in self.nodes or self._stays(node)]
        return {str(node.target) for node in others if node.op == operation} & set(self.targets(operation))

    def own(self, operation: str) -> tuple[str, ...]:
        """The paths in the network of those that are called or read by the block alone."""
        shared = self.shared(operation)
        return tuple(join(self.traced.path, one) for one in self.targets(operation) if one not in shared)

    def _stays(self, node: fx.Node) -> bool:
        """Whether a node of the block is used outside too."""
        return node not in self.ends and any(user not in self.nodes for user in node.users)


def find_region(traced: Traced, first: str, last: str) -> Region:
    """The block from the module at `first` to the one at `last`, as seen from the traced module.

    Where other tensors leave it, modules that are called before the last one, and are given nothing else, belong to it
    too: heads that share a trunk.

    Raises:
        ValueError: if no tensor leads from one to the other, or another tensor crosses the border.
    """
    start, end = _only_call(traced, first), _only_call(traced, last)
    source = _argument(traced, start)
    behind = _closure(start, lambda node: node.users)
    inside = _between(source, end)
    if start not in inside:
        raise ValueError(
            f"expected a span of modules that feed each other, but nothing that leaves {join(traced.path, first)!r} "
            f"arrives at {join(traced.path, last)!r}: name two modules on one way through the network"
        )
    place = {node: index for index, node in enumerate(traced.graph.nodes)}
    early = {node for node in behind if place[node] < place[end]}
    inside |= _in_place(early, inside | {source})
    region = _region(traced, (source, start, end), inside)
    crossing = _leaving(region, behind) + _entering(region)
    wider = _with_heads(region, [node for node in traced.graph.nodes if node in early]) if crossing else None
    if wider is not None and not _leaving(wider, behind) + _entering(wider):
        return wider
    require_no_crossing(crossing)
    return region


def _region(
    traced: Traced,
    path: tuple[fx.Node, fx.Node, fx.Node],
    inside: Iterable[fx.Node],
    heads: tuple[fx.Node, ...] = (),
) -> Region:
    """The block of some nodes, with what they need; its path is what arrives, the first call and the last."""
    own = set(inside)
    needed = _needed(traced.graph, own, path[0])
    inner, outer = (tuple(node for node in traced.graph.nodes if node in nodes) for nodes in (own, needed))
    return Region(traced, *path, inner, outer, heads)


def _with_heads(region: Region, early: list[fx.Node]) -> Region | None:
    """The block with all that is made of it alone before its last call, and the heads that this gives; None without.

    Functions at the end of a head, such as a softmax of scores, stay outside.
    """
    free = _independent(region.traced.graph) | {region.source}
    inside = dict.fromkeys(region.inside)
    for node in early:
        if node not in inside and all(one in inside or one in free for one in node.all_input_nodes):
            inside[node] = None
    heads: list[fx.Node] = []
    for node in reversed([one for one in region.traced.graph.nodes if one in inside and one is not region.last]):
        outside = [user for user in node.users if user not in inside]
        if not outside:
            continue
        if len(outside) < len(node.users):  # used on both sides
            return None
        if node.op == "call_module":
            heads.insert(0, node)
        elif node not in region.inside:
            del inside[node]
        else:
            return None
    path = region.source, region.first, region.last
    return _region(region.traced, path, inside, tuple(heads)) if heads else None


def require_no_crossing(crossing: list[str]) -> None:
    """Raise ValueError if there are tensors that cross the border of a block, naming them."""
    crossing = list(dict.fromkeys(crossing))
    if crossing:
        more = f" (and {len(crossing) - 3} more)" if len(crossing) > 3 else ""
        raise ValueError(
            f"expected a block that one tensor enters and one leaves, but other tensors cross its border: "
            f"{'; '.join(crossing[:3])}{more}. Widen the block until it holds them, or choose a smaller one"
        )


def _only_call(traced: Traced, path: str) -> fx.Node:
    """The node that calls the module at a path; a shared module may bear another of its names."""
    module = get_module(traced.root, path)
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    found = [node for node in calls if get_module(traced.root, str(node.target)) is module]
    if len(found) != 1:
        raise ValueError(
            f"expected one call of {join(traced.path, path)!r} in {title(traced.path)}, found {len(found)}: "
            f"name another module"
        )
    return found[0]


def _argument(traced: Traced, call: fx.Node) -> fx.Node:
    """What arrives at a module that is called with one tensor."""
    given = [*call.args, *call.kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], fx.Node):
        place = _name(call, traced.path)
        raise ValueError(f"expected one tensor that arrives at {place}, got {given}: name a later module")
    return given[0]


def _closure(start: fx.Node, neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """All nodes that can be reached from one, with itself."""
    found, left = {start}, [start]
    while left:
        for one in neighbours(left.pop()):
            if one not in found:
                found.add(one)
                left.append(one)
    return found


def _between(source: fx.Node, last: fx.Node) -> set[fx.Node]:
    """The nodes on all ways from one to the other, without the first."""
    before = _closure(last, lambda node: [one for one in node.all_input_nodes if one is not source])
    return before & _closure(source, lambda node: node.users) - {source}


def _in_place(candidates: set[fx.Node], own: set[fx.Node]) -> set[fx.Node]:
    """Nodes that change a tensor of the block in place, such as a bare `F.relu_(x)`: nothing uses what they return."""
    return {node for node in candidates if not node.users and own.issuperset(node.all_input_nodes)}


def _needed(graph: fx.Graph, inside: set[fx.Node], source: fx.Node) -> set[fx.Node]:
    """Nodes outside that make constants, or numbers from the sizes of tensors, for nodes inside."""
    own = _independent(graph)
    found: set[fx.Node] = set()
    left = [one for node in inside for one in node.all_input_nodes]
    while left:
        node = left.pop()
        if node in own and node not in inside and node is not source and node not in found:
            found.add(node)
            left.extend([] if question(node) else node.all_input_nodes)
    return found


def _independent(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that can be computed without the values of any input, from stored tensors and sizes alone."""
    own: set[fx.Node] = set()
    for node in graph.nodes:
        computed = node.op not in ("placeholder", "output") and own.issuperset(node.all_input_nodes)
        if computed or question(node):
            own.add(node)
    return own


def _leaving(region: Region, behind: set[fx.Node]) -> list[str]:
    """Tensors made inside from what leaves the first module, and used outside."""
    parent = region.traced.path
    return [
        f"{_describe(node, parent)} is "
        + (f"returned by {title(parent)}" if user.op == "output" else f"used outside by {_name(user, parent)}")
        for node in region.inside
        if node in behind and node not in region.ends
        for user in node.users
        if user not in region.nodes
    ]


def _entering(region: Region) -> list[str]:
    """Tensors made outside and used inside."""
    parent = region.traced.path
    return [
        f"{_describe(one, parent)} is used inside by {_name(node, parent)}"
        for node in region.inside
        for one in node.all_input_nodes
        if one is not region.source and one not in region.nodes
    ]


def _describe(node: fx.Node, parent: str) -> str:
    """What a node of a module is, for messages."""
    asked = question(node)
    if asked:
        return f"the {asked} of {_describe(node.all_input_nodes[0], parent)}"
    kinds = {"call_module": "the output of", "placeholder": "the input", "get_attr": "the stored tensor"}
    return f"{kinds.get(node.op, 'the result of')} {_name(node, parent)}"


def _name(node: fx.Node, parent: str) -> str:
    """The module, the method or the function of a node."""
    if node.op in ("call_module", "get_attr"):
        return repr(join(parent, str(node.target)))
    function = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return repr(question(node) or function)
