"""The choice of the original's own activation functions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Own:
    """Instead of a basis: activations stay the original's own functions, of which nothing is stored.

    For a block that is linear maps with activation functions between them, gated or not, such as the feed-forward part
    of a transformer, or two convolutions with one between, such as the body of a residual block. The best of its nodes
    or channels are kept, what follows is fitted anew, and all maps are refined.

    Args:
        refine: Whether they are; if not, the nodes that are kept stay as they are.

    Raises:
        TypeError: if it is neither True nor False.

    Example:
        >>> from tenflex.kept import Own
        >>> result = compress(model, inputs, {"": Block(rank=8, basis=Own())})
        >>> result.report.blocks[0].after.activation_operations
        32
    """

    refine: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.refine, bool):
            raise TypeError(f"refine must be True or False, got {self.refine!r}")
