"""Flexible layers beside what else one would do, at equal stored size and from the same inputs: `tenflex.compare`.

LeNet-300-100 on the shipped digits, from 128 and from 2,000 images (labels for training from scratch alone), all judged
on the test images; the second without and with equal fine-tuning, once more by a budget, and once with cosines for all;
students with every family of activations; LeNet-5 with its convolutions; five larger networks, without and with equal
fine-tuning, and one without. The table goes into `docs/alternatives.md`. Claims: the comparison of the usual methods
from 2,000 images takes at most ten minutes of one processor, and from few no rival without labels keeps more of the
original's decisions. `python -m benchmarks.compare NAME ...` measures some of them; the others stay as they were
recorded. With shares such as 40% behind the names budgets of these sizes alone are measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from benchmarks.data import Images, fashion, glyphs
from benchmarks.networks import character_cnn, lenet5, resnet8, vision_transformer
from benchmarks.photos import efficientnet, photos
from benchmarks.record import DOCS, RESULTS, insert, markdown, recorded, write
from benchmarks.reductions import fashion_perceptron
from benchmarks.tones import pitch_tracker, tones
from tenflex import Cosine, compare
from tenflex.baselines import allocation
from tenflex.demo.digits import Digits, load_digits
from tenflex.demo.networks import lenet300
from tenflex.methods.conditions import OF_CONVOLUTIONS, Conditions
from tenflex.methods.contest import Contest, Entry
from tenflex.methods.registry import METHODS
from tenflex.progress import Progress

MOST_SCORED = allocation.EVALUATIONS
MOST_SECONDS = 600.0
"""Of the processor, for the comparison of all usual methods: what else the machine does is no part of it."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: What its results are called.
        title: What it is called in the table.
        settings: Those of `tenflex.compare`.
        make: The network.
        data: Its images.
        budgets: The sizes at which a budget joins the comparison, which takes longer than all others together.
        search: The most allocations of ranks that a rival scores, where each takes seconds; None for all that it may.
    """

    name: str
    title: str
    settings: dict[str, Any]
    make: Callable[[], nn.Module] = lenet300
    data: Callable[[], Digits | Images] = load_digits
    budgets: tuple[str, ...] = ()
    search: int | None = None


FEW = ("flexible", "svd", "svd-shrunk", "student", "student-augmented")
FAMILIES = tuple(name for name in METHODS if name.startswith("student-") and name != "student-jacobians")
DENSE = ("flexible", "svd", "svd-shrunk", "asymmetric-svd", "node-dropping", "student-augmented", "scratch")
SEEN = ("flexible", "svd", "svd-shrunk", "asymmetric-svd", "student", "student-augmented", "student-spline", "scratch")
CONVOLUTIONS = ("flexible", "svd", "asymmetric-svd", "tucker2", "cpd", "node-dropping", "student-augmented", "scratch")
LENET5 = tuple(name for name in CONVOLUTIONS if name != "node-dropping")
PUBLISHED = tuple(name for name in CONVOLUTIONS if name not in ("student-augmented", "scratch"))
"""For weights that their authors trained for much longer than anything here is."""

BESIDE = ("svd", "tucker2", "cpd")
"""One flexible layer for fifty convolutions takes two hours, by its own estimate: there a budget speaks for ours."""

BLOCKS = tuple(name for name in CONVOLUTIONS if name not in OF_CONVOLUTIONS)

CASES = (
    Case("compare-few", "LeNet-300-100, 128 images", {"samples": 128, "sizes": ["5%"], "methods": FEW, "finetune": 0}),
    Case("compare-lenet300", "LeNet-300-100, 2,000 images", {"finetune": 300}, budgets=("10%",)),
    Case(
        "compare-modes",
        "LeNet-300-100 through 12 x 12 cosines, 2,000 images",
        {"sizes": [3000, 5000], "methods": SEEN, "modes": Cosine(12, shape=(28, 28)), "blocks": [""], "finetune": 300},
    ),
    Case("compare-activations", "LeNet-300-100, 2,000 images", {"sizes": ["5%"], "methods": ("flexible", *FAMILIES)}),
    Case(
        "compare-lenet5",
        "LeNet-5, 1,000 images",
        {"samples": 1000, "sizes": ["5%", "10%"], "methods": LENET5, "finetune": 100},
        lambda: lenet5(load_digits()),
        budgets=("5%",),
    ),
    Case(
        "compare-fashion",
        "784-512-512-10, Fashion-MNIST, 2,000 images",
        {"sizes": ["2%", "5%"], "methods": DENSE, "finetune": 300},
        lambda: fashion_perceptron()[0],
        fashion,
    ),
    Case(
        "compare-resnet8",
        "ResNet-8, Fashion-MNIST, 500 images",
        {"samples": 500, "sizes": ["25%", "50%"], "methods": CONVOLUTIONS, "finetune": 100},
        resnet8,
        fashion,
        budgets=("25%", "50%"),
    ),
    Case(
        "compare-transformer",
        "vision transformer, Fashion-MNIST, 500 images",
        {"samples": 500, "sizes": ["30%", "50%"], "methods": BLOCKS, "finetune": 100},
        vision_transformer,
        fashion,
    ),
    Case(
        "compare-characters",
        "character CNN, 360 glyphs",
        {"samples": 360, "sizes": ["5%", "10%"], "methods": LENET5, "finetune": 100},
        character_cnn,
        glyphs,
    ),
    Case(
        "compare-pitch",
        "CREPE (tiny), 500 tones",
        {"samples": 500, "sizes": ["40%", "60%"], "methods": PUBLISHED, "finetune": 100},
        pitch_tracker,
        tones,
        budgets=("40%", "60%"),
    ),
    Case(
        "compare-photos",
        "EfficientNet-Lite0, 160 crops of photographs",
        {"samples": 160, "sizes": ["60%"], "methods": BESIDE},
        efficientnet,
        photos,
        budgets=("60%",),
        search=10,
    ),
)


def row_of(case: Case, entry: Entry) -> list[str]:
    """One method at one size, as it is shown."""
    if entry.cost is None or entry.fidelity is None:
        return [case.title, entry.method, f"{entry.size:,}", *[""] * 7, entry.error or ""]
    tuned = entry.finetuned.accuracy if entry.finetuned else None
    shares = [entry.fidelity.agreement, entry.fidelity.accuracy, tuned]
    return [
        case.title,
        entry.method,
        f"{entry.cost.parameters:,}",
        f"{entry.cost.macs:,}",
        f"{entry.cost.activation_operations:,}",
        f"{entry.fidelity.relative_error:.3f}",
        *("" if one is None else f"{100 * one:.2f}" for one in shares),
        f"{1e3 * (entry.latency or 0):.1f} ms",
        f"{entry.seconds:.1f} s",
    ]


HEADS = ("network", "method", "stored", "MACs", "activation operations", "error", "agreement", "accuracy", "fine-tuned")


def table() -> str:
    """All that is recorded as one table in Markdown."""
    rows = [row_of(case, entry) for case in CASES for entry in map(Entry.from_dict, recorded(case.name))]
    return markdown([*HEADS, "batch of 256", "time"], rows)


def ahead(entries: list[Entry]) -> bool:
    """Whether at every size no rival without labels agrees more with the original than the flexible layer."""
    found = {(one.method, one.size): one.fidelity.agreement or 0.0 for one in entries if one.fidelity}
    return all(
        share <= found.get(("flexible", size), 0.0)
        for (method, size), share in found.items()
        if method not in ("flexible", "scratch")
    )


def tell(progress: Progress) -> None:
    """Which entry comes next, while one waits."""
    print(f"{progress.done} of {progress.total}: {progress.stage}, {progress.task}", file=sys.stderr, flush=True)


def measured(case: Case) -> bool:
    """Run a comparison, write its results and figures, and tell whether what is claimed of it holds."""
    data, model, began = case.data(), case.make(), time.process_time()
    allocation.EVALUATIONS = case.search or MOST_SCORED
    given, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    with TemporaryDirectory() as folder:
        run = partial(compare, model, *given, test=test, on_progress=tell, folder=folder)
        contest = run(**case.settings)
        seconds = time.process_time() - began
        record(case, contest, seconds)
        if case.budgets:
            settings = {**case.settings, "methods": ("planned",), "sizes": case.budgets}
            record(case, replace(run(**settings), conditions=contest.conditions), seconds)
    if case.name == "compare-lenet300":
        return seconds <= MOST_SECONDS
    return case.name != "compare-few" or ahead(list(contest.entries))


def added(case: Case, size: str) -> bool:
    """Measure what a budget chooses at one size, and put it beside what is recorded of the others, if anything is."""
    data, model, began = case.data(), case.make(), time.process_time()
    given, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    settings = {**case.settings, "methods": ("planned",), "sizes": (size,)}
    contest = compare(model, *given, test=test, on_progress=tell, **settings)
    path, seconds = RESULTS / f"{case.name}.json", time.process_time() - began
    if path.exists():
        known = json.loads(path.read_text())
        here = {entry.size for entry in contest.entries}
        others = [one for one in map(Entry.from_dict, known["rows"]) if one.method != "planned" or one.size not in here]
        conditions, seconds = Conditions(**known["conditions"]), known["cpu_seconds"] + seconds
        contest = replace(contest, entries=(*others, *contest.entries), conditions=conditions)
    record(case, contest, seconds)
    return True


def record(case: Case, contest: Contest, seconds: float) -> None:
    """Write results, figures and the table of all."""
    rows, original = [entry.to_dict() for entry in contest.entries], contest.to_dict()["original"]
    write(case.name, rows, conditions=contest.conditions.to_dict(), original=original, cpu_seconds=round(seconds))
    contest.plot(RESULTS / f"{case.name}.svg")
    contest.plot(RESULTS / f"{case.name}-time.svg", against="time")
    insert("compare", table(), DOCS / "alternatives.md")


def main() -> bool:
    """Run all comparisons; true if the claims hold."""
    return all([measured(case) for case in CASES])


if __name__ == "__main__":
    asked = [case for case in CASES if case.name.removeprefix("compare-") in sys.argv[1:]]
    budgets = [one for one in sys.argv[1:] if one.endswith("%")]
    print([added(case, one) for case in asked for one in budgets] or [measured(case) for case in asked])
