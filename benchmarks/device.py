"""Speed, size and accuracy on a device: networks compressed, folded, exported, beside the originals.

`python -m benchmarks.device NAME ...` measures some of the networks, and leaves what was measured of the others.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import board
from benchmarks.compression import draw
from benchmarks.convolutions import CLAIMS as WHOLE
from benchmarks.convolutions import Whole
from benchmarks.convolutions import compressed as lenet5_compressed
from benchmarks.data import fashion
from benchmarks.modes import cosines
from benchmarks.networks import lenet5, resnet8, vision_transformer
from benchmarks.record import DOCS, RESULTS, insert, markdown, write
from tenflex import Block, compress, export
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.evaluate.cost import stored_numbers
from tenflex.export.bench import Bench, bench, size_of
from tenflex.export.verb import BOUND, format_of
from tenflex.solvers import ConstrainedALS

BATCHES = (1, 16, 256)
TOLERANCE = 0.01
SEEN = 300


@dataclass(frozen=True, eq=False)
class Made:
    """A network, its compressed form, and data.

    Args:
        original: The network.
        compressed: The same, compressed.
        images: Training images, for ranges.
        test: Test images.
        labels: Theirs.
    """

    original: nn.Module
    compressed: nn.Module
    images: Tensor
    test: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Case:
    """A network of the benchmark, and what is claimed of it.

    Args:
        make: Makes it.
        times: The most time of the original in the same runtime, by runtime and batch.
        int8_time: The most of int8 in C at batch 1, of the original in floating point in C.
        flash: The most bytes of code and constants on a Cortex-M4, int8.
        constants: The most bytes of constants alone.
        stack: The most bytes of stack there.
        over_weights: The largest files of ONNX and ExecuTorch, of the weights.
        skipped: Formats that the network has no form in.
    """

    make: Callable[[], Made]
    times: dict[tuple[str, int], float] = field(default_factory=dict)
    int8_time: float | None = None
    flash: int | None = None
    constants: int | None = None
    stack: int | None = None
    over_weights: float | None = None
    skipped: tuple[str, ...] = ()


def lenet300_case() -> Made:
    """LeNet-300-100 as one flexible layer, 9,090 numbers."""
    digits, original = load_digits(), lenet300()
    result = compress(original, digits.train_images[:2000], {"fc1:fc3": Block(40, factor=10)})
    return Made(original, result.model, digits.train_images, digits.test_images, digits.test_labels)


def cosine_case() -> Made:
    """The same seen through cosines, 4,898 numbers."""
    digits, original = load_digits(), lenet300()
    result = compress(original, digits.train_images[:2000], {"": cosines(12, 40, 22)})
    return Made(original, result.model, digits.train_images, digits.test_images, digits.test_labels)


def lenet5_case() -> Made:
    """LeNet-5 whole, 10,858 numbers."""
    digits, original = load_digits(), Whole(lenet5(load_digits()))
    result = lenet5_compressed(original, draw(digits, 2000, 0), WHOLE[1].convolution, WHOLE[1].head, 0)
    return Made(original, result.model, digits.train_images, digits.test_images, digits.test_labels)


def resnet_case() -> Made:
    """ResNet-8 with the body of its last block as a flexible convolution, found quickly: for parity, not accuracy."""
    data, original = fashion(), resnet8()
    quick = ConstrainedALS(3)
    blocks = {"blocks.2.body": Block(48, factor=24)}
    result = compress(original, data.train_images[:200], blocks, solver=quick)
    return Made(original, result.model, data.train_images, data.test_images, data.test_labels)


def transformer_case() -> Made:
    """The small transformer with two of its feed-forward parts as flexible layers, found quickly."""
    data, original = fashion(), vision_transformer()
    blocks = {f"layers.{k}.feed_forward": Block(48, factor=24) for k in (1, 2)}
    result = compress(original, data.train_images[:200], blocks, solver=ConstrainedALS(3))
    return Made(original, result.model, data.train_images, data.test_images, data.test_labels)


CASES = {
    "LeNet-300-100": Case(
        lenet300_case,
        {
            **{("folded", 1): 1.2, ("folded", 16): 0.7, ("folded", 256): 0.18},
            **{("tolerance", 1): 0.9, ("tolerance", 256): 0.15},
            **{("onnxruntime", 1): 0.55, ("onnxruntime", 256): 0.15},
            **{("onnxruntime-tolerance", 1): 0.45, ("onnxruntime-tolerance", 256): 0.09},
            **{("executorch", 1): 0.30, ("c", 1): 0.045},
        },
        int8_time=0.035,
        flash=11_000,
        stack=200,
        over_weights=1.6,
    ),
    "LeNet-300-100, cosines": Case(cosine_case, constants=7_000),
    "LeNet-5": Case(lenet5_case),
    "ResNet-8": Case(resnet_case),
    "small transformer": Case(transformer_case, skipped=("c",)),
}

FILES: tuple[tuple[str, dict[str, Any]], ...] = (
    (".c", {}),
    (".c", {"int8": True}),
    (".c", {"int8": True, "rounding": "integer"}),
    (".onnx", {}),
    (".onnx", {"int8": True}),
    (".pte", {}),
    (".pte", {"int8": True}),
    (".pt2", {}),
)

MOST_OF_LARGEST, MOST_POINTS = BOUND, 0.2
"""The largest difference in floating point, and the accuracy that int8 on LeNet-300-100 may lose."""


def main() -> bool:
    """Measure all networks; true if what is claimed holds where the runtime is there."""
    return all([measured(name) for name in CASES])


def measured(name: str, seconds: float = 12.0) -> bool:
    """Measure a network, and write it beside the others."""
    case, threads = CASES[name], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = case.make()
        found, near = timed(case, made, seconds)
        files = [row for which in ("original", "compressed") for row in written(case, which, made)]
    finally:
        torch.set_num_threads(threads)
    row = told(name, case, found, near, files)
    path = RESULTS / "device.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = {one["name"]: one for one in [*before, row] if one.get("name") in CASES}
    tables([rows[one] for one in CASES if one in rows])
    print(f"{name}: above what is claimed: {row['missed'] or 'nothing'}")
    return not row["missed"]


def timed(case: Case, made: Made, seconds: float) -> tuple[Bench, Bench]:
    """Times of the compressed network, and of the same within a tolerance."""
    runtimes = [one for one in ("onnxruntime", "executorch", "c", "c-int8") if one.split("-")[0] not in case.skipped]
    given: dict[str, Any] = {"batches": BATCHES, "seconds": seconds}
    first = bench(made.original, made.compressed, made.test[:256], runtimes=runtimes, memory=True, **given)
    files = [one for one in runtimes if one in ("onnxruntime", "executorch")]
    given |= {"runtimes": files, "tolerance": TOLERANCE}
    return first, bench(made.original, made.compressed, made.images[:2000], **given)


def written(case: Case, which: str, made: Made) -> list[dict[str, Any]]:
    """The sizes and the accuracy of all files of a network; what is not installed is left out."""
    network, rows = getattr(made, which), []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ending, options in FILES:
            if ending[1:] in case.skipped:
                continue
            path = Path(folder) / f"{which}{ending}"
            try:
                exported = export(network, path, made.images[:SEEN], **options)
            except ImportError:
                continue
            outputs = format_of(path).load(path).outputs((made.test,))
            words = ("int8" if key == "int8" else str(one) for key, one in options.items())
            rows.append(
                {
                    "network": which,
                    "file": " ".join([ending, *words]),
                    "int8": "int8" in options,
                    "bytes": size_of(path),
                    "over_weights": size_of(path) / (4 * stored_numbers(network)),
                    "difference": exported.difference,
                    "agreement": exported.agreement,
                    "accuracy": accuracy(outputs, made.labels),
                    "accuracy_in_pytorch": accuracy(network(made.test), made.labels),
                    **(board.measured(path) if ending == ".c" else {}),
                }
            )
    return rows


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    return float((outputs.argmax(1) == labels).float().mean())


def told(name: str, case: Case, found: Bench, near: Bench, files: list[dict[str, Any]]) -> dict[str, Any]:
    """All that was measured of a network, and what of it is above what is claimed."""
    timings = [{**one.to_dict(), "ratio": found.ratio(one)} for one in found.timings]
    labels = {"folded": "tolerance", "onnxruntime": "onnxruntime-tolerance", "executorch": "executorch-tolerance"}
    timings += [
        {**one.to_dict(), "runtime": labels[one.runtime], "ratio": near.ratio(one)}
        for one in near.timings
        if one.network == "compressed" and one.runtime in labels
    ]
    times = {(one.network, one.runtime, one.batch): one.fastest for one in found.timings}
    whole = ("compressed", "c-int8", 1), ("original", "c", 1)
    int8 = times[whole[0]] / times[whole[1]] if all(one in times for one in whole) else None
    row = {"name": name, "timings": timings, "files": files, "int8_of_float": int8, "missing": dict(found.missing)}
    return {**row, "missed": missed(case, row)}


def missed(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """What was measured and is above what is claimed."""
    ratios = {(one["runtime"], one["batch"]): one["ratio"] for one in row["timings"] if one["network"] == "compressed"}
    found: dict[str, Any] = {
        f"{name} at batch {batch}": round(ratios[name, batch], 3)
        for (name, batch), most in case.times.items()
        if (ratios.get((name, batch)) or 0) > most
    }
    if case.int8_time is not None and (row["int8_of_float"] or 0) > case.int8_time:
        found["int8 in C"] = row["int8_of_float"]
    for one in row["files"]:
        name = f"{one['network']} {one['file']}"
        if not one["int8"] and one["difference"] > MOST_OF_LARGEST:
            found[f"{name}: difference"] = one["difference"]
        if one.get("runs") is False:
            found[f"{name}: on the board"] = False
        if one["network"] == "original":
            continue
        if case.over_weights is not None and not one["int8"] and one["file"] in (".onnx", ".pte"):
            found |= {f"{name}: over weights": one["over_weights"]} if one["over_weights"] > case.over_weights else {}
        if one["file"] == ".c int8":
            for what, most in (("flash", case.flash), ("bytes", case.constants), ("stack", case.stack)):
                found |= {f"{name}: {what}": one[what]} if most is not None and one.get(what, 0) > most else {}
            if case.stack is not None and one["accuracy"] < one["accuracy_in_pytorch"] - MOST_POINTS / 100:
                found[f"{name}: accuracy"] = one["accuracy"]
    return found


def tables(rows: list[dict[str, Any]]) -> None:
    """Write the record and the tables of the page."""
    write("device", rows)
    insert("device", time_table(rows), DOCS / "device.md")
    insert("device-files", file_table(rows), DOCS / "device.md")


LABELS = {
    "pytorch": "PyTorch, as trained",
    "folded": "PyTorch, folded",
    "tolerance": "PyTorch, within 1 %",
    "onnxruntime": "onnxruntime",
    "onnxruntime-tolerance": "onnxruntime, within 1 %",
    "executorch": "ExecuTorch",
    "executorch-tolerance": "ExecuTorch, within 1 %",
    "c": "C",
    "c-int8": "C, int8, of int8",
}


def time_table(rows: list[dict[str, Any]]) -> str:
    """Times of the compressed networks, of the originals in the same runtime."""
    lines = []
    for row in rows:
        ratios = {(one["runtime"], one["batch"]): one for one in row["timings"] if one["network"] == "compressed"}
        for name, label in LABELS.items():
            if (name, 1) in ratios:
                cells = [f"{ratios[name, batch]['ratio']:.3f}" for batch in BATCHES]
                memory = ratios[name, BATCHES[-1]].get("memory")
                lines.append([row["name"], label, *cells, "" if memory is None else f"{memory:,}"])
        if row["int8_of_float"] is not None:
            lines.append([row["name"], "C, int8, of float", f"{row['int8_of_float']:.3f}", "", "", ""])
    heads = ["network", "runtime", *(f"batch {batch}" for batch in BATCHES), "peak memory"]
    return markdown(heads, lines)


def file_table(rows: list[dict[str, Any]]) -> str:
    """Bytes, parity and accuracy of all files."""
    lines = [
        [
            row["name"],
            f"{one['network']}, {one['file']}",
            f"{one['bytes']:,}",
            f"{one['over_weights']:.2f}",
            *(f"{one[what]:,}" if what in one else "" for what in ("flash", "stack")),
            f"{one['difference']:.1e}",
            "" if one["agreement"] is None else f"{100 * one['agreement']:.1f} %",
            f"{100 * one['accuracy']:.2f} %",
        ]
        for row in rows
        for one in row["files"]
    ]
    heads = ["network", "file", "bytes", "over weights", "flash", "stack", "difference", "agreement", "accuracy"]
    return markdown(heads, lines)


if __name__ == "__main__":
    sys.exit(0 if all([measured(one) for one in sys.argv[1:] or CASES]) else 1)
