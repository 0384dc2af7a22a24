"""Runs the peers in an environment of their own: one JSON request a line comes in, one JSON answer a line goes out.

A request names a method, the sweeps to take, a file of samples and a start, and may ask for what was found after some
of the sweeps: `{"method": ..., "sweeps": 25, "data": "data.npz", "after": [1, 25], "to": "found.npz"}`. The answer has
the clock and the CPU seconds of all sweeps but the first, measured where the packages themselves take the error, once a
sweep, and the clock seconds of the whole call. Only `benchmarks.peers` starts this file; it imports nothing of tenflex.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorly.decomposition._cmtf_als as tensorly_cmtf
from decoupling._splines import design_matrices
from decoupling.algorithm import algorithm as decoupling_algorithm
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac

Arrays = dict[str, np.ndarray]
PACKAGES = ("decoupling", "jax", "tensorly", "numpy")
OF_DECOUPLING = decoupling_algorithm.cpd_error
OF_TENSORLY = tensorly_cmtf.cp_to_tensor


class Sweep(NamedTuple):
    """What a method held at the end of a sweep, and when."""

    clock: float
    cpu: float
    factors: Arrays


def sweep(**factors: Any) -> Sweep:
    """The state at this moment; the clocks are read before anything is copied."""
    clock, cpu = time.perf_counter(), time.process_time()
    return Sweep(clock, cpu, {name: np.array(value) for name, value in factors.items()})


class Started(decoupling_algorithm.Algorithm):
    """`decoupling.Algorithm` from a given start, keeping the activations of every sweep; nothing else is changed."""

    def __init__(self, start: Arrays, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.start = tuple(jnp.asarray(start[name]) for name in ("W", "V", "H", "G"))
        self.activations: tuple = ()

    def _initialize_factors(self, jacobians: Any, key: Any) -> Any:
        return self.start

    def _projection(self, H: Any, R: Any, Z: Any) -> Any:
        result = super()._projection(H, R, Z)
        self.activations = result[2]
        return result


def decoupling(data: Arrays, sweeps: int, **settings: Any) -> list[Sweep]:
    """The loop of `decoupling`, seen at the error that it takes at the end of every sweep.

    Its defaults: 0.1 as the outputs' weight, the square root of 2 S functions, smoothed by cross-validation.
    """
    seen: list[Sweep] = []
    key = jax.random.key(0)
    algorithm = Started(data, data["V"].shape[1], key, niters=sweeps, show_progress=False, **settings)

    def watched(jacobians: Any, factors: Any) -> Any:
        error = OF_DECOUPLING(jacobians, factors).block_until_ready()
        coefficients, knots = algorithm.activations
        seen.append(sweep(W=factors[0], V=factors[1], coefficients=coefficients, knots=knots, error=error))
        return error

    decoupling_algorithm.cpd_error = watched
    algorithm.run(data["inputs"], data["outputs"], data["jacobians"])
    return seen


def decoupling_alike(data: Arrays, sweeps: int) -> list[Sweep]:
    """With our weight of the outputs, as many functions, and no smoothing."""
    settings = {"gamma": float(data["weight"]), "splines_dof": int(data["functions"]), "use_smoothing": False}
    return decoupling(data, sweeps, **settings)


def answered(seen: list[Sweep], inputs: np.ndarray) -> Arrays:
    """What the package returns after these sweeps: `decoupling` its best one, with its activations at any inputs."""
    if "knots" not in seen[0].factors:
        return seen[-1].factors
    best = min(seen, key=lambda one: one.factors["error"]).factors
    G, H = curves(inputs @ best["V"], best["coefficients"], best["knots"])
    return {"W": best["W"], "V": best["V"], "G": G, "H": H}


def curves(t: np.ndarray, coefficients: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """The activations and their slopes by the splines of `decoupling`, `(2, S, r)`."""
    result = np.empty((2, *t.shape))
    for k in range(t.shape[1]):
        pair = design_matrices(jnp.asarray(t[:, k]), jnp.asarray(knots[k]), 3)
        result[:, :, k] = [np.asarray(one) @ coefficients[k] for one in pair]
    return result


def started(data: Arrays) -> CPTensor:
    """The start as tensorly takes it, the shared factor W first."""
    return CPTensor((np.ones(data["V"].shape[1]), [data["W"].copy(), data["V"].copy(), data["H"].copy()]))


def cmtf(data: Arrays, sweeps: int) -> list[Sweep]:
    """Coupled factorization of tensorly, seen where it forms the matrix model to take the error of a sweep."""
    seen: list[Sweep] = []
    held: list[CPTensor] = []

    def watched(model: Any) -> Any:
        dense = OF_TENSORLY(model)
        if len(model[1]) == 3:
            held[:] = [model]
        else:
            seen.append(sweep(W=held[0][1][0], V=held[0][1][1]))
        return dense

    tensorly_cmtf.cp_to_tensor = watched
    matrix = data["weight"] ** 0.5 * data["outputs"].T
    tensorly_cmtf.coupled_matrix_tensor_3d_factorization(
        data["jacobians"], matrix, data["V"].shape[1], init=started(data), n_iter_max=sweeps, tol=0
    )
    return seen


def cpd(data: Arrays, sweeps: int) -> list[Sweep]:
    """CPD by alternating least squares of tensorly, seen by its callback."""
    seen: list[Sweep] = []

    def watched(model: Any, error: Any) -> None:
        seen.append(sweep(W=model[1][0], V=model[1][1]))

    rank = data["V"].shape[1]
    parafac(data["jacobians"], rank, sweeps, init=started(data), tol=None, return_errors=True, callback=watched)
    return seen[1:]  # the first call is before the first sweep


METHODS: dict[str, Callable[[Arrays, int], list[Sweep]]] = {
    "decoupling": decoupling_alike,
    "decoupling, its defaults": decoupling,
    "tensorly CMTF": cmtf,
    "tensorly CPD": cpd,
}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request."""
    with np.load(request["data"]) as stored:
        data = dict(stored)
    began = time.perf_counter()
    seen = METHODS[request["method"]](data, request["sweeps"])
    whole = time.perf_counter() - began
    if request.get("to"):
        found = [answered(seen[:sweeps], data["held_out"]) for sweeps in request["after"]]
        np.savez(request["to"], **{name: np.stack([one[name] for one in found]) for name in found[0]})
    pairs = list(pairwise(seen))
    return {
        "clock": [after.clock - before.clock for before, after in pairs],
        "cpu": [after.cpu - before.cpu for before, after in pairs],
        "whole": whole,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of sweeps without convergence, which is what is asked for
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({name: version(name) for name in PACKAGES}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
