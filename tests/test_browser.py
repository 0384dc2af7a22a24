"""The page of a compression in a real browser, judged by axe-core; see docs/layout.md for what has to be installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tenflex
from tenflex.evaluate.cost import Cost
from tenflex.evaluate.fidelity import Fidelity
from tenflex.export.bench import Bench, Timing
from tenflex.methods.conditions import Conditions
from tenflex.methods.contest import Entry

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(os.environ.get("AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))

WATCH = """
<script>
window.problems = [];
window.addEventListener("error", event => window.problems.push(String(event.message)));
console.error = (...words) => window.problems.push(words.join(" "));
console.warn = console.error;
</script>
"""
JUDGE = """
<script>%s</script>
<script>
window.addEventListener("load", async () => {
  const judged = await axe.run(document, {resultTypes: ["violations"]});
  const nodes = one => one.nodes.map(node => node.html.slice(0, 200) + " " + node.failureSummary).slice(0, 3);
  const found = {
    violations: judged.violations.map(one => [one.id, nodes(one)]),
    passes: judged.passes.length,
    problems: window.problems,
    requests: performance.getEntriesByType("resource").map(one => one.name),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    width: innerWidth,
    wide: document.documentElement.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
  };
  parent.document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""
HOST = """<!doctype html><html lang="en"><head><title>host</title><style>:root{{color-scheme:light dark}}</style></head>
<body style="margin:0"><pre id="found"></pre>
<iframe title="page" width="{width}" height="1200" style="border:0" srcdoc="{page}"></iframe></body></html>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With everything that a page may show: a plan, a fine-tuning, a comparison, times, warnings."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    full_result().write_report(path, comparison=CONTEST, timings=BENCH)
    return path.read_text()


def full_result() -> tenflex.Compression:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
        inputs = torch.randn(80, 6)
    solver = tenflex.solvers.ConstrainedALS(2)
    result = tenflex.compress(model, inputs, budget="40%", basis=tenflex.Monomial(2), solver=solver)
    return result.finetune(inputs, steps=2, rate=0.001)


ENTRIES = [
    Entry(method, "", size, cost=Cost(size, 2 * size, 40), fidelity=Fidelity(0.4, share, share - 0.01), seconds=1.5)
    for method, shares in (("flexible", (0.91, 0.95)), ("svd", (0.71, 0.83)))
    for size, share in zip((1200, 3400), shares, strict=True)
]
CONTEST = tenflex.Contest(Conditions(), ((), (), ()), (Cost(9000, 9000, 90), 0.97), tuple(ENTRIES))
BENCH = Bench(
    (
        Timing("original", "pytorch", 1, 2.5e-4, 2.25e-4, 0.1, None),
        Timing("compressed", "pytorch", 1, 3.5e-4, 3.125e-4, 0.1, None),
    ),
    {"onnxruntime": "not installed"},
    1,
)


def numbers_of(record: Any) -> set[str]:
    """Every number of a record in the forms in which a page may write it."""
    if isinstance(record, dict):
        return set().union(*(numbers_of(one) for one in record.values()), *(numbers_of(one) for one in record))
    if isinstance(record, (list, tuple)):
        return set().union(*map(numbers_of, record))
    if isinstance(record, str):
        return set(re.findall(NUMBER, record))
    if isinstance(record, bool) or not isinstance(record, (int, float)):
        return set()
    return {f"{record:,}", f"{record:.4g}", f"{record:.1f}", f"{record:.2g}", f"{record:.3g}", f"{record:,.4g}"}


NUMBER = r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)"


def test_every_number_is_one_of_the_record() -> None:
    """Cells of tables, captions and sentences; axes of charts have round numbers of their own."""
    from tenflex.page.details import details_of
    from tenflex.page.html import Page
    from tenflex.page.records import compared, timed
    from tenflex.page.write import VERSIONS

    result = full_result()
    record = (result.report.to_dict(), result.plan.to_dict(), details_of(result.solutions))
    others = compared(CONTEST.to_dict()), timed(BENCH.to_dict())
    html = Page(*record, VERSIONS, "", *others).html()
    costs = result.report.to_dict()["model"]["parameters"]
    kept = 100 * costs["after"] / costs["before"], costs["before"] / costs["after"]
    planned = result.report.to_dict()["planned"]
    roots = [planned["joint"] ** 0.5, planned["predicted"] ** 0.5]
    known = numbers_of([*record, *others, VERSIONS, kept]) | {f"{one:.3f}" for one in roots}
    known.add(f"{100 * planned['lost_agreement']:.2f}")
    known |= {str(len(layer["nodes"])) for block in record[2]["blocks"].values() for layer in block["layers"]}
    known |= {str(k + 1) for k in range(9)}  # of layers
    visible = re.sub(r"<(style|svg)\b.*?</\1>", " ", html, flags=re.DOTALL)
    shown = set(re.findall(NUMBER, unescape(re.sub(r"<[^>]+>", " ", visible))))
    assert len(shown) > 60
    assert shown - known == set()


@pytest.mark.skipif(CHROMIUM is None or not AXE.is_file(), reason="needs Chromium and axe-core: see docs/layout.md")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_accessible_and_alone(page: str, width: int, dark: bool, tmp_path: Path) -> None:
    watched = page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", JUDGE % AXE.read_text() + "</body>")
    host = tmp_path / "host.html"
    host.write_text(HOST.format(width=width, page=escape(watched)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1300", "--virtual-time-budget=20000"]
    command = [str(CHROMIUM), *options, scheme, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", host.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None, done.stderr[-2000:]
    assert told[1], done.stderr[-2000:]
    found = json.loads(unescape(told[1]))
    assert found["violations"] == []
    assert found["passes"] > 15
    assert (found["problems"], found["requests"]) == ([], [])
    assert (found["dark"], found["width"]) == (dark, width)
    assert found["wide"] <= width  # tables that are wider scroll by themselves
    assert found["paper"] == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
