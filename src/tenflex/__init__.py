"""Small neural networks by flexible activation functions, computed with tensors instead of training.

A public name is imported when it is first asked for (Scientific Python's SPEC 1): whoever decouples a polynomial does
not wait for the planner of networks, and `import tenflex` alone costs next to nothing beside `import torch`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tenflex._version import __version__

if TYPE_CHECKING:
    from tenflex.bases import BSpline, Chebyshev, Hinge, Monomial, Smooth
    from tenflex.compare import compare
    from tenflex.compress import Compression, compress
    from tenflex.decouple import decouple
    from tenflex.export.verb import Exported, export
    from tenflex.factors import Factors
    from tenflex.inspect import inspect
    from tenflex.methods.contest import Contest
    from tenflex.modes import Cosine, Tucker
    from tenflex.nn import FlexibleActivation, FlexibleConv, FlexibleLayer, Window
    from tenflex.planning.budget import Budget
    from tenflex.planning.plan import Block, LowRank, Plan
    from tenflex.problem import Problem
    from tenflex.progress import Progress
    from tenflex.rank import RankPath, choose_rank
    from tenflex.result import Result
    from tenflex.samples import Samples
    from tenflex.sampling.jacobian import sample
    from tenflex.sampling.polynomial import Polynomial
    from tenflex.sampling.regression import sample_table
    from tenflex.solution import Solution, load_solution
    from tenflex.storage.network import load, save

__all__ = [  # noqa: RUF022 - in the order of use: the verbs with what they take and give, layers, the common bases
    "compress",
    "Block",
    "Cosine",
    "Tucker",
    "LowRank",
    "Budget",
    "Plan",
    "Compression",
    "inspect",
    "load",
    "save",
    "compare",
    "Contest",
    "export",
    "Exported",
    "sample",
    "Polynomial",
    "sample_table",
    "Samples",
    "Problem",
    "decouple",
    "choose_rank",
    "RankPath",
    "Solution",
    "load_solution",
    "Result",
    "Progress",
    "Factors",
    "FlexibleLayer",
    "FlexibleConv",
    "Window",
    "FlexibleActivation",
    "BSpline",
    "Monomial",
    "Chebyshev",
    "Hinge",
    "Smooth",
    "__version__",
]

_HOMES = {
    name: f"tenflex.{home}"
    for home, names in {
        "bases": (
            "BSpline",
            "Chebyshev",
            "Hinge",
            "Monomial",
            "Smooth",
        ),
        "compare": ("compare",),
        "compress": (
            "Compression",
            "compress",
        ),
        "decouple": ("decouple",),
        "export.verb": (
            "Exported",
            "export",
        ),
        "factors": ("Factors",),
        "inspect": ("inspect",),
        "methods.contest": ("Contest",),
        "modes": (
            "Cosine",
            "Tucker",
        ),
        "nn": (
            "FlexibleActivation",
            "FlexibleConv",
            "FlexibleLayer",
            "Window",
        ),
        "planning.budget": ("Budget",),
        "planning.plan": (
            "Block",
            "LowRank",
            "Plan",
        ),
        "problem": ("Problem",),
        "progress": ("Progress",),
        "rank": (
            "RankPath",
            "choose_rank",
        ),
        "result": ("Result",),
        "samples": ("Samples",),
        "sampling.jacobian": ("sample",),
        "sampling.polynomial": ("Polynomial",),
        "sampling.regression": ("sample_table",),
        "solution": (
            "Solution",
            "load_solution",
        ),
        "storage.network": (
            "load",
            "save",
        ),
    }.items()
    for name in names
}
"""The module of each name: what type checkers read above, once more for the interpreter (a test holds them equal)."""


class _Package(ModuleType):
    """The package, whose names come when they are asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        elif not name.startswith("_") and find_spec(f"tenflex.{name}") is not None:
            value = import_module(f"tenflex.{name}")
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        """The import of the module `tenflex.compress` must not put itself in the place of the verb."""
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
