"""Solutions kept on disk while a long run goes on, so that a run that died goes on where it was, with the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenflex._version import __version__
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.solution import KINDS, Solution
from tenflex.storage.files import beside, read_file, write_tensors
from tenflex.storage.values import pack, unpack
from tenflex.surgery.batch import tensors_in

FOLDER = ".checkpoints.part"
"""Where they lie in the folder of a result: a name that marks them as what a run left that was not finished."""

FORMAT = "tenflex-checkpoint/1"


Parts = dict[str, dict[str, Any]]
"""A solution without its samples, which are large: what its problem and it are made of besides."""


@dataclass
class Checkpoints:
    """Solutions by what they are solutions of; in memory too, so that nothing is solved twice in a run.

    Args:
        folder: Where they are kept; None to keep them in memory alone.
    """

    folder: Path | None = None
    known: dict[str, Parts] = field(default_factory=dict)
    solved: int = 0

    @classmethod
    def of(cls, folder: str | Path | None) -> Checkpoints:
        """Those in a folder that a user names.

        Raises:
            TypeError: if it is no path.
            ValueError: if it is a file.
        """
        if folder is None:
            return cls()
        if not isinstance(folder, (str, PathLike)):
            raise TypeError(f"checkpoints must be the path of a folder, got {folder!r}")
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ValueError(f"checkpoints must be a folder, but {folder} is a file: choose another name")
        return cls(Path(folder))

    def solution(self, samples: Samples, settings: Any, solve: Callable[[], Solution]) -> Solution:
        """The solution for samples and settings, solved for if it is not there.

        Args:
            samples: Of what.
            settings: All else that it depends on, in plain values.
            solve: What finds it.
        """
        key = digest(samples, settings)
        path = None if self.folder is None else self.folder / f"{key}.safetensors"
        parts = self.known.get(key) or (None if path is None else read(path))
        if parts is not None:
            return Solution(problem=Problem(samples, **parts["problem"]), **parts["solution"])
        found = solve()
        self.solved += 1
        if found.problem.samples is samples:
            self.known[key] = parts_of(found)
            if path is not None:
                write(path, self.known[key])
        return found

    def in_memory(self, why: str) -> Checkpoints:
        """The same without a folder, with a warning if there is one: what it would give may be of something else."""
        if self.folder is not None:
            warn_of(self.folder, why)
        return replace(self, folder=None)

    def layers(self, settings: Any) -> Path | None:
        """Where layers that become better are kept, by settings alone: they are found with any number of processes."""
        name = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=repr).encode(), digest_size=16).hexdigest()
        return None if self.folder is None else self.folder / f"{name}-layers.safetensors"

    def remove(self) -> None:
        """Remove them from the disk, when the result is there."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def digest(samples: Samples, settings: Any) -> str:
    """The same for the same samples, settings, versions and number of threads: what bits depend on."""
    versions = [__version__, torch.__version__, torch.get_num_threads()]
    found = hashlib.blake2b(json.dumps([settings, versions], sort_keys=True, default=repr).encode(), digest_size=16)
    found.update(str(samples.aside).encode())
    for one in tensors_in(samples):
        found.update(str((one.dtype, tuple(one.shape))).encode())
        for part in one.detach().cpu().contiguous().flatten().split(2**22):
            found.update(part.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def parts_of(solution: Solution) -> Parts:
    """A solution without its samples."""
    problem = {one.name: getattr(solution.problem, one.name) for one in fields(Problem) if one.name != "samples"}
    rest = {one.name: getattr(solution, one.name) for one in fields(Solution) if one.name != "problem"}
    return {"problem": problem, "solution": rest}


def write(path: Path, parts: Parts) -> None:
    """Write a solution without its samples, as a whole or not at all; of one that no file can hold it is told."""
    tensors: dict[str, Tensor] = {}
    try:
        packed = {
            kind: {name: pack(value, f"{kind}.{name}", tensors, KINDS) for name, value in values.items()}
            for kind, values in parts.items()
        }
    except TypeError as error:  # a basis of the user's own
        return warn_of(path.parent, str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        write_tensors(temporary, tensors, {"format": FORMAT, **packed})


def warn_of(folder: Path, why: str) -> None:
    """Tell that a run that dies starts anew."""
    warnings.warn(f"nothing is kept in {folder}, and a run that dies starts anew: {why}", stacklevel=2)


def read(path: Path) -> Parts | None:
    """The solution in a file; None if there is none that can be used."""
    try:
        header, tensors = read_file(path, "a checkpoint", "it")
        return {
            kind: {name: unpack(value, tensors, KINDS) for name, value in header[kind].items()}
            for kind in ("problem", "solution")
        }
    except (OSError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None
