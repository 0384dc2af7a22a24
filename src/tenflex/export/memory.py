"""How much memory a file takes in its runtime: a process of its own loads and runs it, and tells its peaks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from tenflex.export.formats import Inputs
from tenflex.export.verb import format_of

LIBRARIES = {".onnx": "onnxruntime", ".pte": "executorch.runtime"}
"""What is imported before anything is measured."""

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Where Linux tells a process its peak, and forgets it; elsewhere nothing is measured."""


def peaks(path: Path, inputs: Inputs, batches: Sequence[int]) -> dict[int, int]:
    """The bytes that a process grows by at most while it loads a file and runs each batch; none where none are told.

    Args:
        path: The file; of C the library that is compiled from it.
        inputs: Real inputs.
        batches: Samples at once.
    """
    if not RESET.exists():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", *(one.numpy() for one in inputs))
        given = [path, Path(folder) / "inputs.npz", ",".join(map(str, batches))]
        command = [sys.executable, "-m", __name__, *map(str, given)]
        threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=threads)
    if done.returncode:
        raise RuntimeError(f"{path.name} does not run in a process of its own: {done.stderr[-2000:]}")
    return {int(batch): peak for batch, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def batch_of(inputs: Inputs, count: int) -> Inputs:
    """As many samples, repeated if there are fewer; what all of them share stays as it is."""
    size = len(inputs[0])
    many = (one if len(one) != size else one.repeat(-(-count // size), *[1] * (one.ndim - 1))[:count] for one in inputs)
    return tuple(one.clone() for one in many)


def _told(name: str) -> int:
    return 1024 * int(re.findall(rf"{name}:\s+(\d+) kB", STATUS.read_text())[0])


def _main(path: Path, inputs: Path, batches: str) -> None:
    if path.suffix in LIBRARIES:
        import_module(LIBRARIES[path.suffix])
    asked = [int(one) for one in batches.split(",")]
    held = np.load(inputs)
    given = {one: batch_of(tuple(torch.from_numpy(held[name]) for name in held.files), one) for one in asked}
    before, found = _told("VmRSS"), {}
    session = format_of(path).load(path)
    for batch in asked:
        RESET.write_text("5")
        session.outputs(given[batch])
        found[batch] = max(_told("VmHWM") - before, 0)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
