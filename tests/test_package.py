"""What holds for the package as a whole: its data, its version, and rules for every source file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import pytest

import tenflex
from tenflex._version import __version__

SOURCE = Path(tenflex.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
PACKAGES = sorted({path.parent for path in FILES})
MODULES = sorted(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in FILES)
MODULES = [name.removesuffix(".__init__") for name in MODULES if not name.endswith(".__main__")]

GLOBAL_SETTERS = {
    "manual_seed",
    "seed",
    "set_default_dtype",
    "set_default_device",
    "set_num_threads",
    "set_num_interop_threads",
    "use_deterministic_algorithms",
}
"""Functions of torch, numpy and the standard library that change something global."""

IMPORT_EACH = """
import importlib, os, sys
from tenflex import *
for name in sys.argv[1:]:
    if name in sys.modules:
        print(name)
        continue
    if os.fork() == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.wait()[1] == 0:
        print(name)
"""
"""Imports each module in a process where nothing else of tenflex is imported, and prints those that can be: an import
cycle shows only from some of its modules. What the public names need comes first, as it does for users."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def is_script_guard(node: ast.AST) -> bool:
    """Whether the node is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def walk_library(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that run only when the file is a script."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not is_script_guard(child):
            yield from walk_library(child)


def walk_unforked(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those inside `with torch.random.fork_rng(...)`, where the global generator may be used."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        forked = isinstance(child, ast.With) and any("fork_rng" in ast.unparse(item) for item in child.items)
        if not forked:
            yield from walk_unforked(child)


def lines_of(nodes: list[ast.AST]) -> list[int]:
    return [node.lineno for node in nodes]


def is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


def changes_something_global(node: ast.AST) -> bool:
    """Whether the node is a call such as `torch.manual_seed(0)`; `generator.manual_seed(0)` is not."""
    if not isinstance(node, ast.Call):
        return False
    owner, _, name = ast.unparse(node.func).rpartition(".")
    return name in GLOBAL_SETTERS and owner in {"", "torch", "np.random", "numpy.random", "random", "torch.random"}


def test_data_is_small_enough_to_ship() -> None:
    data = [path for path in SOURCE.rglob("*") if path.suffix in {".npz", ".safetensors"}]
    assert {path.name for path in data} >= {"digits.npz", "lenet300.safetensors"}
    assert sum(path.stat().st_size for path in data) < 4_000_000


def test_credits_name_every_data_file() -> None:
    credits_text = resources.files("tenflex.demo").joinpath("CREDITS.md").read_text(encoding="utf-8")
    for path in (SOURCE / "demo").iterdir():
        if path.suffix in {".npz", ".safetensors"}:
            assert f"`{path.name}`" in credits_text


def test_version_is_that_of_the_installed_package() -> None:
    try:
        installed = metadata.version("tenflex")
    except metadata.PackageNotFoundError:
        pytest.skip("tenflex runs from its sources, without being installed")
    assert __version__ == installed


def test_citation_states_the_version() -> None:
    citation = SOURCE.parents[1] / "CITATION.cff"
    if not citation.exists():
        pytest.skip("tenflex runs from an installed wheel")
    assert f"\nversion: {__version__}\n" in citation.read_text(encoding="utf-8")


def test_each_folder_is_a_package() -> None:
    assert [name_of(folder) for folder in PACKAGES if not (folder / "__init__.py").exists()] == []


def test_each_module_imports_first() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORT_EACH, *MODULES], capture_output=True, text=True, check=True)
    assert run.stdout.split() == MODULES, run.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_assert_statement(path: Path) -> None:
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert lines_of(found) == [], "python -O removes assert: raise ValueError or TypeError with what to do"


@pytest.mark.parametrize("path", [path for path in FILES if "cli" not in path.parts], ids=name_of)
def test_library_never_prints(path: Path) -> None:
    found = [node for node in walk_library(ast.parse(path.read_text())) if is_call(node, "print")]
    assert lines_of(found) == [], "the library calls back; only the command line and scripts print"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_global_is_set(path: Path) -> None:
    found = [node for node in walk_unforked(ast.parse(path.read_text())) if changes_something_global(node)]
    assert lines_of(found) == [], "use a torch.Generator, or torch.random.fork_rng around it"


def test_import_leaves_heavy_packages_alone() -> None:
    heavy = {"hypothesis", "matplotlib", "onnx", "pytest", "rich", "scipy", "torch._dynamo", "typer", "yaml"}
    _, modules = imported()
    assert {"torch", "tenflex.compress"} <= modules
    assert heavy.isdisjoint(modules)


def test_names_come_from_where_type_checkers_look_for_them() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    homes = {one.name: node.module for node in imports for one in node.names}
    assert homes == tenflex._HOMES
    assert {*homes, "__version__"} == set(tenflex.__all__)


LATE = """
import json, sys, tenflex
assert "torch" not in sys.modules and not hasattr(tenflex, "compres")
import tenflex.compress  # which must not put the module in the place of the verb
assert callable(tenflex.compress) and tenflex.solvers.Refine and {"compress", "Block"} <= set(dir(tenflex))
from tenflex import *
print(Block.__name__, compress.__name__)
print(json.dumps(sorted(sys.modules)))
"""


@cache
def imported() -> tuple[list[str], set[str]]:
    """The names and the modules that `LATE` prints."""
    run = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names, modules = run.stdout.splitlines()
    return names.split(), set(json.loads(modules))


def test_names_come_when_they_are_asked_for() -> None:
    names, _ = imported()
    assert names == ["Block", "compress"]


IMPORT = """
import subprocess, sys
code = "import time, torch; a = time.process_time(); import tenflex; print(a, time.process_time() - a)"
runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
torch, tenflex = (min(float(run.stdout.split()[k]) for run in runs[1:]) for k in range(2))
print(tenflex / torch)
"""


@pytest.mark.slow
def test_import_is_quick_beside_that_of_torch(tmp_path: Path) -> None:
    """Processor time, from compiled files, as users have them after the first time: at most a fifth of torch's."""
    environment = {name: one for name, one in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join([str(SOURCE.parent), environment.get("PYTHONPATH", "")])
    environment |= {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, env=environment)
    assert float(run.stdout) <= 0.2
