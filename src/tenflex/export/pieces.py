"""Look-ups of folded layers in another form, for runtimes that read tables in another way."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tenflex.nn.folded import Pieces
from tenflex.surgery.paths import set_module_
from tenflex.surgery.twin import duplicate


def with_pieces_as(make: Callable[[Pieces], nn.Module], network: nn.Module) -> nn.Module:
    """The network with what is made of each of its look-ups: a copy if it has any.

    Args:
        make: The other form of one; it is asked once for each, wherever it is used.
        network: What was folded, or any other; it is not changed.
    """
    if not any(isinstance(one, Pieces) for one in network.modules()):
        return network
    new, done = duplicate(network), dict[int, nn.Module]()
    for path, module in list(new.named_modules(remove_duplicate=False)):
        if isinstance(module, Pieces):
            if id(module) not in done:
                done[id(module)] = make(module).eval()
            new = set_module_(new, path, done[id(module)])
    return new
