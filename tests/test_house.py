"""The house: imports point backwards along the flow of data, in circles nowhere, and functions stay small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from statistics import quantiles

import pytest

import tenflex

SOURCE = Path(tenflex.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "layout.md"
ROOMS = """
    _version checks families result progress uncompiled sums scratch shown bases factors covariance reduction split
    samples coordinates modes problem surgery nn storage sampling units objective solvers reading solution decouple
    rank kept distributed identify described evaluate baselines planning page checkpoint finetune blocks inspect
    compress export methods compare demo __init__ cli __main__
""".split()  # noqa: SIM905
"""In the order in which data flow: each may import from those before it."""

FILES = {
    ".".join(("tenflex", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules that a module imports anywhere: at its top, in a function or for types only."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            names = [[one.name] for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [[f"{node.module}.{one.name}", str(node.module)] for one in node.names]
        else:
            continue
        found |= {next((one for one in choices if one in FILES), "") for choices in names}
    return frozenset(found - {"", module})


def test_every_file_lies_in_a_room() -> None:
    assert {room_of(module) for module in FILES} <= set(ROOMS)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_backwards(module: str) -> None:
    here = ROOMS.index(room_of(module))
    forwards = [one for one in imports_of(module) if ROOMS.index(room_of(one)) > here]
    assert forwards == []


def test_there_is_no_circle() -> None:
    """`TopologicalSorter` raises CycleError, with the circle, if there is one."""
    tuple(TopologicalSorter({module: imports_of(module) for module in FILES}).static_order())


def test_only_the_command_line_knows_typer() -> None:
    knowing = [
        room_of(module)
        for module in FILES
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "typer" in (getattr(node, "module", None) or "", *(one.name for one in node.names))
    ]
    assert set(knowing) == {"cli"}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module in FILES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}.{node.name}", node


def lines_of(function: ast.FunctionDef) -> int:
    """Without the docstring."""
    first = function.body[0]
    docstring = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - docstring * (first.end_lineno - first.lineno + 1)


def test_functions_are_small() -> None:
    lengths = [lines_of(function) for _, function in functions()]
    assert quantiles(lengths, n=10)[8] <= 15


def test_signatures_are_short() -> None:
    """At most eight arguments: more of them are settings, and belong to a dataclass."""
    counts = {
        name: len([one for one in (*args.posonlyargs, *args.args, *args.kwonlyargs) if one.arg not in ("self", "cls")])
        for name, function in functions()
        for args in [function.args]
    }
    assert {name: count for name, count in counts.items() if count > 8} == {}


def values_with_tensors() -> list[type]:
    """The dataclasses of the package that hold a tensor themselves."""
    modules = [import_module(module) for module in FILES if not module.endswith("__main__")]
    kinds = {one for module in modules for one in vars(module).values() if isinstance(one, type) and is_dataclass(one)}
    return [one for one in kinds if one.__module__ in FILES and any("Tensor" in str(part.type) for part in fields(one))]


def test_values_with_tensors_are_compared_by_identity() -> None:
    """`==` of tensors is a tensor: as a truth value it raises, and there is no hash to match."""
    kinds = values_with_tensors()
    assert {"Samples", "Factors", "Reduction", "State"} <= {one.__name__ for one in kinds}
    assert [
        one.__name__ for one in kinds if one.__eq__ is not object.__eq__ or one.__hash__ is not object.__hash__
    ] == []


def test_the_page_shows_the_rooms_in_their_order() -> None:
    rows = re.findall(r"^\| `([\w/.]+)` \|", PAGE.read_text(), re.MULTILINE)
    shown = [name.rstrip("/").removesuffix(".py") for row in rows for name in [row]]
    assert shown == [room for room in ROOMS if room not in ("_version", "__init__", "__main__")]
    for room in shown:
        assert (SOURCE / room).is_dir() or (SOURCE / f"{room}.py").is_file()


def test_the_page_names_tests_that_exist() -> None:
    tests = Path(__file__).parent
    for file, test in re.findall(r"`tests/(\w+\.py)(?:::(\w+))?`", PAGE.read_text()):
        assert (tests / file).is_file()
        assert test == "" or f"def {test}(" in (tests / file).read_text()


FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal"),
    *("ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
}
ON_THE_DEFAULT_DEVICE = {
    "nn": "a new module goes to the default device, as those of PyTorch do",
    "demo": "a program of its own",
    "cli": "a program of its own",
}
"""Rooms that leave the device of new tensors to the user's default, with the reason."""


@pytest.mark.parametrize("module", [one for one in FILES if room_of(one) not in ON_THE_DEFAULT_DEVICE])
def test_new_tensors_name_their_device(module: str) -> None:
    """With `torch.set_default_device` they would go elsewhere than those that they meet."""
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    nameless = [
        f"line {node.lineno}: torch.{node.func.attr}"
        for node in calls
        if isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
        and "device" not in {one.arg for one in node.keywords}
    ]
    assert nameless == []
