"""On a graphics card: what it brings, measured in one run beside one thread of the processor it stands beside.

Evaluations of the objective in double precision, a compression of LeNet-300-100, the latency of its layer; and cells
of other benchmarks that take hours on two cores: views of Jacobians, wide blocks, own nodes of a transformer, each in a
process of its own, several on the card at once, whose seconds say little. Without a card nothing is measured.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import transformers, views, wide
from benchmarks.record import DOCS, insert, markdown, recorded, write
from benchmarks.scaling import problem
from tenflex import Block, Cosine, Samples, compress
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.demo.train import accuracy
from tenflex.problem import Problem
from tenflex.solvers import ConstrainedALS, prepare

SIZES = ((2000, 10, 100, 20), (2000, 100, 100, 60))
"""S, n, m, r of evaluations."""

BATCHES = (1, 256, 4096, 65_536)

MEMORY = 2**36
"""What samples may take on the card."""

AT_ONCE = 12
"""Processes on the card."""

SECONDS = 300
"""After which a job is left."""


def main() -> bool | None:
    """Measure what is not recorded; true if the card gives what the processor does. None if there is no card."""
    if not torch.cuda.is_available():
        return None
    for name in ("evaluation", "digits", "latency"):
        if name not in {row["job"] for row in recorded("gpu")}:
            write("gpu", [*recorded("gpu"), *alone(name)], card=torch.cuda.get_device_name())
    views.data()  # made once, read by all
    known = {tuple(row["asked"]) for row in recorded("gpu") if "asked" in row}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(alone, *asked) for asked in cells() if asked not in known]
        for one in as_completed(running):
            write("gpu", [*recorded("gpu"), *one.result()], card=torch.cuda.get_device_name())
    return told(recorded("gpu"))


def cells() -> Iterable[tuple[str, ...]]:
    """The cells of other benchmarks, the longest first."""
    yield from (("wide", "2"), ("nodes", "0.25"), ("nodes", "0.5"))
    for count in reversed(views.TOKENS):
        yield from (("views", str(count), way) for way in views.WAYS if (count, way) != (38_400, "whole"))


def alone(*asked: str) -> list[dict[str, Any]]:
    """The rows of a job in a process of its own; one with the reason, if it failed or took too long."""
    command = [sys.executable, "-m", "benchmarks.gpu", *asked]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [{"job": asked[0], "asked": asked, "why": f"left after {SECONDS} s"}]
    except subprocess.CalledProcessError as error:
        return [{"job": asked[0], "asked": asked, "why": error.stderr[-300:]}]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [{"job": asked[0], "asked": asked, **row} for row in found]


# ---- one at a time ----


def evaluation() -> list[dict[str, Any]]:
    """Values of the objective with their gradients, in double precision."""
    rows = []
    for S, n, m, r in SIZES:
        asked = problem(S, n, m, r)
        here = seconds_of(evaluated(asked))
        samples = Samples(
            *(one.cuda() for one in (asked.samples.inputs, asked.samples.outputs, asked.samples.jacobians))
        )
        there = seconds_of(evaluated(Problem(samples, r, asked.basis, held_out=0)))
        rows.append({"size": [S, n, m, r], "processor": here, "card": there})
    return rows


def evaluated(asked: Problem) -> Callable[[], object]:
    """An evaluation at a start."""
    prepared, _ = prepare(asked)
    factors = ConstrainedALS(1).init(prepared, torch.Generator().manual_seed(0)).factors
    tensors = [one.detach().clone().requires_grad_() for one in factors.tensors()]

    def evaluate() -> None:
        prepared.fitted.loss(factors.with_tensors(tensors)).backward()

    return evaluate


def seconds_of(run: Callable[[], object], repeats: int = 8) -> float:
    """The median of several calls, after some that do not count; what the card has not finished is waited for."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def digits() -> list[dict[str, Any]]:
    """LeNet-300-100 as one layer behind cosines, from 2,000 images."""
    rows = []
    for device in ("cpu", "cuda"):
        known, network = load_digits(), lenet300().to(device)
        images = known.train_images[:2000].to(device)
        began = time.perf_counter()
        layer = Block(40, factor=16, modes=Cosine(12, shape=(28, 28)))
        result = compress(network, images, {"": layer}, samples=2000)
        seconds = time.perf_counter() - began
        right = accuracy(result.model, known.test_images.to(device), known.test_labels.to(device))
        error = result.report.blocks[0].output_error
        rows.append({"device": device, "seconds": seconds, "accuracy": right, "error": error})
    return rows


def latency() -> list[dict[str, Any]]:
    """A layer of LeNet-300-100's size beside the network, as they are and compiled."""
    known, network = load_digits(), lenet300().cuda()
    result = compress(network, known.train_images[:500].cuda(), {"": Block(10, factor=6)})
    forms: dict[str, nn.Module] = {"original": network, "trained": result.model, "folded": result.folded()}
    forms |= {f"{name}, compiled": torch.compile(forms[name]) for name in ("original", "folded")}
    rows = []
    with torch.inference_mode():
        for batch in BATCHES:
            x = known.train_images[:1].cuda().repeat(batch, 1).contiguous()
            rows.append({"batch": batch, **{name: seconds_of(calling(form, x), 40) for name, form in forms.items()}})
    return rows


def calling(form: nn.Module, x: Tensor) -> Callable[[], object]:
    """A call of a network."""
    return lambda: form(x)


# ---- several at once ----


def nodes(share: str) -> list[dict[str, Any]]:
    """Own nodes of all feed-forward parts of MiniLM."""
    transformers.minilm().cuda()
    inputs = transformers.windows(transformers.TOKENS).cuda()
    began = time.perf_counter()
    smaller = transformers.kept(inputs, float(share))
    return [{"cosine": transformers.cosine(smaller), "seconds": time.perf_counter() - began}]


JOBS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "evaluation": evaluation,
    "digits": digits,
    "latency": latency,
    "nodes": nodes,
    "views": lambda count, way: [views.measured(int(count), way, "cuda", MEMORY)],
    "wide": lambda number: [wide.measured(wide.CASES[int(number)](), "cuda")],
}


# ---- tables ----


def told(rows: list[dict[str, Any]]) -> bool:
    """Write the tables; true if the card gives what the processor does."""
    page = DOCS / "scaling.md"
    here, there = (row for row in rows if row["job"] == "digits")
    insert("gpu", once(rows), page)
    insert("gpu-latency", latencies(rows), DOCS / "device.md")
    insert("gpu-views", views.table([row for row in rows if row["job"] == "views" and "why" not in row]), page)
    return abs(here["accuracy"] - there["accuracy"]) <= 0.01


def once(rows: list[dict[str, Any]]) -> str:
    """What was measured with nothing beside it."""
    lines = []
    for row in [one for one in rows if one["job"] == "evaluation"]:
        name = "evaluation at S, n, m, r = " + ", ".join(f"{one:,}" for one in row["size"])
        lines.append([name, f"{1e3 * row['processor']:.2f} ms", f"{1e3 * row['card']:.2f} ms"])
    here, there = (row for row in rows if row["job"] == "digits")
    lines.append(["LeNet-300-100 behind cosines, 2,000 images", *(f"{one['seconds']:.1f} s" for one in (here, there))])
    lines.append(["its accuracy, %", *(f"{100 * one['accuracy']:.2f}" for one in (here, there))])
    return markdown(["", "one thread", "graphics card"], lines)


def latencies(rows: list[dict[str, Any]]) -> str:
    """Calls of the original and of the layer, in milliseconds."""
    found = [row for row in rows if row["job"] == "latency"]
    forms = [name for name in found[0] if name not in ("job", "asked", "batch")]
    lines = [[name, *(f"{1e3 * row[name]:.2f}" for row in found)] for name in forms]
    return markdown(["milliseconds", *(f"batch {row['batch']:,}" for row in found)], lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *given = sys.argv[1:]
    print(json.dumps(JOBS[name](*given)))
