"""C99: one file and its header, for devices without anything else."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenflex.export.formats import Format, Inputs, Session, Settings, UnavailableError
from tenflex.export.int8 import Quantised
from tenflex.export.names import is_taken
from tenflex.export.program import Program, program_of
from tenflex.export.source import CHECKED, Source, float_source, kernel, names_in, outputs_of
from tenflex.nn.folded import Pace

STRICT = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror")
"""With these every file compiles."""

DRIVER = """
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <time.h>
#include "{name}.h"
void {name}_all(const {kind} *x, float *y, int count)
{{
    for (int s = 0; s < count; s++)
        {name}(x + (long)s * {upper}_INPUTS, y + (long)s * {upper}_OUTPUTS);
}}
double {name}_seconds(const {kind} *x, float *y, int count, int calls)
{{
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (int k = 0; k < calls; k++)
        {name}_all(x, y, count);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    return ((double)(ended.tv_sec - began.tv_sec) + 1e-9 * (double)(ended.tv_nsec - began.tv_nsec)) / calls;
}}
"""
"""Runs and times a network from C, one sample after another: a call from Python takes longer than a small network."""

ITS_OWN = () if sys.platform == "darwin" else ("-Wl,-Bsymbolic",)
"""With these a library calls its own functions, where the process has others of the same name."""

NEAR, NEAR_ROUNDED = 1e-5, 1e-3
"""By how much of the largest output a recorded one may differ elsewhere, when rounding is done in another order.

The second is for whole numbers that are rounded by floating-point ones: a fused multiply-add may give the next one.
"""


def write(network: nn.Module, inputs: Inputs, path: Path, settings: Settings) -> tuple[Path, ...]:
    """Write the file and its header, with a `main` that checks itself.

    Raises:
        UnavailableError: if there is no C compiler.
        ValueError: if the network has another number of inputs than one, or does something that has no form in C.
    """
    name = _name(path)
    if len(inputs) != 1:
        raise ValueError(f"the C exporter writes networks of one input, got {len(inputs)}")
    program = program_of(network, inputs[0][:1])
    source = _source(name, program, inputs[0], settings)
    header = path.with_suffix(".h")
    header.write_text(source.header(), encoding="utf-8")
    path.write_text(source.text(), encoding="utf-8")
    path.write_text(source.text(_recorded(source, path, inputs[0], settings)), encoding="utf-8")
    run_main(path, name)
    return path, header


def _name(path: Path) -> str:
    """The name of the function: that of the file."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", path.stem):
        raise ValueError(f"expected a file named as a function of C can be, such as small.c, got {path.name!r}")
    around = DRIVER.format(name="", upper="", kind="float") + kernel("main")
    if is_taken(path.stem, compiler()) or path.stem in names_in(around):
        raise ValueError(f"{path.stem!r} is a name that C or the file itself uses: choose another, such as small.c")
    return path.stem


def _source(name: str, program: Program, inputs: Tensor, settings: Settings) -> Source:
    rounding = settings.options.get("rounding", "float")
    if rounding not in ("float", "integer"):
        raise ValueError(f"rounding must be 'float' or 'integer', got {rounding!r}")
    if rounding == "integer" and not settings.int8:
        raise ValueError("rounding='integer' is for int8=True, got int8=False: set it, or leave rounding out")
    return Quantised(name, program, inputs, rounding).source() if settings.int8 else float_source(name, program)


def _recorded(source: Source, path: Path, inputs: Tensor, settings: Settings) -> str:
    """The `main`, with what the file gives on this machine: PyTorch's numbers were compared with all of that."""
    few = inputs[:CHECKED]
    session = load(path)
    prepared = session.prepare((few,))
    expected = session.read(session.call(prepared)) if source.number != "float" else outputs_of(source.program, few)
    exactly = not settings.int8 or settings.options.get("rounding") == "integer"
    bound = max((NEAR if exactly else NEAR_ROUNDED) * float(expected.abs().max()), 1e-12)
    return source.main(prepared[0], expected.numpy(), bound)


def compiler() -> str:
    """A compiler of C; UnavailableError if there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise UnavailableError("a file of C is compiled and run before it is kept: install a C compiler, such as gcc")
    return found


def compile_c(*arguments: str | Path) -> None:
    """Call the compiler.

    Raises:
        RuntimeError: with what it says, if it refuses.
    """
    done = subprocess.run([compiler(), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the C compiler refuses what was exported: {done.stderr[:2000]}")


def run_main(path: Path, name: str, *flags: str) -> str:
    """Compile a file with its `main`, run it, and return what it prints.

    Raises:
        RuntimeError: if it does not compile, or finds a difference.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "main"
        compile_c(*STRICT, *flags, f"-D{name.upper()}_MAIN", path, "-o", program)
        done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the exported C does not give what was recorded: {done.stdout}{done.stderr}")
    return done.stdout


def load(path: Path) -> Session:
    """Compile a file to a library, and call it."""
    name, header = path.stem, path.with_suffix(".h").read_text(encoding="utf-8")
    sizes = {key: int(number) for key, number in re.findall(r"_(INPUTS|OUTPUTS) (\d+)", header)}
    small = "int8_t *x" in header
    with tempfile.TemporaryDirectory() as folder:
        driver, library = Path(folder) / "driver.c", Path(folder) / f"{name}.so"
        kind = "int8_t" if small else "float"
        driver.write_text(DRIVER.format(name=name, upper=name.upper(), kind=kind), encoding="utf-8")
        compile_c(*STRICT, "-fPIC", "-shared", *ITS_OWN, f"-I{path.parent}", path, driver, "-o", library)
        loaded = ctypes.CDLL(str(library))
    function, seconds = getattr(loaded, f"{name}_all"), getattr(loaded, f"{name}_seconds")
    seconds.restype = ctypes.c_double
    rounder = getattr(loaded, f"{name}_input") if small else None

    def prepare(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
        rows = np.ascontiguousarray(inputs[0].reshape(len(inputs[0]), -1).float().numpy())
        if rows.shape[1] != sizes["INPUTS"]:
            raise ValueError(f"expected inputs of {sizes['INPUTS']} numbers, got {rows.shape[1]}")
        return (rows if rounder is None else _rounded(rounder, rows)), np.zeros(
            (len(rows), sizes["OUTPUTS"]), np.float32
        )

    def call(prepared: Any) -> np.ndarray:
        rows, outputs = prepared
        function(ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(outputs.ctypes.data), len(rows))
        return outputs

    def clock(prepared: Any, calls: int) -> float:
        rows, outputs = prepared
        places = ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(outputs.ctypes.data)
        return float(seconds(*places, len(rows), calls))

    return Session(prepare, call, lambda outputs: torch.from_numpy(outputs.copy()), clock)


def _rounded(rounder: Any, rows: np.ndarray) -> np.ndarray:
    whole = np.zeros(rows.shape, np.int8)
    for row, out in zip(rows, whole, strict=True):
        rounder(ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(out.ctypes.data))
    return whole


FORMAT = Format("C", write, load, ("rounding",), Pace(call=0.0))
