"""The choice of the original's own activation functions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Own:
    """Instead of a basis: activations stay the original's own functions, of which nothing is stored.

    For a block that is linear maps with activation functions between them, gated or not, such as the feed-forward part
    of a transformer. The best of its nodes are kept, what follows is fitted anew, and all maps are refined.

    Example:
        >>> from tenflex.kept import Own
        >>> result = compress(model, inputs, {"": Block(rank=8, basis=Own())})
        >>> result.report.blocks[0].after.activation_operations
        32
    """
