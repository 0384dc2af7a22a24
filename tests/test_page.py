"""The page of a compression: every number on it is that of the record, and it asks for nothing from elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import tenflex
from tenflex.page.details import BINS, CURVE_POINTS, details_of
from tenflex.page.html import Page
from tenflex.page.style import COLOURS

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture(scope="module")
def result() -> tenflex.Compression:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
        inputs = torch.randn(80, 6)
    return tenflex.compress(model, inputs, {"": tenflex.Block((3, 2))}, basis=tenflex.BSpline(5))


class Read(HTMLParser):
    """Tags with their attributes, and the text of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line", "polyline", "circle"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_numbers_are_those_of_the_record(result: tenflex.Compression, tmp_path: Path) -> None:
    result.write_report(tmp_path / "report.html")
    read = Read((tmp_path / "report.html").read_text())
    report = result.report.to_dict()
    rows = {row[0]: row for row in reversed(read.rows)}  # of two with one name the first: results come before settings
    for name, costs, error in (
        ("(network)", report["blocks"][0], report["blocks"][0]["output_error"]),
        ("in all", report["model"], report["model"]["output_error"]),
    ):
        counts = costs["parameters"]
        assert rows[name][1] == f"{counts['before']:,} → {counts['after']:,}"
        assert rows[name][4] == f"{error:.4g}"
    for name, value in report["fidelity"].items():
        if value is not None:
            assert rows[name.replace("_", " ")][1] == (f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    plan = result.plan.to_dict()
    for name in ("samples", "seed", "held_out"):
        shown = rows[name][1]
        assert float(shown.replace(",", "")) == pytest.approx(plan[name], rel=1e-3)


def test_it_needs_nothing_else(result: tenflex.Compression, tmp_path: Path) -> None:
    result.write_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    read = Read(page)
    assert read.open == []  # every tag is closed
    assert {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object"} == set()
    assert not any({"src", "href", "onload", "onclick"} & attributes.keys() for _, attributes in read.tags)
    assert "url(" not in page
    assert "http" not in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page).lower()


def test_every_figure_has_a_name(result: tenflex.Compression, tmp_path: Path) -> None:
    result.write_report(tmp_path / "report.html")
    read = Read((tmp_path / "report.html").read_text())
    figures = [attributes for tag, attributes in read.tags if tag == "svg"]
    assert len(figures) == 1 + 3 + 2  # errors over steps, and every node of both layers
    assert all(one["role"] == "img" and one["aria-label"] for one in figures)
    assert [tag for tag, _ in read.tags if tag in ("h1", "h2")].count("h1") == 1


def test_details_are_the_nodes(result: tenflex.Compression) -> None:
    """Curves are those of the canonical nodes, and the densities count all samples."""
    solution = result.solutions[""]
    layers = details_of(result.solutions)["blocks"][""]["layers"]
    assert [one["rank"] for one in layers] == [3, 2]
    nodes = solution.layers[0]
    first = layers[0]["nodes"][0]
    k = first["node"] - 1
    assert k == nodes.order[0]
    t = torch.linspace(first["low"], first["high"], CURVE_POINTS, dtype=torch.float64)
    expected = nodes.activations(t[:, None].expand(-1, 3))[:, k]
    assert torch.allclose(torch.tensor(first["curve"], dtype=torch.float64), expected, rtol=1e-3, atol=1e-3)
    assert len(first["density"]) == BINS
    assert sum(first["density"]) == len(solution.problem.samples)


def test_details_of_many_samples_are_those_of_some(result: tenflex.Compression, monkeypatch) -> None:
    """As many as are shown, from the first to the last."""
    monkeypatch.setattr("tenflex.page.details.SHOWN", 50)
    assert len(result.solutions[""].problem.samples) > 50
    for layer in details_of(result.solutions)["blocks"][""]["layers"]:
        assert all(sum(node["density"]) == 50 for node in layer["nodes"])


def test_texts_are_escaped() -> None:
    costs = {name: {"before": 4, "after": 2} for name in ("parameters", "macs", "activation_operations")}
    block = {"name": "<b>", **costs, "output_error": None, "jacobian_error": 0.5, "seconds": 1.0}
    report = {"blocks": [block], "model": costs, "seconds": 1.0, "warnings": ["<script>"]}
    page = Page(report, {"basis": {"family": "BSpline", "count": 5}}, command="a && b", comparison=[{"method": "<i>"}])
    html = page.html()
    assert "<b>" not in html
    assert "<script>" not in html
    assert "<i>" not in html
    assert "a &amp;&amp; b" in html
    assert "BSpline(count=5)" in html


def luminance(colour: str) -> float:
    parts = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("theme", "paper"), [("light", "#ffffff"), ("dark", "#14181d")])
def test_colours_are_told_from_the_paper(theme: str, paper: str) -> None:
    """With a contrast of 4.5, as the accessibility guidelines (WCAG 2, AA) ask for text."""
    for colour in COLOURS[theme]:
        light, dark = sorted((luminance(colour), luminance(paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_other_files_are_not_overwritten(result: tenflex.Compression, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match=r"mine.html was not written by tenflex and would be overwritten"):
        result.write_report(mine)
    with pytest.raises(ValueError, match=r"expected a page whose name ends in .html, got"):
        result.write_report(tmp_path / "report.pdf")
    assert mine.read_text() == "<p>mine</p>"
    assert [one.name for one in tmp_path.iterdir()] == ["mine.html"]
    result.write_report(tmp_path / "report.html")
    result.write_report(tmp_path / "report.html")


def test_details_stay_and_the_page_of_another_result_goes(result: tenflex.Compression, tmp_path: Path) -> None:
    folder, page = tmp_path / "small", tmp_path / "small" / "report.html"
    result.save(folder)
    result.write_report(page)
    details = (folder / "details.json").read_text()
    again = tenflex.Compression.load(folder, result.original)
    again.save(folder)
    assert (folder / "details.json").read_text() == details
    assert page.is_file()  # it is of this report
    replace(again, report=replace(again.report, seconds=9.0)).save(folder)
    assert not page.exists()
    page.write_text("mine")
    result.save(folder)
    assert page.read_text() == "mine"


def test_details_are_saved(result: tenflex.Compression, tmp_path: Path) -> None:
    result.save(tmp_path / "small")
    saved = json.loads((tmp_path / "small" / "details.json").read_text())
    assert saved == json.loads(json.dumps(details_of(result.solutions)))
