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


@pytest.mark.usefixtures("few_steps")
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
    assert set(TABLES) >= {("system-identification", "duffing"), ("results", "narx")}


TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("docs", "examples", ".")
    for path in sorted((ROOT / folder).glob("*.md"))
}


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as they are made on forges and by the documentation."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_figures_exist(page: str) -> None:
    """Files and their anchors; pages elsewhere have at least an address, for a test has no network."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`]*`", "", TEXTS[page], flags=re.DOTALL))
    for link in found:
        if "://" in link:
            assert re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", link), link
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_links_of_docstrings_have_an_address() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    links = {one.rstrip(".,;") for one in re.findall(r"https?://[^\s\"'`<>)]+", sources)}
    assert len(links) > 40
    assert [one for one in links if not re.fullmatch(r"https?://[\w.-]+\.\w+(/\S*)?", one)] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = re.findall(r"^([a-z-]+)$", "\n".join(re.findall(r"```{toctree}(.*?)```", PAGES["index"], re.DOTALL)), re.M)
    assert sorted([*listed, "index"]) == sorted(PAGES)
