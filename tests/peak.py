"""How much memory the main jobs take at their peak, in multiples of J, the bytes of the reduced Jacobians.

`python tests/peak.py` prints all of them; `tests/test_memory.py` holds each to a bound, in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tenflex import Block, Monomial, Problem, Samples, compress, decouple, sample
from tenflex.sampling.jacobian import sample_block
from tenflex.solvers import Chain, JacobianCPD, Refine

MEGABYTE = 10**6
SOLVER = Chain((JacobianCPD(2), Refine(2)))


def inputs_of(count: int, m: int) -> Tensor:
    return torch.randn(count, m, generator=torch.Generator().manual_seed(0))


def network(m: int, hidden: int, n: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(m, hidden), nn.Tanh(), nn.Linear(hidden, n)).eval()


def map_of_doubles(count: int) -> Samples:
    return sample(network(64, 64, 32).double(), inputs_of(count, 64).double())


def block(count: int) -> Samples:
    """All 64 inputs are active."""
    model, x = network(64, 64, 32), inputs_of(count, 64)
    return sample_block(model, x, model(x).detach())


def narrow_block(count: int) -> Samples:
    """Of 128 inputs 48 are active, which is known only when the Jacobians are."""
    model, x = network(128, 48, 24), inputs_of(count, 128)
    return sample_block(model, x, model(x).detach())


def compression(count: int) -> Samples:
    result = compress(network(64, 64, 32), inputs_of(count, 64), {"": Block(6)}, samples=count, solver=SOLVER)
    return result.solutions[""].problem.samples


def decoupling(count: int) -> Samples:
    """The Jacobians that are sampled are part of the peak."""
    samples = map_of_doubles(count)
    decouple(Problem(samples, 6, Monomial(3)), SOLVER)
    return samples


# A new job is one row: what it does, for how many samples.
JOBS: dict[str, tuple[Callable[[int], Samples], int]] = {
    "sample": (map_of_doubles, 12_000),
    "sample_block": (block, 12_000),
    "sample_block, few active inputs": (narrow_block, 24_000),
    "compress": (compression, 12_000),
    "sample and decouple": (decoupling, 12_000),
}


def peak_of(name: str) -> tuple[int, int]:
    """Bytes at the peak of a job, beyond those of a small one of the kind, and the bytes of its Jacobians."""
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    peak, size = json.loads(done.stdout)
    return peak, size


def resident() -> int:
    """The most bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(name: str) -> tuple[int, int]:
    job, count = JOBS[name]
    job(300)  # what libraries load when they are first used
    before = resident()
    samples = job(count)
    return resident() - before, samples.jacobians.nbytes


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
    else:
        for name in JOBS:
            peak, size = peak_of(name)
            print(f"{name:32} J = {size / MEGABYTE:.0f} MB, peak = {peak / MEGABYTE:.0f} MB = {peak / size:.2f} J")
