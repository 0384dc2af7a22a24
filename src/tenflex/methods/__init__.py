"""All methods behind one call, and what a comparison of them needs."""

from tenflex.methods.registry import METHODS, Given, Method

__all__ = ["METHODS", "Given", "Method"]
