"""How long networks take in the runtimes that are there, measured in turn."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn

from tenflex.checks import require_eval, require_number
from tenflex.evaluate.latency import finish
from tenflex.export.c import FORMAT as C
from tenflex.export.formats import Format, Inputs, Session, Settings, UnavailableError, in_single, on_processor
from tenflex.export.memory import batch_of, peaks
from tenflex.export.plain import plain
from tenflex.export.verb import format_of
from tenflex.nn import fold
from tenflex.nn.fold import arriving_at
from tenflex.nn.folded import PYTORCH
from tenflex.progress import OnProgress, Progress, silent
from tenflex.sampling.inputs import whereabouts

BATCHES = (1, 16, 256, 1024)

RUNTIMES: dict[str, tuple[str, Settings]] = {
    "onnxruntime": (".onnx", Settings()),
    "executorch": (".pte", Settings()),
    "c": (".c", Settings()),
    "c-int8": (".c", Settings(int8=True)),
}
"""Runtimes by name, besides PyTorch: the ending of their files, and what is asked of them."""

LEAST = 5
"""Rounds, of which the first is not counted."""

CALLS = 0.005
"""Seconds that are timed together, in calls of the same network."""

WARM = 2
"""Calls before them that are not timed: they find other networks in the caches, which costs small ones most."""


@dataclass(frozen=True)
class Timing:
    """A network in a runtime.

    Args:
        network: "original" or "compressed".
        runtime: What ran it; "pytorch" is the network as it is, "folded" the same folded.
        batch: Samples at once.
        seconds: Of one call, the median of the rounds.
        spread: The distance of the quartiles, of the median.
        fastest: Of one call, the least of the rounds: what other work on the machine disturbs least.
        size: The bytes of its file, in C those of its constants; None in PyTorch.
        memory: The bytes by which a process of its own grows at most, while it loads the file and computes; of PyTorch
            the file is that of torch.export; in C it is the constants and the stack. None if it was not measured.

    Example:
        >>> from tenflex.export.bench import Timing
        >>> round(Timing("compressed", "c", 16, 1e-4, 0.1, 9e-5, 2000).throughput)
        160000
    """

    network: str
    runtime: str
    batch: int
    seconds: float
    spread: float
    fastest: float
    size: int | None
    memory: int | None = None

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.batch / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "throughput": self.throughput}


@dataclass(frozen=True)
class Bench:
    """Timings, and what could not be run.

    Args:
        timings: Of all networks, runtimes and batches.
        missing: Runtimes that are not there, or do not take a network, with the reason.
        threads: How many threads torch and the runtimes had.

    Example:
        >>> from tenflex.export.bench import Bench, Timing
        >>> found = Bench((Timing("original", "pytorch", 1, 1e-4, 0.1, 9e-5, None),), {}, threads=1)
        >>> found.of("original", "pytorch", 1).seconds
        0.0001
    """

    timings: tuple[Timing, ...]
    missing: Mapping[str, str]
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        timings = [{**one.to_dict(), "ratio": self.ratio(one)} for one in self.timings]
        return {"timings": timings, "missing": dict(self.missing), "threads": self.threads}

    def ratio(self, one: Timing) -> float | None:
        """The least time of a network over that of the original in the same runtime and batch.

        None where the original does not run there, for which `missing` has the reason.
        """
        runtime = ORIGINAL.get(one.runtime, one.runtime)
        try:
            return one.fastest / self.of("original", runtime, one.batch).fastest
        except KeyError:
            return None

    def of(self, network: str, runtime: str, batch: int) -> Timing:
        """One timing; KeyError if it was not measured."""
        for one in self.timings:
            if (one.network, one.runtime, one.batch) == (network, runtime, batch):
                return one
        raise KeyError((network, runtime, batch))


ORIGINAL = {"folded": "pytorch"}
"""With which runtime of the original another is compared: there is nothing to fold in it."""

Running = tuple[str, str, Session, "int | None"]


@dataclass(frozen=True)
class How:
    """How networks are timed.

    Args:
        batches: Samples at once.
        seconds: How long to measure each batch.
        memory: Whether to measure the memory too, for which each file runs in a process of its own.
        tolerance: That of `export`, with the ranges of the inputs; it is for the compressed network, folded for each
            batch, and files.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from tenflex.export.bench import How
        >>> How(batches=(1, 16)).seconds
        1.0
    """

    batches: Sequence[int] = BATCHES
    seconds: float = 1.0
    memory: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        require_number("seconds", self.seconds, above=0)
        if self.tolerance is not None:
            require_number("tolerance", self.tolerance, above=0)


def bench(
    original: nn.Module,
    compressed: nn.Module,
    inputs: Any,
    *,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    on_progress: OnProgress = silent,
    **settings: Any,
) -> Bench:
    """Time two networks in all runtimes in turn, so that whatever else the machine does disturbs all alike.

    PyTorch runs where the original is, all other runtimes on the processor.

    Args:
        original: In eval mode.
        compressed: In eval mode.
        inputs: Real inputs, samples first, as `export` takes them; they are repeated where a batch is larger.
        runtimes: Those to try, of `RUNTIMES`, besides PyTorch.
        on_progress: Called after each batch.
        **settings: Those of `How`.

    Raises:
        TypeError: if a setting has a name of none of them.
        ValueError: if a network is in train mode, a runtime is unknown, or a number is out of its range.

    Example:
        >>> from tenflex.export.bench import bench
        >>> smaller = compress(model, inputs, {"": Block(rank=3)}).model
        >>> timings = bench(model, smaller, inputs, runtimes=[], batches=[1], seconds=0.01).timings
        >>> [(one.network, one.runtime) for one in timings]
        [('original', 'pytorch'), ('compressed', 'pytorch'), ('compressed', 'folded')]
    """
    how = How(**settings)
    for name, network in (("the original", original), ("the compressed network", compressed)):
        require_eval(name, network)
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise ValueError(f"expected runtimes among {', '.join(RUNTIMES)}, got {runtime!r}")
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        with torch.inference_mode(False):
            (first, given), (second, _) = (plain(one, inputs) for one in (original, compressed))
            place = whereabouts(original) or given[0].device
            forms = {"original": on_processor(first), "compressed": on_processor(second)}
            seen = None if how.tolerance is None else arriving_at(forms["compressed"], given)
            folds: dict[str, Callable[..., nn.Module]] = {
                "original": partial(fold, forms["original"]),
                "compressed": partial(fold, forms["compressed"], how.tolerance, seen),
            }
            running: list[Running] = [
                ("original", "pytorch", _eager(first, place), None),
                ("compressed", "pytorch", _eager(second, place), None),
            ]
            for name, folded in folds.items():
                running += _sessions(name, folded, given, list(runtimes), (Path(folder), missing))
        timings: list[Timing] = []
        for done, batch in enumerate(how.batches):
            with torch.inference_mode(False):
                form = folds["compressed"](example=tuple(one[:3] for one in given), pace=PYTORCH.at(batch)).to(place)
            here = ("compressed", "folded", _eager(form, place), None)
            timings += _raced([*running[:2], here, *running[2:]], batch_of(given, batch), how.seconds)
            on_progress(Progress("bench", done + 1, len(how.batches)))
        used = _memory(Path(folder), forms, folds, (given, how.batches)) if how.memory else {}
    timings = [replace(one, memory=used.get((one.network, one.runtime, one.batch))) for one in timings]
    return Bench(tuple(timings), missing, torch.get_num_threads())


def _eager(network: nn.Module, place: torch.device) -> Session:
    """The network as it is; what a graphics card has not finished is waited for."""

    def call(inputs: Inputs) -> Any:
        return network(*inputs)

    def finished(inputs: Inputs) -> Any:
        outputs = network(*inputs)
        finish(inputs)
        return outputs

    there = finished if place.type == "cuda" else call
    return Session(lambda inputs: tuple(one.to(place) for one in inputs), there, lambda outputs: outputs)


def _sessions(
    name: str, folded: Callable[..., nn.Module], inputs: Inputs, runtimes: list[str], place: tuple[Path, dict[str, str]]
) -> Iterator[Running]:
    """The network in each runtime that is there and takes it."""
    folder, missing = place
    for runtime in runtimes:
        ending, settings = RUNTIMES[runtime]
        path = folder / f"{name}_{runtime.replace('-', '_')}{ending}"
        try:
            format: Format = C if ending == ".c" else format_of(path)
            network, given = in_single((folded(pace=format.pace), inputs), format)
            format.write(network, given, path, settings)
            yield name, runtime, _taking(format.load(path), [one.dtype for one in given]), size_of(path)
        except (UnavailableError, ValueError) as error:
            missing[f"{name}, {runtime}"] = str(error)


def _taking(session: Session, dtypes: Sequence[torch.dtype]) -> Session:
    """The session for inputs of other precisions, converted before the time is taken."""

    def prepare(inputs: Inputs) -> Any:
        return session.prepare(tuple(one.to(dtype) for one, dtype in zip(inputs, dtypes, strict=True)))

    return replace(session, prepare=prepare)


def _memory(
    folder: Path,
    networks: Mapping[str, nn.Module],
    folds: Mapping[str, Callable[..., nn.Module]],
    asked: tuple[Inputs, Sequence[int]],
) -> dict[tuple[str, str, int], int]:
    """The peaks of all files in a folder, and of the networks in PyTorch, as they are and folded."""
    inputs, batches = asked
    files = {tuple(one.stem.split("_", 1)): one for one in folder.iterdir() if one.suffix != ".h"}
    found: dict[tuple[str, str, int], int] = {}
    with torch.inference_mode(False):
        for name, network in networks.items():
            for runtime, form in (("pytorch", network), ("folded", folds[name]())):
                path = folder / f"{name}_{runtime}.pt2"
                format_of(path).write(form, tuple(one.clone() for one in inputs), path, Settings())
                files[name, runtime] = path
    for (name, runtime), path in files.items():
        told = _constant(path, batches) if path.suffix == ".c" else peaks(path, inputs, batches)
        found |= {(name, runtime.replace("_", "-"), batch): peak for batch, peak in told.items()}
    return found


def _constant(path: Path, batches: Sequence[int]) -> dict[int, int]:
    """Of C, whose memory is written in its header."""
    header = path.with_suffix(".h").read_text(encoding="utf-8")
    return dict.fromkeys(batches, sum(int(one) for one in re.findall(r"_(?:FLASH|STACK) (\d+)", header)))


def size_of(path: Path) -> int:
    """The bytes of a file; in C those of its constants, which a device stores."""
    if path.suffix != ".c":
        return path.stat().st_size
    return int(re.findall(r"_FLASH (\d+)", path.with_suffix(".h").read_text(encoding="utf-8"))[0])


def _raced(running: Sequence[Running], inputs: Inputs, seconds: float) -> list[Timing]:
    """Rounds in which each runs in turn."""
    calls = [(_clock(session), session.prepare(inputs)) for _, _, session, _ in running]
    counts = [max(1, int(CALLS / max(min(clock(given, WARM) for _ in range(LEAST)), 1e-9))) for clock, given in calls]
    times: list[list[float]] = [[] for _ in running]
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < LEAST or time.perf_counter() < end:
        for kept, (clock, given), count in zip(times, calls, counts, strict=True):
            clock(given, WARM)
            kept.append(clock(given, count))
        rounds += 1
    found = []
    for (name, runtime, _, size), all_times in zip(running, times, strict=True):
        low, middle, high = quantiles(all_times[1:], n=4)
        times_of = median(all_times[1:]), (high - low) / middle, min(all_times[1:])
        found.append(Timing(name, runtime, len(inputs[0]), *times_of, size))
    return found


def _clock(session: Session) -> Callable[[Any, int], float]:
    return session.clock or partial(_time, session.call)


def _time(call: Callable[[Any], Any], given: Any, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call(given)
    return (time.perf_counter() - began) / count
