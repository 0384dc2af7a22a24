"""Every public name says what it takes, gives and raises, and has an example that runs."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import tenflex

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
DIRECTIVES = re.findall(r"\.\. auto(module|class):: ([\w.]+)\n((?:   :.*\n)*)", PAGE)


def names() -> dict[str, Any]:
    """The public names with what they are: those of `tenflex` and those that the page of the API lists."""
    found: dict[str, Any] = {}
    for kind, path, options in DIRECTIVES:
        members = re.search(r":members: (.+)", options)
        module, _, name = path.rpartition(".") if kind == "class" else (path, "", "")
        listed = [name] if name else members[1].split(", ") if members else import_module(path).__all__
        found |= {f"{module}.{one}": getattr(import_module(module), one) for one in listed}
    once = {id(one): name for name, one in reversed(found.items())}
    return {name: found[name] for name in sorted(once.values(), key=list(found).index)}


NAMES = names()
NEEDS = {"tenflex.baselines.group_pruning": "torch_pruning"}
"""What is not installed with tenflex."""

CALLABLE = {name: one for name, one in NAMES.items() if callable(one)}


@cache
def beginning() -> dict[str, Any]:
    """What the page says that all examples begin with."""
    found: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], found)
    return found


def test_all_public_names_are_on_the_page() -> None:
    assert set(tenflex.__all__) <= {name.rpartition(".")[2] for name in NAMES}
    assert len(CALLABLE) > 110


@pytest.mark.parametrize("name", CALLABLE)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the name itself, and those of its methods."""
    monkeypatch.chdir(tmp_path)
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    thing = CALLABLE[name]
    text = inspect.getdoc(thing) or ""
    assert ">>>" in text, "expected an example"
    assert "+SKIP" not in text, "expected an example that runs"
    known = {**vars(inspect.getmodule(thing) or tenflex), **beginning()}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    told: list[str] = []
    with torch.random.fork_rng(devices=[]):
        for example in doctest.DocTestFinder(recurse=True).find(thing, name, globs=known):
            torch.manual_seed(0)
            runner.run(example, out=told.append)
    assert "".join(told) == ""


def sources(thing: Any) -> list[ast.AST]:
    """What runs when it is called: a function, or what makes a value of a class."""
    [node] = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    if isinstance(node, ast.ClassDef):
        made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name in MAKES]
        return list(made)
    return [node]


MAKES = ("__init__", "__post_init__", "__new__")


@pytest.mark.parametrize("name", CALLABLE)
def test_errors_are_told(name: str) -> None:
    """Whatever raises, or checks what it is given, says so."""
    thing = CALLABLE[name]
    calls = [node for source in sources(thing) for node in ast.walk(source)]
    raises = any(isinstance(node, ast.Raise) and node.exc is not None for node in calls)
    checks = any(isinstance(node, ast.Call) and ast.unparse(node.func).startswith("require_") for node in calls)
    if raises or checks:
        assert "Raises:" in (inspect.getdoc(thing) or "")


@pytest.mark.parametrize("name", CALLABLE)
def test_shapes_and_arguments_are_told(name: str) -> None:
    """Every argument is described, and tensors have shapes: in the signature, or in words."""
    thing = CALLABLE[name]
    if isinstance(thing, type) and issubclass(thing, (tenflex.Result.__class__,)):
        return
    text = " ".join((inspect.getdoc(thing) or "").split())
    if inspect.isclass(thing) and thing.__module__.startswith("tenflex") and "__init__" not in vars(thing):
        hints = {one: str(kind) for one, kind in vars(thing).get("__annotations__", {}).items() if one[0] != "_"}
    else:
        target = thing.__init__ if inspect.isclass(thing) else thing
        hints = {one.name: str(one.annotation) for one in inspect.signature(target).parameters.values()}
    for argument, kind in hints.items():
        if (
            argument in ("self", "cls", "return")
            or "ClassVar" in kind
            or (inspect.isclass(thing) and not FIELDS(thing))
        ):
            continue
        told = re.search(rf"(?<!\w)\*{{0,2}}{argument}: ", text)
        assert told or len(hints) == 1 or not_in_args(text), f"expected {argument!r} among the arguments"
        if re.search(r"(?<![\[\w])Tensor(?!\w)", kind):
            part = text[told.start() : told.start() + 300] if told else text
            assert re.search(r"`\(|samples first|one number|tensors?", part), f"expected the shape of {argument!r}"


def FIELDS(thing: Any) -> bool:  # noqa: N802
    return hasattr(thing, "__dataclass_fields__")


def not_in_args(text: str) -> bool:
    """Names whose every argument is in the sentence itself."""
    return "Args:" not in text


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CALLABLE and not name.endswith("__version__")])
def test_tables_of_names_are_shown(name: str) -> None:
    programs = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert name.rpartition(".")[2] in programs
