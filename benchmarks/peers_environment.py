"""The peers' own environment: an interpreter that they accept, the pinned packages, and a worker that runs in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "cache" / "peers-env"
REQUIREMENTS = Path(__file__).parent / "peers.txt"
WORKER = Path(__file__).parent / "peers_worker.py"
OLDEST, NEWEST = (3, 12), (3, 13)
"""The Pythons between which the pinned packages have wheels."""


class PeersUnavailableError(RuntimeError):
    """Why the peers cannot be run here."""


def interpreters() -> Iterator[str]:
    """Where a new enough Python may be: this one, those on PATH, those of pyenv."""
    yield sys.executable
    names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)] + ["python3"]
    yield from filter(None, map(shutil.which, names))
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from (str(path) for name in names for path in sorted(versions.glob(f"*/bin/{name}")))


def suitable(python: str) -> bool:
    """Whether an interpreter runs and is of the right age; a shim may be found and yet not run."""
    check = f"import sys; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"
    return subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0


def environment() -> Path:
    """The interpreter of the peers' environment, which is made if it is missing or of other pins.

    Raises:
        PeersUnavailableError: if there is no suitable Python, or the packages cannot be installed.
    """
    stamp, python = FOLDER / ".installed", FOLDER / "bin" / "python"
    pins = REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == pins:
        return python
    base = next(filter(suitable, interpreters()), None)
    if base is None:
        raise PeersUnavailableError("the peers need Python 3.12 or 3.13, and none was found on PATH or in pyenv")
    install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--requirement", str(REQUIREMENTS)]
    for command in ([base, "-m", "venv", "--clear", str(FOLDER)], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise PeersUnavailableError(f"the peers could not be installed: {last}")
    stamp.write_text(pins)
    return python


def single_threaded() -> dict[str, str]:
    """What holds XLA to one thread; the linear algebra of both packages follows `OMP_NUM_THREADS` and its like."""
    return {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}


class Worker:
    """A process of the peers' environment that keeps what it compiled between requests.

    Args:
        threads: How many it may use.
    """

    def __init__(self, threads: int) -> None:
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        alone = single_threaded() if threads == 1 else {}
        self.process = subprocess.Popen(
            [str(environment()), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits, **alone, "JAX_PLATFORMS": "cpu"},
        )
        self.folder = tempfile.TemporaryDirectory()
        self.versions = self._read()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *stopped_by: object) -> None:
        self.process.communicate()
        self.folder.cleanup()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"the peers' process ended with code {self.process.wait()}: its message is above")
        return json.loads(line)

    def path(self, name: str) -> str:
        """Where this process and the worker exchange arrays of that name."""
        return str(Path(self.folder.name) / f"{name}.npz")

    def give(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Lay samples and a start ready."""
        np.savez(self.path(name), **arrays)

    def time(self, method: str, data: str, sweeps: int) -> dict[str, list[float]]:
        """Clock and CPU seconds of all sweeps but the first."""
        return self._ask({"method": method, "sweeps": sweeps, "data": self.path(data)})

    def whole(self, method: str, data: str, sweeps: int) -> float:
        """Clock seconds of a whole call with so many sweeps."""
        return self._ask({"method": method, "sweeps": sweeps, "data": self.path(data)})["whole"]

    def found(self, method: str, data: str, after: tuple[int, ...]) -> dict[str, np.ndarray]:
        """What a package returns after some numbers of sweeps, stacked in that order."""
        request = {"method": method, "sweeps": max(after), "after": after}
        self._ask({**request, "data": self.path(data), "to": self.path("found")})
        with np.load(self.path("found")) as stored:
            return dict(stored)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()
