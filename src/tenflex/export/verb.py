"""The verb: write a network in the format that the ending names, run it, compare, and only then keep it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.checks import near_names, require_eval
from tenflex.compress import Compression
from tenflex.export.formats import Format, Inputs, Settings, in_single, on_processor
from tenflex.export.plain import INSIDE, Plain, plain
from tenflex.nn import fold
from tenflex.nn.fold import arriving_at
from tenflex.nn.folded import PYTORCH
from tenflex.storage.files import all_beside
from tenflex.surgery.batch import call
from tenflex.surgery.paths import join
from tenflex.surgery.twin import duplicate

Folding = Callable[..., nn.Module]

ENDINGS = {".c": "c", ".onnx": "onnx", ".pte": "executorch", ".pt2": "pt2"}
"""Endings with the files here that know them: they are imported only when needed, with all that they import."""

BOUND = 1e-4
"""The largest difference that is let through, of the largest output; some roundings where these are larger."""

SAME = 1e-6
"""The largest difference of what is the same in double precision, of the largest output."""

AGREEMENT, APART = 0.98, 0.1
"""Below this share of inputs with the same answer, or above this difference, of the largest output, whole numbers are
warned of."""


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Args:
        path: The file.
        runtime: What it was run by.
        size: The bytes of all files that belong to it.
        difference: The largest difference to the network's outputs on the inputs, of the largest output.
        agreement: The share of the inputs whose largest output is the same one; None unless outputs are `(S, n)` with
            at least two numbers, as scores are.

    Example:
        >>> exported = export(model, "original.pt2", inputs)
        >>> exported.path.name, exported.size > 0, exported.agreement
        ('original.pt2', True, 1.0)
    """

    path: Path
    runtime: str
    size: int
    difference: float
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "path": str(self.path)}


def format_of(path: Path) -> Format:
    """The format that an ending names.

    Raises:
        ValueError: if none has it.
    """
    if path.suffix not in ENDINGS:
        known = ", ".join(ENDINGS)
        raise ValueError(f"expected a file that ends in {known}, got {path.name!r}")
    found: Format = import_module(f"tenflex.export.{ENDINGS[path.suffix]}").FORMAT
    return found


def export(
    network: nn.Module | Compression,
    path: str | Path,
    inputs: Any,
    *,
    int8: bool = False,
    tolerance: float | None = None,
    batch: int = PYTORCH.samples,
    **options: Any,
) -> Exported:
    """Write a network as a file for another runtime.

    Flexible layers are folded first. The file is run by its real runtime on the inputs, and kept only if it gives what
    the network gives: until then nothing at `path` is touched.

    Args:
        network: A result of `compress`, or any network in eval mode that gives one tensor: also as the only one, or as
            `logits`, in what it returns.
        path: The file; its ending chooses the format: `.c` (with a header beside it), `.onnx`, `.pte` (ExecuTorch) or
            `.pt2` (torch.export). An earlier file there is replaced, but for sources of C that tenflex did not write:
            the other formats have no mark by which all of ours are known.
        inputs: A batch of real inputs, samples first, as the network takes them: a tensor, a tuple of them, or a
            mapping from the names of its arguments. They are compared, and int8 finds its ranges on them: some hundred
            are needed then.
        int8: Weights as whole numbers. In C all is; elsewhere linear maps and convolutions only.
        tolerance: See `Compression.folded`; of a network that is no result, ranges are seen on the inputs.
        batch: How many samples will run at once, which tells the fastest form; any other number runs, too.
        **options: Those of the format: `rounding` ("float" or "integer") for int8 in C, `backend` ("xnnpack" or
            "portable") for `.pte`.

    Returns:
        What was measured.

    Raises:
        ImportError: if the runtime or a compiler is not installed.
        OSError: if the file cannot be written.
        RuntimeError: if the file gives something else than the network.
        TypeError: if the network is none, or the inputs are no tensors.
        ValueError: if the ending is unknown, the network or an option does not fit it, the batch is below 1, or the
            inputs are not finite.

    Example:
        >>> exported = export(compress(model, inputs, {"": Block(rank=3)}), "small.pt2", inputs)
        >>> exported.runtime, exported.difference < 1e-5
        ('torch.export', True)
    """
    path = Path(path)
    model = network.model if isinstance(network, Compression) else network
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a result of compress or a torch.nn.Module, got {type(model).__name__}")
    format = _checked(path, options)
    pace = format.pace.at(batch)
    require_eval("the network", model)
    form, given = plain(on_processor(model), inputs)
    seen = network.arrived() if isinstance(network, Compression) else None
    if seen is not None and isinstance(form, Plain):
        seen = {join(INSIDE, path): one for path, one in seen.items()}
    model, given = in_single((form, given), format)
    seen = arriving_at(model, given) if seen is None and tolerance is not None else seen
    folding = partial(fold, tolerance=tolerance, arriving=seen, pace=pace)
    folded = folding(model, graph=given)
    rounding = max((torch.finfo(one.dtype).eps for one in folded.parameters() if one.is_floating_point()), default=0.0)
    bound = max(BOUND, 4 * rounding)
    due = _due((model, folded), given, bound, folding) if tolerance is None else outputs_of(folded, given)
    return _kept((folded, due), given, path, (format, Settings(int8, options)), bound)


def _due(pair: tuple[nn.Module, nn.Module], inputs: Inputs, bound: float, folding: Folding) -> Tensor:
    """What a file has to give: the outputs of the network as it was given, and not of what folding made of it.

    Roundings may set the two apart by more than the bound, in half precision above all. Then the folded one is compared
    with, if double precision tells that it is the same function.
    """
    model, folded = pair
    answers, others = (outputs_of(one, inputs) for one in (model, folded))
    if _difference(others, answers.reshape(len(answers), -1)) <= bound:
        return answers
    exactly = duplicate(model).double()
    doubled = tuple(one.double() if one.is_floating_point() else one for one in inputs)
    try:
        found, expected = (outputs_of(one, doubled) for one in (folding(exactly, graph=doubled), exactly))
    except ValueError:  # it is for one precision alone
        return answers
    return others if _difference(found, expected.reshape(len(expected), -1)) <= SAME else answers


def _checked(path: Path, options: dict[str, Any]) -> Format:
    """The format, if it has these options and the path can be written."""
    format = format_of(path)
    for name in options:
        if name not in format.options:
            raise ValueError(f"{path.suffix} has no option {name!r}{near_names(name, format.options)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"expected a file in a folder that exists, got {path}")
    for one in (path, path.with_suffix(".h")) if path.suffix == ".c" else ():
        if one.is_dir():
            raise ValueError(f"expected a place for a file at {one}, which is a folder: choose another name")
        if one.exists() and "Made by tenflex" not in one.read_text(encoding="utf-8", errors="replace")[:200]:
            raise ValueError(f"{one} was not written by tenflex and would be overwritten: choose another name")
    return format


def _kept(
    due: tuple[nn.Module, Tensor], inputs: Inputs, path: Path, asked: tuple[Format, Settings], bound: float
) -> Exported:
    """Write to a folder aside, run, compare with what is due, and put what was written in its place."""
    (network, answers), (format, settings) = due, asked
    expected = answers.reshape(len(answers), -1)
    with tempfile.TemporaryDirectory() as folder:
        files = _written(network, inputs, Path(folder, "asked", path.name), asked)
        found = whole = format.load(files[0]).outputs(inputs)
        if settings.int8:  # which is to blame for roundings alone: what is off without it is none of them
            single = _written(network, inputs, Path(folder, "whole", path.name), (format, Settings()))
            whole = format.load(single[0]).outputs(inputs)
        off, difference = _difference(whole, expected), _difference(found, expected)
        if not off <= bound:
            raise RuntimeError(
                f"{format.runtime} gives other outputs than the network, by {off:.1e} of the largest: nothing was kept "
                f"at {path}; please report it"
            )
        places = [path.with_suffix(one.suffix) for one in files]
        with all_beside(*places) as temporaries:
            for one, place in zip(files, temporaries, strict=True):
                place.write_bytes(one.read_bytes())
        size = sum(one.stat().st_size for one in files)
    agreement = _agreement(found, expected) if answers.ndim == 2 else None
    if settings.int8 and agreement is not None and agreement < AGREEMENT:
        warnings.warn(f"int8 keeps the answer for {100 * agreement:.1f} % of the inputs only", stacklevel=3)
    elif settings.int8 and difference > APART:
        warnings.warn(f"int8 gives outputs that differ by up to {100 * difference:.0f} % of the largest", stacklevel=3)
    return Exported(path, format.runtime, size, difference, agreement)


def _written(network: nn.Module, inputs: Inputs, path: Path, asked: tuple[Format, Settings]) -> tuple[Path, ...]:
    """The files, in a folder of their own."""
    path.parent.mkdir()
    format, settings = asked
    return format.write(network, inputs, path, settings)


def outputs_of(network: nn.Module, inputs: Inputs) -> Tensor:
    """The outputs of a network, samples first.

    Raises:
        ValueError: if it does not take the inputs, or gives no row for each.
    """
    with torch.no_grad():
        outputs: Tensor = call(network, tuple(one.clone() for one in inputs))
    count = len(inputs[0])
    if outputs.shape[:1] != (count,):
        given = ", ".join(str(tuple(one.shape)) for one in inputs)
        raise ValueError(
            f"expected a batch of inputs, one row of outputs for each: for inputs of the shape {given} the network "
            f"gives {tuple(outputs.shape)}; for one input pass input[None]"
        )
    return outputs


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest output; NaN where one of them is."""
    found, expected = found.reshape(len(expected), -1).double(), expected.double()  # decisions, too
    largest = float(expected.abs().max()) or 1.0
    return float((found - expected).abs().max()) / largest


def _agreement(found: Tensor, expected: Tensor) -> float | None:
    if expected.shape[1] == 1 or not expected.is_floating_point():
        return None
    same = found.reshape(len(expected), -1).argmax(1) == expected.argmax(1)
    return float(same.float().mean())
