"""Speed, size and accuracy of LeNet-300-100 on a device: compressed, folded, exported, beside the original."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import DOCS, insert, markdown, write
from tenflex import Block, compress, export
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.export.bench import RUNTIMES, Bench, bench, size_of
from tenflex.export.verb import format_of
from tenflex.nn import fold
from tenflex.nn.fold import arriving_at

LAYER = Block(40, factor=10)
BATCHES = (1, 16, 256)
TOLERANCE = 0.01
AT_MOST = {
    ("folded", 1): 1.2,
    ("folded", 16): 0.7,
    ("folded", 256): 0.18,
    ("onnxruntime", 1): 0.55,
    ("onnxruntime", 256): 0.15,
    ("executorch", 1): 0.30,
    ("c", 1): 0.045,
}
"""The times that are claimed, of the original in the same runtime."""

INT8_AT_MOST = 0.035
"""The time of int8 in C, of the original in floating point in C."""

FILES = ((".c", {}), (".c", {"int8": True}), (".c", {"int8": True, "rounding": "integer"}), (".onnx", {}), (".pte", {}))


def main() -> bool:
    """Measure; true if what is claimed holds where the runtime is there."""
    original = lenet300()
    result = compress(original, load_digits().train_images[:2000], {"fc1:fc3": LAYER})
    return measured(original, result.model)


def measured(original: nn.Module, compressed: nn.Module, seconds: float = 4.0) -> bool:
    """Measure a network that is compressed."""
    digits, threads = load_digits(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seen = arriving_at(compressed, (digits.train_images[:2000],))
        near = fold(compressed, TOLERANCE, seen)
        found = bench(original, compressed, digits.test_images[:256], batches=BATCHES, seconds=seconds)
        nearly = bench(original, near, digits.test_images[:256], runtimes=(), batches=BATCHES, seconds=seconds / 2)
    finally:
        torch.set_num_threads(threads)
    files = [row for name, one in (("original", original), ("compressed", compressed)) for row in written(name, one)]
    return recorded(found, nearly, files)


def written(name: str, network: nn.Module) -> list[dict[str, Any]]:
    """The sizes and the accuracy of all files of a network; what is not installed is left out."""
    digits, rows = load_digits(), []
    stored = sum(one.numel() for one in network.state_dict().values())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ending, options in FILES:
            path = Path(folder) / f"{name}{ending}"
            try:
                made = export(network, path, digits.train_images[:300], **options)
            except ImportError:
                continue
            outputs = format_of(path).load(path).outputs((digits.test_images,))
            rows.append(
                {
                    "network": name,
                    "file": " ".join(
                        [ending, *("int8" if key == "int8" else str(one) for key, one in options.items())]
                    ),
                    "bytes": size_of(path),
                    "over_weights": size_of(path) / (4 * stored),
                    "stack": stack_of(path),
                    "difference": made.difference,
                    "accuracy": accuracy(outputs, digits.test_labels),
                    "accuracy_in_pytorch": accuracy(network(digits.test_images), digits.test_labels),
                }
            )
    return rows


def stack_of(path: Path) -> int | None:
    """The bytes between the layers, in C."""
    if path.suffix != ".c":
        return None
    header = path.with_suffix(".h").read_text()
    return int(header.split("_STACK ")[1].split()[0])


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    """The share of right answers."""
    return float((outputs.argmax(1) == labels).float().mean())


def recorded(found: Bench, near: Bench, files: list[dict[str, Any]]) -> bool:
    """Write the results and tell whether the claims hold."""
    rows = [{**one.to_dict(), "ratio": found.ratio(one)} for one in found.timings]
    rows += [
        {**one.to_dict(), "runtime": "tolerance", "ratio": near.ratio(one)}
        for one in near.timings
        if one.runtime == "folded"
    ]
    ratios = {(one["runtime"], one["batch"]): one["ratio"] for one in rows if one["network"] == "compressed"}
    whole = ("compressed", "c-int8", 1), ("original", "c", 1)
    times = {(one.network, one.runtime, one.batch): one.fastest for one in found.timings}
    int8 = times[whole[0]] / times[whole[1]] if all(one in times for one in whole) else None
    write("device", rows, files=files, missing=dict(found.missing), int8_of_original_in_float=int8)
    insert("device", table(ratios), DOCS / "device.md")
    insert("device-files", file_table(files), DOCS / "device.md")
    missed = {one: (ratios[one], most) for one, most in AT_MOST.items() if one in ratios and ratios[one] > most}
    print(
        f"int8 in C takes {int8} of the original in floating point in C; above what is claimed: {missed or 'nothing'}"
    )
    return not missed and (int8 is None or int8 <= INT8_AT_MOST)


def table(ratios: dict[tuple[str, int], float]) -> str:
    """Times of the compressed network, of the original in the same runtime."""
    names = [name for name in ("pytorch", "folded", "tolerance", *RUNTIMES) if (name, 1) in ratios]
    labels = {"pytorch": "PyTorch, as trained", "folded": "PyTorch, folded", "tolerance": "PyTorch, within 1 %"}
    lines = [[labels.get(name, name), *(f"{ratios[name, batch]:.3f}" for batch in BATCHES)] for name in names]
    return markdown(["runtime", *(f"batch {batch}" for batch in BATCHES)], lines)


def file_table(files: list[dict[str, Any]]) -> str:
    """Bytes and accuracy of all files."""
    lines = [
        [
            f"{one['network']}, {one['file']}",
            f"{one['bytes']:,}",
            "" if one["stack"] is None else f"{one['stack']:,}",
            f"{one['difference']:.1e}",
            f"{100 * one['accuracy']:.2f} %",
        ]
        for one in files
    ]
    return markdown(["file", "bytes", "stack", "largest difference", "accuracy"], lines)
