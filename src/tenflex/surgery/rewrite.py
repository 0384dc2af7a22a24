"""The block alone, as a graph."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from tenflex.surgery.facts import question, sized_like
from tenflex.surgery.region import Region


class Retracer(fx.Tracer):
    """What unpickling traces a graph with: buffers are nodes too, since sizes that are not known yet may index them."""

    proxy_buffer_attributes = True


class Rewritten(fx.GraphModule):
    """A module whose forward pass is a graph, and whose copies keep what `fx` drops."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        new: Rewritten = super().__deepcopy__(memo)  # type: ignore[assignment]
        new._non_persistent_buffers_set = set(self._non_persistent_buffers_set)
        type(new).__name__ = type(self).__name__
        return new


def block_alone(region: Region) -> Rewritten:
    """The block as a module that shares its parameters with the network."""
    traced, graph = region.traced, fx.Graph(tracer_cls=Retracer)
    inputs = graph.placeholder("inputs")
    known = {region.source: inputs}
    for node in region.nodes:
        if node in region.needed and question(node):
            known[node] = _outer_size(graph, inputs, node, dict(traced.facts.sizes))
        else:
            known[node] = graph.node_copy(node, known.__getitem__)
    given = tuple(known[one] for one in region.ends)
    graph.output(given[0] if len(given) == 1 else given)
    module = Rewritten(traced.root, graph, "Block")
    settle_(traced.root, module)
    return module


def _outer_size(graph: fx.Graph, inputs: fx.Node, node: fx.Node, sizes: dict[str, tuple[int, ...]]) -> fx.Node:
    """What a question to a tensor outside of the block is answered when only the block's inputs are there."""
    asked = question(node)
    if asked not in ("shape", "size"):
        return graph.node_copy(node, lambda _: inputs)
    shape = graph.call_function(sized_like, (inputs, sizes[node.all_input_nodes[0].name]))
    index = [] if asked == "shape" else [*node.args[1:], *node.kwargs.values()]
    return graph.call_function(operator.getitem, (shape, index[0])) if index else shape


def settle_(old: nn.Module, new: nn.Module) -> None:
    """Give `new`, and the containers that fx made in it, the mode of `old` and its list of unsaved buffers."""
    new.training = old.training
    unsaved = [name for name in new._buffers if name not in old._buffers or name in old._non_persistent_buffers_set]
    new._non_persistent_buffers_set = set(unsaved)
    for name, child in new._modules.items():
        source = old._modules.get(name)
        if type(child) is nn.Module and source is not None and child is not source:
            settle_(source, child)
