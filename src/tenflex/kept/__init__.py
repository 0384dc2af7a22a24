"""Layers and starts made of a block's own nodes: recognised, the best kept, the rest refitted, all refined."""

from tenflex.kept.own import Own

__all__ = ["Own"]
