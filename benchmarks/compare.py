"""Flexible layers beside what else one would do, at equal stored size and from the same inputs: `tenflex.compare`.

LeNet-300-100 on the shipped digits, from 128 and from 2,000 images (labels for training from scratch alone), all judged
on the 2,000 test images, the second without and with equal fine-tuning; students with every family of activations;
and LeNet-5 with its convolutions. The table goes into `docs/alternatives.md`. Claims: the comparison from 2,000 images
takes at most ten minutes, and from few no rival without labels keeps more of the original's decisions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.networks import lenet5
from benchmarks.record import DOCS, RESULTS, insert, markdown, write
from tenflex import compare
from tenflex.demo.digits import Digits, load_digits
from tenflex.demo.networks import lenet300
from tenflex.methods.contest import Contest, Entry
from tenflex.methods.registry import METHODS

MOST_SECONDS = 600.0


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: What its results are called.
        title: What it is called in the table.
        settings: Those of `tenflex.compare`.
    """

    name: str
    title: str
    settings: dict[str, Any]


FEW = ("flexible", "svd", "svd-shrunk", "student", "student-augmented")
FAMILIES = tuple(name for name in METHODS if name.startswith("student-") and name != "student-jacobians")
LENET5 = ("flexible", "svd", "asymmetric-svd", "tucker2", "cpd", "student-augmented", "scratch")

CASES = (
    Case("compare-few", "LeNet-300-100, 128 images", {"samples": 128, "sizes": ["5%"], "methods": FEW, "finetune": 0}),
    Case("compare-lenet300", "LeNet-300-100, 2,000 images", {"finetune": 300}),
    Case("compare-activations", "LeNet-300-100, 2,000 images", {"sizes": ["5%"], "methods": ("flexible", *FAMILIES)}),
    Case("compare-lenet5", "LeNet-5, 1,000 images", {"samples": 1000, "sizes": ["5%", "10%"], "methods": LENET5}),
)


def network_of(case: Case, digits: Digits) -> nn.Module:
    """The original of a case."""
    return lenet5(digits) if case.name == "compare-lenet5" else lenet300()


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


def table(contests: Sequence[tuple[Case, Contest]]) -> str:
    """Comparisons as one table in Markdown."""
    rows = [row_of(case, entry) for case, contest in contests for entry in contest.entries]
    return markdown([*HEADS, "batch of 256", "time"], rows)


def ahead(contest: Contest) -> bool:
    """Whether at every size no rival without labels agrees more with the original than the flexible layer."""
    found = {(one.method, one.size): one.fidelity.agreement or 0.0 for one in contest.entries if one.fidelity}
    return all(
        share <= found.get(("flexible", size), 0.0)
        for (method, size), share in found.items()
        if method not in ("flexible", "scratch")
    )


def record(found: Sequence[tuple[Case, Contest]]) -> None:
    """Write results, figures and the table of comparisons."""
    for case, contest in found:
        write(case.name, [entry.to_dict() for entry in contest.entries], conditions=contest.conditions.to_dict())
        contest.plot(RESULTS / f"{case.name}.svg")
        contest.plot(RESULTS / f"{case.name}-time.svg", against="time")
    insert("compare", table(found), DOCS / "alternatives.md")


def main() -> bool:
    """Run all comparisons; true if the claims hold."""
    digits = load_digits()
    test = digits.test_images, digits.test_labels
    found, held = [], []
    for case in CASES:
        began = time.perf_counter()
        model = network_of(case, digits)
        contest = compare(model, digits.train_images, digits.train_labels, test=test, **case.settings)
        seconds = time.perf_counter() - began
        found.append((case, contest))
        held += [seconds <= MOST_SECONDS] if case.name == "compare-lenet300" else []
        held += [ahead(contest)] if case.name == "compare-few" else []
    record(found)
    return all(held)
