"""The pages of the documentation run, and their tables are the recorded ones."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PROGRAMS = {name: "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) for name, text in PAGES.items()}
TABLES = [(name, table) for name, text in PAGES.items() for table in re.findall(r"<!-- table: ([\w-]+) -->", text)]


@cache
def run(name: str) -> dict[str, object]:
    """What a page's blocks define, run one after another."""
    names: dict[str, object] = {}
    exec(compile(PROGRAMS[name], f"docs/{name}.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program])
def test_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(name)


def test_system_identification_finds_the_springs() -> None:
    names = run("system-identification")
    V = names["solution"].factors.V
    V = V / V.norm(dim=0)
    true = torch.cat([names["springs"], V.new_zeros(3, 2)])
    cosines = V.mT @ (true / true.norm(dim=0))
    assert torch.rad2deg(torch.acos(cosines.abs().amax(0).clamp(max=1))).max() < 0.5
    before, after = names["errors"]
    assert after < before < 0.02


@pytest.mark.parametrize(("page", "table"), TABLES)
def test_table_is_the_recorded_one(page: str, table: str) -> None:
    shown = PAGES[page].split(f"<!-- table: {table} -->")[1].split("<!-- end -->")[0].strip()
    assert shown == (ROOT / "benchmarks" / "results" / f"{table}.md").read_text().strip()


def test_tables_of_the_worked_example_are_there() -> None:
    assert set(TABLES) >= {("system-identification", "duffing"), ("system-identification", "narx")}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_figures_exist(page: str) -> None:
    links = re.findall(r"\]\((\.[^)#]+)\)", PAGES[page])
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
