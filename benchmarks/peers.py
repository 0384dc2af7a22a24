"""Side by side with the packages that decouple or factorize today, at (m, n, S, r) = (300, 10, 1000, 20).

Peers: `decoupling` 0.0.9 (JAX), once with our weight, number of functions and no smoothing, once as it comes; tensorly
0.10.0 (numpy), its coupled factorization and its CPD. All solve the same samples in float64 from the same start, V, W,
G and H of our first state, in one run, on the same machine and as many threads, taking turns. A sweep updates each
factor once and takes the error, as every package does itself; times are medians of sweeps after compilation.

Errors are relative, of outputs and Jacobians at samples that nobody fitted. tensorly has no activations: for its V and
W this library fits them (and W once more), in tensorly's favour. They are compared after as many sweeps from the common
start, and with our answer, a recipe of CPD starts and the exact refinement: there every peer gets as many sweeps as fit
into its time. Equal time is CPU time on one thread, which other programs on the machine disturb little.

"active directions" are the samples as `compress` takes them, without input directions that together carry less than
1e-4 of the Jacobians' energy, "in decouple" those that the verb itself makes of them; the start and all errors are the
same as on the full samples. A sweep of tensorly's CPD is three products with J, of which two are the floor; ours are
taken on a core of J, so what is done once is reported beside them: the compression, and the time of a whole
decomposition of `SWEEPS` sweeps, in ours with the compression and the activations fitted at the start and every
`STRIDE` sweeps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers_environment import PeersUnavailableError, Worker
from benchmarks.record import show, write
from tenflex import BSpline, Problem, Samples, decouple, sample
from tenflex.coordinates.active import to_active_axes
from tenflex.demo.digits import load_digits
from tenflex.demo.networks import lenet300
from tenflex.factors import Factors
from tenflex.objective.compressed import pays
from tenflex.objective.tensor import JacobianTensor
from tenflex.reduction import Reduction
from tenflex.sampling.jacobian import LOST_ENERGY
from tenflex.solvers import BestSoFar, Chain, ConstrainedALS, MultiStart, Prepared, Refine, Solver, State, prepare
from tenflex.solvers.cpd import CORES, core_of
from tenflex.solvers.published.dreesen2015 import JacobianCPD

RANK, COUNT, HELD_OUT = 20, 1000, 500
BASIS = BSpline(10)
SWEEPS = 30
REPEATS, BLOCK = 5, 3
"""Turns of every method, and the sweeps in a turn, the first of which does not count."""
MOST_SWEEPS = 200
"""The most sweeps taken in equal time, where they are short."""
LEAST_RATIO = 10.0
FULL, REDUCED = "tenflex ConstrainedALS", "tenflex ConstrainedALS, active directions"
CPD_FULL, CPD_REDUCED = "tenflex JacobianCPD", "tenflex JacobianCPD, active directions"
CPD_USED = "tenflex JacobianCPD, in decouple"
CPD_PEER = "tensorly CPD"
STRIDE = 10
"""The sweeps of JacobianCPD between two fits of the activations."""
ANSWER = Chain((MultiStart(JacobianCPD(100), 3), BestSoFar(Refine(100))))
COUPLED = ("decoupling", "decoupling, its defaults", "tensorly CMTF")
PEERS = (*COUPLED, CPD_PEER)

Times = dict[str, list[float]]
Errors = tuple[float, float]
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A problem: samples to fit, and others to judge by."""

    name: str
    fitted: Samples
    held_out: Samples


@dataclass(frozen=True)
class Ours:
    """A solver at the common start, in the coordinates in which it solves; a step of it is `stride` sweeps."""

    solver: Solver
    prepared: Prepared
    reduction: Reduction
    state: State
    stride: int

    def factors(self, sweeps: int) -> Factors:
        """The layer after some sweeps, in the original coordinates."""
        return self.factors_from(self.state, sweeps)

    def factors_from(self, state: State, sweeps: int) -> Factors:
        """The same from any state."""
        for _ in range(sweeps // self.stride):
            state = self.solver.step(self.prepared, state)
        return self.reduction.expand(state.factors)

    def time(self, sweeps: int) -> Times:
        """Clock and CPU seconds of all sweeps but the first; where a step has several, they share its time."""
        state, clock, cpu = self.state, [], []
        for _ in range(sweeps):
            began, began_cpu = time.perf_counter(), time.process_time()
            state = self.solver.step(self.prepared, state)
            clock.append((time.perf_counter() - began) / self.stride)
            cpu.append((time.process_time() - began_cpu) / self.stride)
        return {"clock": clock[1:], "cpu": cpu[1:]}

    def whole(self, sweeps: int) -> float:
        """Clock seconds from V and W of the start to the layer after some sweeps, the compression among them."""
        CORES.pop(self.prepared.fitted.jacobians, None)
        began = time.perf_counter()
        self.factors_from(self.solver.resume(self.prepared, self.state), sweeps)
        return time.perf_counter() - began

    def compression(self, sweeps: int) -> float:
        """Clock seconds of what is done once, however many sweeps follow."""
        tensor = JacobianTensor(self.prepared.fitted.jacobians.entries)
        began = time.perf_counter()
        if pays(tensor.entries.shape, RANK, sweeps):
            core_of(tensor, RANK)
        return time.perf_counter() - began


def planted() -> Case:
    """Twenty sigmoids, each of its own slope, place and tail; 1 % noise on what is fitted, none on what judges."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    V, W = normal(300, RANK) / 300**0.5, normal(10, RANK)
    slope, place, tail = 0.5 + 1.5 * torch.rand(RANK, generator=generator).double(), normal(RANK), 0.2 * normal(RANK)
    x = normal(COUNT + HELD_OUT, 300)
    u = slope * (x @ V) + place
    F = (torch.tanh(u) + tail * u) @ W.mT
    J = torch.einsum("nr,sr,mr->snm", W, slope * (1 / torch.cosh(u) ** 2 + tail), V)
    held_out = Samples(x[COUNT:], F[COUNT:], J[COUNT:])
    F, J = (one[:COUNT] for one in (F, J))
    F = F + 0.01 * F.std() * normal(*F.shape)
    J = J + 0.01 * J.square().mean().sqrt() * normal(*J.shape)
    return Case("planted, 1 % noise", Samples(x[:COUNT], F, J), held_out)


def tail() -> Case:
    """The last layers of LeNet-300-100, 300 -> 100 -> 10, where real digits arrive; test images judge."""
    digits, model = load_digits(), lenet300().double()
    behind = nn.Sequential(model.fc2, nn.ReLU(), model.fc3).eval()

    def sampled(images: Tensor) -> Samples:
        with torch.no_grad():
            arriving = torch.relu(model.fc1(images.double()))
        return sample(behind, arriving)

    return Case("LeNet 300-100-10", sampled(digits.train_images[:COUNT]), sampled(digits.test_images[-HELD_OUT:]))


def unchanged(samples: Samples) -> Samples:
    """The same samples, marked as already being in the coordinates in which to solve: all directions are kept."""
    inputs, outputs = (torch.eye(tensor.shape[1], dtype=torch.float64) for tensor in (samples.inputs, samples.outputs))
    nothing = Reduction(
        inputs.new_zeros(len(inputs)), inputs, inputs, outputs.new_zeros(len(outputs)), outputs, outputs
    )
    return replace(samples, reduction=nothing)


def on_active_directions(samples: Samples) -> Samples:
    """The same samples as `compress` takes them, without the directions in which the map hardly changes."""
    whole = unchanged(samples)
    assert whole.reduction is not None
    return to_active_axes(whole, whole.reduction, LOST_ENERGY)[0]


def at_start(solver: Solver, samples: Samples, start: Factors, stride: int = 1) -> Ours:
    """A solver at V and W of a start on samples in any coordinates."""
    prepared, reduction = prepare(Problem(samples, RANK, BASIS, held_out=0))
    V, W = reduction.up.mT @ start.V, reduction.output_down.mT @ start.W
    state = State(replace(directed(start, V, W), bias=prepared.fitted.mean), None)
    return Ours(solver, prepared, reduction, solver.resume(prepared, state), stride)


def directed(layer: Factors, V: Tensor, W: Tensor) -> Factors:
    """The layer with other directions."""
    return layer.with_map(0, V).with_map(-1, W.mT)


def first_state(samples: Samples) -> Factors:
    """The common start: gradient directions, with the activations and W that fit them best."""
    prepared, _ = prepare(Problem(unchanged(samples), RANK, BASIS, held_out=0))
    return ConstrainedALS().init(prepared, torch.Generator().manual_seed(0)).factors


def ours(case: Case, start: Factors) -> dict[str, Ours]:
    """Our solvers on the full samples and on their active directions."""
    whole, reduced = unchanged(case.fitted), on_active_directions(case.fitted)
    cpd = JacobianCPD(sweeps=100 * SWEEPS, stride=STRIDE)
    return {
        FULL: at_start(ConstrainedALS(), whole, start),
        REDUCED: at_start(ConstrainedALS(), reduced, start),
        CPD_FULL: at_start(cpd, whole, start, STRIDE),
        CPD_REDUCED: at_start(cpd, reduced, start, STRIDE),
        CPD_USED: at_start(cpd, case.fitted, start, STRIDE),
    }


def arrays(case: Case, full: Ours) -> dict[str, np.ndarray]:
    """What the peers are given: samples with centred outputs, the start, and the settings that are ours."""
    samples, objective, start = case.fitted, full.prepared.fitted, full.state.factors
    G, H, _ = start.only.curves(start.arguments(samples.inputs)[0])
    named = {
        "inputs": samples.inputs,
        "outputs": objective.centred,
        "jacobians": samples.jacobians.permute(1, 2, 0).contiguous(),
        "held_out": case.held_out.inputs,
        "V": start.V,
        "W": start.W,
        "G": G - G.mean(0),
        "H": H,
        "weight": objective.weight_f / objective.weight_j,
    }
    return {name: tensor.numpy() for name, tensor in named.items()} | {"functions": np.array(BASIS.size)}


def relative(off: Tensor, of: Tensor) -> float:
    return (off.norm() / of.norm()).item()


def errors(factors: Factors, case: Case) -> Errors:
    """Relative errors of outputs and Jacobians at the held-out samples."""
    x, F, J = case.held_out.inputs, case.held_out.outputs, case.held_out.jacobians
    return relative(factors.outputs(x) - F, F - F.mean(0)), relative(factors.jacobians(x) - J, J)


def errors_of_peer(found: dict[str, Tensor], case: Case, start: Factors) -> Errors:
    """The same for what a peer returned; where it has no activations, with those that fit its V and W best."""
    V, W = found["V"], found["W"]
    if "G" not in found:
        fitted = at_start(ConstrainedALS(), unchanged(case.fitted), directed(start, V, W))
        return errors(fitted.factors(0), case)
    F, J = case.held_out.outputs, case.held_out.jacobians
    modelled = found["G"] @ W.mT + case.fitted.outputs.mean(0)
    return relative(modelled - F, F - F.mean(0)), relative(torch.einsum("nr,sr,mr->snm", W, found["H"], V) - J, J)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch on as many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(methods: dict[str, Callable[[int], Times]], repeats: int) -> dict[str, list[Times]]:
    """A few sweeps of each method after each other, several times, so that what disturbs the machine disturbs all."""
    for method in methods.values():
        method(1)
    turns: dict[str, list[Times]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            turns[name].append(method(BLOCK))
    return turns


def timed(case: Case, worker: Worker, own: dict[str, Ours], repeats: int = REPEATS) -> dict[str, Row]:
    """Milliseconds of a sweep of every method, and how many times as long as ours they are."""

    def asked(name: str) -> Callable[[int], Times]:
        return lambda sweeps: worker.time(name, case.name, sweeps)

    turns = take_turns({name: one.time for name, one in own.items()} | {name: asked(name) for name in PEERS}, repeats)
    whole = whole_times(case, worker, own, repeats)
    return {name: time_row(case, name, turns) | whole.get(name, {}) for name in turns}


def time_row(case: Case, name: str, turns: dict[str, list[Times]]) -> Row:
    """Median and quartiles of a method's sweeps, and its ratios to our counterpart on full and reduced samples."""
    full, reduced = (CPD_FULL, CPD_REDUCED) if "CPD" in name else (FULL, REDUCED)
    clock = [1e3 * second for turn in turns[name] for second in turn["clock"]]
    return {
        "problem": case.name,
        "threads": torch.get_num_threads(),
        "method": name,
        "milliseconds": statistics.median(clock),
        "quartiles": statistics.quantiles(clock, n=4)[::2],
        "cpu_milliseconds": 1e3 * middle(turns[name], "cpu"),
        "times_ours": ratios(turns[name], turns[full]),
        "times_ours_reduced": ratios(turns[name], turns[reduced]),
        "cpu_times_ours": middle(turns[name], "cpu") / middle(turns[full], "cpu"),
    }


def whole_times(case: Case, worker: Worker, own: dict[str, Ours], repeats: int = REPEATS) -> dict[str, Row]:
    """Of every CPD, the milliseconds of all its sweeps with what comes before them, and the ratio of the peer's."""
    mine = {name: own[name] for name in (CPD_FULL, CPD_REDUCED, CPD_USED)}
    seconds: dict[str, list[float]] = {name: [] for name in (*mine, CPD_PEER)}
    for _ in range(repeats):
        for name, one in mine.items():
            seconds[name].append(one.whole(SWEEPS))
        seconds[CPD_PEER].append(worker.whole(CPD_PEER, case.name, SWEEPS))
    rows = {name: {"whole_milliseconds": 1e3 * statistics.median(taken)} for name, taken in seconds.items()}
    for name, one in mine.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[CPD_PEER], seconds[name], strict=True)]
        once = statistics.median(one.compression(SWEEPS) for _ in range(repeats))
        rows[name] |= {"compression_milliseconds": 1e3 * once, "peer_times_whole": statistics.median(ratios)}
    return rows


def middle(turns: list[Times], of: str) -> float:
    """The median over the sweeps of all turns."""
    return statistics.median(second for turn in turns for second in turn[of])


def ratios(taken: list[Times], ours: list[Times]) -> list[float]:
    """Median, least and largest of the ratios turn by turn."""
    each = [middle([one], "clock") / middle([other], "clock") for one, other in zip(taken, ours, strict=True)]
    return [statistics.median(each), min(each), max(each)]


def errors_after(sweeps: tuple[int, ...], name: str, case: Case, worker: Worker, own: dict[str, Ours]) -> list[Errors]:
    """The held-out errors of a method after some numbers of sweeps."""
    if name in own:
        return [errors(own[name].factors(count), case) for count in sweeps]
    found = {key: torch.from_numpy(array) for key, array in worker.found(name, case.name, sweeps).items()}
    start = own[FULL].state.factors
    return [errors_of_peer({key: one[i] for key, one in found.items()}, case, start) for i in range(len(sweeps))]


def error_row(name: str, limit: float, case: Case, worker: Worker, own: dict[str, Ours], times: dict[str, Row]) -> Row:
    """Errors after the same number of sweeps as all, and after as many as fit into the seconds of our answer."""
    within = max(1, min(MOST_SWEEPS, int(1e3 * limit / times[name]["cpu_milliseconds"])))
    equal_sweeps, equal_time = errors_after((SWEEPS, within), name, case, worker, own)
    return {
        "problem": case.name,
        "method": name,
        "sweeps": SWEEPS,
        "cpu_seconds": SWEEPS * times[name]["cpu_milliseconds"] / 1e3,
        "output_error": equal_sweeps[0],
        "jacobian_error": equal_sweeps[1],
        "sweeps_in_equal_time": within,
        "output_error_then": equal_time[0],
        "jacobian_error_then": equal_time[1],
    }


def answer_row(case: Case, name: str, solver: Solver | None, reduce: bool) -> Row:
    """What a whole recipe gives, and the CPU seconds it takes in all."""
    began = time.process_time()
    samples = on_active_directions(case.fitted) if reduce else case.fitted
    factors = decouple(Problem(samples, RANK, BASIS), solver).factors
    seconds = time.process_time() - began
    output_error, jacobian_error = errors(factors, case)
    named = {"problem": case.name, "method": name, "cpu_seconds": seconds}
    return {**named, "output_error": output_error, "jacobian_error": jacobian_error}


@contextmanager
def side_by_side(case: Case, worker: Worker, count: int) -> Iterator[dict[str, Ours]]:
    """Our solvers at the common start, with torch on some threads and the data laid ready for the worker."""
    with threads(count), torch.no_grad():
        own = ours(case, first_state(case.fitted))
        worker.give(case.name, arrays(case, own[FULL]))
        yield own


def faster(times: Row) -> Row:
    """The claim on time against one peer, on the full samples."""
    about = {"problem": times["problem"], "peer": times["method"]}
    return {**about, "claim": f"times_ours at least {LEAST_RATIO:g}", "holds": times["times_ours"][0] >= LEAST_RATIO}


def lower(our: Row, row: Row) -> list[Row]:
    """The claims on errors against one peer: those of our answer are lower, after its sweeps and in equal time."""
    about = {"problem": row["problem"], "peer": row["method"]}
    return [
        {**about, "claim": f"{what}{when} above ours", "holds": our[what] < row[what + when]}
        for what in ("output_error", "jacobian_error")
        for when in ("", "_then")
    ]


def compare(case: Case, worker: Worker) -> tuple[list[Row], list[Row], list[Row]]:
    """Times, errors and claims for one problem, on one thread."""
    with side_by_side(case, worker, 1) as own:
        times = timed(case, worker, own)
        ours = answer_row(case, "tenflex, CPD starts + Refine, active directions", ANSWER, reduce=True)
        default = answer_row(case, "tenflex, decouple without a solver", None, reduce=False)
        found = {name: error_row(name, ours["cpu_seconds"], case, worker, own, times) for name in times}
        claims = [claim for name in PEERS for claim in (faster(times[name]), *lower(ours, found[name]))]
        return list(times.values()), [ours, default, *found.values()], claims


def main() -> bool | None:
    """Measure; None where the peers cannot run."""
    times: list[Row] = []
    rows: list[Row] = []
    claims: list[Row] = []
    cases = (planted(), tail())
    try:
        with Worker(1) as worker:
            versions = worker.versions
            for case in cases:
                for total, part in zip((times, rows, claims), compare(case, worker), strict=True):
                    total += part
        with Worker(2) as worker, side_by_side(cases[0], worker, 2) as own:
            times += timed(cases[0], worker, own, repeats=2).values()
    except PeersUnavailableError as reason:
        print(f"peers: skipped, nothing was compared: {reason}")
        return None
    write("peers_times", times, peers=versions, sizes={"S": COUNT, "n": 10, "m": 300, "r": RANK})
    write("peers", rows, peers=versions, sweeps=SWEEPS, claims=claims)
    show("claims against the peers", claims)
    return all(claim["holds"] for claim in claims)
