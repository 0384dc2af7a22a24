"""How near an evaluation of the objective with its gradient comes to what the processor can do.

The share of the peak: floating-point operations of the two products with J alone, by the speed of a large product of
square matrices in the same run, one thread, the shortest of many. Where that is below what is claimed, the time is
explained by counting: all operations of products and all bytes of the steps between them, as they are dispatched, and
what this machine takes for each kind alone. And the start of a CPD at rank 400 beside rank 200.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.record import DOCS, insert, markdown, write
from benchmarks.scaling import problem
from tenflex.solvers import ConstrainedALS, JacobianCPD, prepare

SIZES = {"S": 2000, "n": 10, "m": 100, "r": 20}
SHARE, EXPLAINED, RANKS = 0.4, 0.9, (200, 400)
SQUARE, WARM = 768, 3
MOST_RATIO = 7.0
"""Of the times of the two ranks: Gram matrices of the coefficients are counted four times, their factors eight."""


def main() -> bool:
    """Measure; true if the share of the peak is reached or what it takes explained, and the CPD grows as counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole, parts = evaluation()
        rows = [whole, *map(decomposition, RANKS)]
    finally:
        torch.set_num_threads(threads)
    ratio = round(rows[2]["seconds"] / rows[1]["seconds"], 2)
    write("hot", rows, ratio_of_ranks=ratio, parts=list(map(asdict, parts)))
    insert("hot", table(whole["seconds"], parts), DOCS / "scaling.md")
    return (whole["share"] >= SHARE or whole["explained"] >= EXPLAINED) and ratio <= MOST_RATIO


def table(seconds: float, parts: Sequence[Part]) -> str:
    """What an evaluation is made of."""
    heads = ["part", "calls", "million operations", "MB", "floor, ms", "alone, ms", "in place, ms"]
    lines = [[one.part, *(shown(getattr(one, name), by, places) for name, by, places in UNITS)] for one in parts]
    sums = [shown(sum(getattr(one, name) for one in parts), by, places) for name, by, places in UNITS]
    whole = ["an evaluation, as measured", *[""] * (len(UNITS) - 1), f"{1e3 * seconds:.1f}"]
    return markdown(heads, [*lines, ["all of them", *sums], whole])


def shown(number: float, by: float, places: int) -> str:
    """A number in its unit; nothing for zero."""
    return f"{number * by:.{places}f}" if number else ""


UNITS = (
    ("calls", 1, 0),
    ("operations", 1e-6, 1),
    ("bytes", 1e-6, 0),
    ("floor", 1e3, 1),
    ("alone", 1e3, 1),
    ("in_place", 1e3, 1),
)


Key = TypeVar("Key", str, int)


@dataclass(frozen=True)
class Part:
    """What an evaluation spends its time on.

    Args:
        part: In words.
        calls: Kernels that are called.
        operations: Floating-point operations of its products.
        bytes: What its other steps read and write.
        floor: Seconds at the peak of products, and at the speed of the simplest step.
        alone: Seconds that it takes when each call is made again and again.
        in_place: Seconds that it takes one after the other, from memory.
    """

    part: str
    calls: int
    operations: int
    bytes: int
    floor: float
    alone: float
    in_place: float


def shortest_of(runs: Mapping[Key, Callable[[], object]], rounds: int = 100) -> dict[Key, float]:
    """Seconds of each, the least of several; in turns, since what else the machine does comes and goes."""
    times = dict.fromkeys(runs, math.inf)
    for _, (name, run), _ in product(range(rounds), runs.items(), range(WARM)):
        began = time.perf_counter()
        run()
        times[name] = min(times[name], time.perf_counter() - began)
    return times


@dataclass(frozen=True)
class Call:
    """One call of a kernel.

    Args:
        func: The kernel.
        args: What it was given.
        kwargs: By name.
        bytes: Of all tensors that it reads and writes.
        seconds: That it took in its place.
    """

    func: Any
    args: Any
    kwargs: Any
    bytes: int
    seconds: float

    @property
    def product(self) -> tuple[Tensor, Tensor] | None:
        """The factors, where it is a product of matrices."""
        return self.args[-2:] if self.func.overloadpacket.__name__.rstrip("_") in ("mm", "addmm") else None

    def __call__(self) -> None:
        self.func(*self.args, **self.kwargs)


class Counter(TorchDispatchMode):
    """What an evaluation asks of the processor: every kernel that is dispatched, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter()
        found = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - began
        if not func.is_view:
            size = sum(one.numel() * one.element_size() for one in (*tensors(args), *tensors([found])))
            self.calls.append(Call(func, args, kwargs or {}, size, seconds))
        return found


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among some values, and in lists of them."""
    found = []
    for one in values:
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            found.extend(tensors(one))
    return found


def operations(calls: Iterable[Call]) -> int:
    """Floating-point operations of the products among some calls."""
    pairs = [one.product for one in calls if one.product is not None]
    return sum(2 * left.numel() * right.shape[1] for left, right in pairs)


def counted(run: Callable[[], object], rounds: int = 50) -> tuple[list[Call], dict[int, float]]:
    """The calls of kernels, and the least seconds of each in its place, less what watching it takes."""
    found = []
    for _ in range(rounds):
        with Counter() as one:
            run()
        found.append(one.calls)
    number = torch.zeros(1, dtype=torch.float64)
    with Counter() as tiny:
        for _ in range(rounds):
            torch.addcmul(number, number, number)
    watching = min(one.seconds for one in tiny.calls) - shortest_of({"call": tiny.calls[0]})["call"]
    times = {place: min(call.seconds for call in each) for place, each in enumerate(zip(*found, strict=True))}
    return found[0], {place: seconds - watching for place, seconds in times.items()}


def evaluation() -> tuple[dict[str, Any], list[Part]]:
    """The objective with its gradient, and its parts."""
    prepared, _ = prepare(problem(**SIZES))
    with torch.no_grad():
        factors = ConstrainedALS(1).init(prepared, torch.Generator().manual_seed(0)).factors
    unknowns = [one.clone().requires_grad_() for one in factors.tensors()]
    S, n, m, r = SIZES.values()

    def evaluate() -> None:
        torch.autograd.grad(prepared.fitted.loss(factors.with_tensors(unknowns)), unknowns)

    calls, in_place = counted(evaluate)
    square, some = torch.randn(SQUARE, SQUARE, dtype=torch.float64), torch.randn(S, r, dtype=torch.float64)
    took = shortest_of(
        {
            "whole": evaluate,
            "square": lambda: square @ square,
            "step": lambda: torch.addcmul(some, some, some),
        }
    )
    with torch.no_grad():
        alone = shortest_of(dict(enumerate(calls)), 20)
    speed, per_byte = 2 * SQUARE**3 / took["square"], took["step"] / (4 * 8 * some.numel())

    def part(words: str, holds: Callable[[Call], bool]) -> Part:
        places = [place for place, one in enumerate(calls) if holds(one)]
        mine = [calls[place] for place in places]
        count, size = operations(mine), sum(one.bytes for one in mine if one.product is None)
        times = [sum(each[place] for place in places) for each in (alone, in_place)]
        return Part(words, len(mine), count, size, count / speed + size * per_byte, *times)

    def reads_j(one: Call) -> bool:
        return one.product is not None and n * m in one.product[1].shape

    parts = [
        part("both products with J", reads_j),
        part("other products", lambda one: one.product is not None and not reads_j(one)),
        part("steps between them", lambda one: one.product is None),
    ]
    row = {
        "work": "evaluation",
        **SIZES,
        "seconds": took["whole"],
        "share": round(4 * S * n * m * r / took["whole"] / speed, 3),
        "two_products": round(parts[0].floor / parts[0].alone, 3),
        "explained": round(sum(one.in_place for one in parts) / took["whole"], 3),
        "peak_gigaflops": round(speed / 1e9, 1),
    }
    return row, parts


def decomposition(rank: int) -> dict[str, Any]:
    """Ten sweeps of the CPD of J alone."""
    sizes = {**SIZES, "S": 1000, "r": rank}
    prepared, _ = prepare(problem(**sizes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        began = time.perf_counter()
        JacobianCPD(10, stride=10).init(prepared, generator)
        return {"work": "JacobianCPD", **sizes, "seconds": time.perf_counter() - began}
