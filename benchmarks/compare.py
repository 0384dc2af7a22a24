"""Flexible layers beside what else one would do, at equal stored size and from the same inputs: `tenflex.compare`.

LeNet-300-100 on the shipped digits, from 2,000 and from 128 unlabelled images (labels for training from scratch
alone), all judged on the 2,000 test images, without and with equal fine-tuning; and the whole of LeNet-5. The tables
go into `docs/alternatives.md`. Claims: the first comparison takes at most ten minutes, and from few images no rival
keeps more of the original's decisions than the flexible layer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.networks import lenet5
from benchmarks.record import DOCS, RESULTS, insert, markdown, write
from tenflex import compare
from tenflex.baselines.contest import Contest, Entry
from tenflex.demo.digits import Digits, load_digits
from tenflex.demo.networks import lenet300

MOST_SECONDS = 600.0


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: What its table is called.
        settings: Those of `tenflex.compare`.
    """

    name: str
    settings: dict[str, Any]


FAMILIES = ("student-prelu", "student-pelu", "student-srelu", "student-apl", "student-vaf", "student-kaf")
MORE = ("student-polynomial", "student-fourier", "student-hermite", "student-rational", "student-maxout", "student-kan")

CASES = (
    Case("compare-lenet300", {"finetune": 300}),
    Case("compare-few", {"samples": 128, "sizes": ["2%", "5%"]}),
    Case(
        "compare-activations",
        {
            "sizes": ["5%"],
            "methods": ["flexible", "student-augmented", "student-gelu", "student-spline", *FAMILIES, *MORE],
        },
    ),
    Case(
        "compare-lenet5",
        {
            "sizes": ["5%", "10%"],
            "samples": 1000,
            "methods": ["flexible", "svd", "asymmetric-svd", "tucker2", "cpd", "student-augmented", "scratch"],
            "finetune": 300,
        },
    ),
)


def network_of(case: Case, digits: Digits) -> nn.Module:
    """The original of a case."""
    return lenet5(digits) if case.name == "compare-lenet5" else lenet300()


def row_of(entry: Entry, steps: int) -> list[str]:
    """One method at one size, as it is shown."""
    if entry.cost is None or entry.fidelity is None:
        return [entry.method, f"{entry.size:,}", "failed", *[""] * (6 + bool(steps))]
    shares = [entry.fidelity.agreement, entry.fidelity.accuracy]
    shares += [entry.finetuned.accuracy if entry.finetuned else None] if steps else []
    return [
        entry.method,
        f"{entry.cost.parameters:,}",
        f"{entry.cost.macs:,}",
        f"{entry.cost.activation_operations:,}",
        f"{entry.fidelity.relative_error:.3f}",
        *("" if one is None else f"{100 * one:.2f}" for one in shares),
        f"{1e3 * (entry.latency or 0):.1f} ms",
        f"{entry.seconds:.1f} s",
    ]


def table(contest: Contest) -> str:
    """A comparison as a table in Markdown."""
    steps = contest.conditions.finetune
    tuned = [f"after {steps:,} steps"] if steps else []
    heads = [
        "method",
        "stored",
        "MACs",
        "activation operations",
        "error",
        "agreement",
        "accuracy",
        *tuned,
        "batch",
        "time",
    ]
    return markdown(heads, [row_of(one, steps) for one in contest.entries])


def ahead(contest: Contest) -> bool:
    """Whether at every size no rival without labels agrees more with the original than the flexible layer."""
    found = {(one.method, one.size): one.fidelity.agreement or 0.0 for one in contest.entries if one.fidelity}
    return all(
        share <= found.get(("flexible", size), 0.0)
        for (method, size), share in found.items()
        if method not in ("flexible", "scratch")
    )


def main() -> bool:
    """Run all comparisons, and write tables and figures; true if the claims hold."""
    digits = load_digits()
    test = digits.test_images, digits.test_labels
    held = []
    for case in CASES:
        began = time.perf_counter()
        contest = compare(
            network_of(case, digits), digits.train_images, digits.train_labels, test=test, **case.settings
        )
        seconds = time.perf_counter() - began
        write(case.name, [one.to_dict() for one in contest.entries], seconds=round(seconds), compared=contest.to_dict())
        insert(case.name, table(contest), DOCS / "alternatives.md")
        contest.plot(RESULTS / f"{case.name}.svg")
        contest.plot(RESULTS / f"{case.name}-time.svg", against="time")
        held += [seconds <= MOST_SECONDS] if case.name == "compare-lenet300" else []
        held += [ahead(contest)] if case.name == "compare-few" else []
    return all(held)
