"""One problem over several processes, each of which holds some of the samples: torch.distributed under torchrun."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch import distributed as dist

from tenflex.bases import BASES
from tenflex.decouple import decouple as decouple_alone
from tenflex.decouple import solve
from tenflex.factors import Activations, Factors
from tenflex.objective.prepared import Prepared
from tenflex.problem import Problem
from tenflex.progress import OnProgress, silent
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.solution import Solution
from tenflex.solvers.base import Solver, State
from tenflex.solvers.default import refinement
from tenflex.split import FEWEST, groups_of_rows
from tenflex.storage.files import beside, read_file, require_own, write_tensors
from tenflex.storage.values import pack, unpack
from tenflex.sums import Operation, meeting

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: one that dies is noticed at once, and one that works may take long."""

STARTED_ON = 512
"""So many samples, of all processes together, tell a start as well as more do."""

FORMAT = "tenflex-layers/1"

KINDS: dict[str, type[Any]] = {"Activations": Activations, "Factors": Factors}

Made = TypeVar("Made")


def launched() -> bool:
    """Whether this is one of several processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def process_group() -> Iterator[None]:
    """The processes that torchrun started, as a group, for as long as the block lasts; nothing for a single one.

    Example:
        >>> from tenflex import distributed
        >>> with distributed.process_group():
        ...     torch.distributed.is_initialized()  # nothing is started for a single process
        False
    """
    if not launched() or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0" or not launched()


class AgreedError(ValueError):
    """What failed in one process, raised in all of them."""


def agreed(make: Callable[[], Made]) -> Made:
    """What this process makes; where that fails in one of them, all raise the same error and none waits for it.

    Raises:
        ValueError: if making failed in a process: its number and message.

    Example:
        >>> from tenflex import distributed
        >>> distributed.agreed(lambda: 3)
        3
    """
    try:
        made, error = make(), None
    except (TypeError, ValueError, OSError) as failure:
        made, error = None, failure
    texts = gathered(None if error is None else str(error))
    if all(text == texts[0] for text in texts) and error is not None:
        raise error
    for number, text in enumerate(texts):
        if text is not None:
            raise AgreedError(f"process {number} of {len(texts)}: {text}")
    return made  # type: ignore[return-value] # where nothing failed it was made


def gathered(value: Any) -> list[Any]:
    """A plain value of every process, in their order."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    _watched(lambda: dist.all_gather_object(found, value))
    return found


@contextmanager
def together() -> Iterator[None]:
    """Within, `compress` divides the samples of every block over the processes of the group; nothing for a single one.

    Every process calls it with the same network and inputs, and gets the same network back. Errors in its report are
    those of the samples of all; that of the whole network is on the share of the process.

    Raises:
        RuntimeError: if a process is gone.

    Example:
        >>> with tenflex.distributed.together():  # doctest: +SKIP
        ...     result = tenflex.compress(model, inputs, {"fc1:fc3": tenflex.Block(40)})
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    with watching(), meeting(exchanged, dist.get_rank()):
        yield


def own_examples(groups: Int[Tensor, " S"]) -> Int[Tensor, " own"]:
    """Of examples that all processes have, those that belong to this one, in ascending order: whole groups.

    Raises:
        ValueError: if there are too few for one of the processes.
    """
    world = dist.get_world_size()
    counts = torch.bincount(groups % world, minlength=world)
    if int(counts.min()) < FEWEST:
        raise ValueError(
            f"{len(groups)} inputs are too few for {world} processes, expected at least {FEWEST} different ones for "
            f"each: use fewer processes, or pass more inputs"
        )
    return (groups % world == dist.get_rank()).nonzero().squeeze(1)


def own_share(samples: Samples) -> Samples:
    """Of samples that all processes have, those that belong to this one: every so many groups, whole.

    Raises:
        ValueError: if the covariance of the errors joins all samples, or there are too few of them.

    Example:
        >>> from tenflex import distributed
        >>> group = torch.distributed
        >>> group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
        >>> len(distributed.own_share(problem.samples))  # of one process all
        40
        >>> group.destroy_process_group()
    """
    return samples.select(_own_index(samples)) if dist.is_initialized() else samples


def _own_index(samples: Samples) -> Int[Tensor, " own"]:
    """The samples of this process."""
    if samples.covariance is not None and samples.covariance.ndim == 2:
        raise ValueError("a covariance of all samples together cannot be divided: give one for each sample")
    groups = groups_of_rows((samples.inputs,)) if samples.groups is None else samples.groups
    index = (groups % dist.get_world_size() == dist.get_rank()).nonzero().squeeze(1)
    if len(index) < 2:
        raise ValueError(f"{len(samples)} samples are too few for {dist.get_world_size()} processes: use fewer")
    return index


def divide(problem: Problem, solver: Solver[Any] | None = None, **settings: Any) -> Solution:
    """The same for a problem with all samples, which every process has: each takes its share of them.

    Args:
        problem: All samples, and the settings.
        solver: The algorithm of the start; None for the default recipe.
        **settings: As for `decouple`.

    Returns:
        The solution, with all samples, those of each use together.

    Raises:
        RuntimeError, TypeError, ValueError: as for `decouple`.

    Example:
        >>> from tenflex import distributed
        >>> group = torch.distributed  # of one process; torchrun starts more, and process_group() makes the group
        >>> group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
        >>> distributed.divide(problem).validation_error < 1e-6
        True
        >>> group.destroy_process_group()
    """
    require_group()
    index = agreed(lambda: _own_index(problem.samples))
    own = agreed(lambda: replace(problem, samples=problem.samples.select(index)))
    solution = decouple(own, solver, **settings)
    splits = gathered([index[one].tolist() for one in own.split])
    uses = [[place for split in splits for place in split[k]] for k in range(3)]
    order = torch.tensor([place for use in uses for place in use], device=index.device)
    whole = replace(problem.samples.select(order), groups=None, aside=(len(uses[1]), len(uses[2])))
    return replace(solution, problem=replace(problem, samples=whole))


def decouple(
    problem: Problem,
    solver: Solver[Any] | None = None,
    *,
    start: Factors | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> Solution:
    r"""Find the flexible layers of a problem whose samples are divided over the processes of a group.

    Called in every process, each with a problem of its own samples and else the same settings. The first process finds
    a start from some samples of all; then all refine it together: each passes over its own samples, and sums over all
    of them, the objective, its gradient, the reduction, the bias, the held-out errors, are added up where they are
    formed (`tenflex.sums.over_samples`). So every process sees one and the same objective and takes the same steps;
    that their unknowns have the same bits is compared after each. An evaluation exchanges one number for every unknown
    and node, however many samples there are.

    Args:
        problem: Samples of this process, and the settings that all share.
        solver: The algorithm of the start; None for the default recipe.
        start: Layers to begin with, the same in every process; None to find some.
        seed: Of all random choices.
        checkpoint: A file in which the first process keeps the layers as they become better.
        resume: Whether to go on from the checkpoint, if it is there; with any number of processes.
        on_progress: Called after every step, in the first process only.

    Returns:
        The solution, with the samples of this process; its errors are those of the samples of all.

    Raises:
        RuntimeError: if a process is gone, or unknowns differ between processes.
        TypeError: if an argument is of the wrong type.
        ValueError: if there is no process group, processes have other settings or too few samples, or the problem
            cannot be solved.

    Example:
        >>> from tenflex import distributed
        >>> group = torch.distributed  # of one process; torchrun starts more, and process_group() makes the group
        >>> group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
        >>> mine = Problem(distributed.own_share(problem.samples), 2, Monomial(3))
        >>> distributed.decouple(mine).validation_error < 1e-6
        True
        >>> group.destroy_process_group()
    """
    require_group()
    path = None if checkpoint is None else Path(checkpoint)
    agreed(lambda: _require(problem, path))
    _require_alike(problem, seed)
    report = (on_progress or silent) if is_first() else silent
    if resume and path is not None:
        start = broadcast(lambda: read_checkpoint(path) if path.exists() else start)
    if start is None:
        start = _start(problem, solver, seed, report)
    with meeting(exchanged, dist.get_rank()):
        return _watched(lambda: solve(problem, Compared(), start, seed, report, Kept(path)))


def require_group() -> None:
    """Raise ValueError unless there is a process group."""
    if not dist.is_initialized():
        raise ValueError(
            "there is no process group: start with `torchrun --nproc-per-node N`, or call "
            "torch.distributed.init_process_group first"
        )


def _require(problem: object, path: Path | None) -> None:
    """Raise unless this process has what it needs."""
    if not isinstance(problem, Problem):
        raise TypeError(f"expected a tenflex.Problem, got {type(problem).__name__}")
    if problem.held_out and len(problem.samples) < FEWEST:
        raise ValueError(
            f"{len(problem.samples)} samples are too few to hold some out, expected at least {FEWEST} in every "
            f"process: use fewer processes, or held_out=0"
        )
    if path is not None and is_first():
        require_own(path)


def _require_alike(problem: Problem, seed: int) -> None:
    """Raise ValueError unless all processes ask for the same of samples of the same kind."""
    samples, split = problem.samples, problem.split
    own = {
        "rank": problem.rank,
        "basis": str(BASES.described(problem.basis)),
        "coupling": problem.coupling,
        "factors": (problem.factor, problem.output_factor),
        "coordinates": repr(problem.coordinates),
        "sizes": (samples.inputs.shape[1], samples.outputs.shape[1]),
        "dtype": str(samples.outputs.dtype),
        "seed": seed,
        "covariance": samples.covariance is not None,
        "reduction": samples.reduction is not None,
        "samples for validation": len(split.validation) > 0,
        "samples for the test": len(split.test) > 0,
    }
    for number, other in enumerate(gathered(own)):
        for name, value in own.items():
            if other[name] != value:
                raise ValueError(
                    f"all processes must have the same {name}, got {value!r} in process {dist.get_rank()} and "
                    f"{other[name]!r} in process {number}"
                )


def _start(problem: Problem, solver: Solver[Any] | None, seed: int, report: OnProgress) -> Factors:
    """Layers that the first process finds from some samples of all."""
    count = -(-STARTED_ON // dist.get_world_size())
    fitted = problem.split.fitted
    some = problem.samples.select(fitted[:: max(1, -(-len(fitted) // count))])
    parts, pilots = gathered(parts_of(some)), gathered(None if some.pilot is None else parts_of(some.pilot))

    def found() -> Factors:
        pilot = None if pilots[0] is None else _joined(pilots, None, None)
        whole = replace(_joined(parts, problem.samples.reduction, pilot), names=problem.samples.names)
        return decouple_alone(replace(problem, samples=whole), solver, seed=seed, on_progress=report).factors

    return broadcast(found)


def parts_of(samples: Samples) -> tuple[Tensor | None, ...]:
    """What samples are made of, one row each."""
    return samples.inputs, samples.outputs, samples.jacobians, samples.covariance, samples.directions


def _joined(parts: list[tuple[Any, ...]], reduction: Reduction | None, pilot: Samples | None) -> Samples:
    """The samples of several processes."""
    columns = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
    x, F, J, covariance, directions = columns
    if x is None or F is None or J is None:
        raise TypeError("samples have inputs, outputs and Jacobians")
    return Samples(x, F, J, reduction, covariance=covariance, directions=directions, pilot=pilot)


def broadcast(make: Callable[[], Made]) -> Made:
    """What the first process makes, in all of them."""
    with meeting(None):  # the others wait
        made = agreed(lambda: make() if is_first() else None)
    held: list[Any] = [made]
    _watched(lambda: dist.broadcast_object_list(held, 0))
    found: Made = held[0]
    return found


def exchanged(partial: Tensor, operation: Operation) -> Tensor:
    """What all processes have together, with the same bits in each."""
    kind = torch.uint8 if partial.dtype is torch.bool else partial.dtype
    total = partial.to(kind, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total, OPERATIONS[operation])
    return total.to(partial.dtype)


OPERATIONS = {"sum": dist.ReduceOp.SUM, "smallest": dist.ReduceOp.MIN, "largest": dist.ReduceOp.MAX}


def _watched(work: Callable[[], Made]) -> Made:
    """What work gives; RuntimeError in plain words if a process is gone while it waits for it."""
    with watching():
        return work()


@contextmanager
def watching() -> Iterator[None]:
    """RuntimeError in plain words if a process is gone while this one waits for it."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in SIGNS_OF_DEATH):
            raise RuntimeError(
                "a process of the group is gone: its own message says why; start again, with resume=True "
                "to go on from the checkpoint"
            ) from error
        raise


SIGNS_OF_DEATH = ("Connection closed", "Connection reset", "Broken pipe", "Timed out waiting", "Connection refused")
"""What the backends of torch.distributed say when the other side does not answer any more."""


@dataclass(frozen=True)
class Compared(Solver[Any]):
    """The refinement of a start, whose unknowns are compared between processes after each step."""

    def refusal(self, problem: Prepared) -> str | None:
        return refinement(problem).refusal(problem)

    def total(self, problem: Prepared) -> int:
        return refinement(problem).total(problem)

    def init(self, problem: Prepared, generator: torch.Generator) -> State[Any]:
        return refinement(problem).init(problem, generator)

    def resume(self, problem: Prepared, state: State[Any]) -> State[Any]:
        return refinement(problem).resume(problem, state)

    def finished(self, problem: Prepared, state: State[Any]) -> bool:
        return refinement(problem).finished(problem, state)

    def step(self, problem: Prepared, state: State[Any]) -> State[Any]:
        after = refinement(problem).step(problem, state)
        require_same(after.factors, f"after step {after.taken}")
        return after


def require_same(factors: Factors, when: str) -> None:
    """Raise RuntimeError unless the numbers of layers have the same bits in all processes."""
    prints = gathered(fingerprint(factors))
    if len(set(prints)) > 1:
        raise RuntimeError(
            f"{when} the processes have different unknowns ({', '.join(prints)}): expected the same bits; run all of "
            f"them on machines of one kind, with one build of PyTorch"
        )


def fingerprint(factors: Factors) -> str:
    """A short text that tells whether the numbers of two layers have the same bits."""
    numbers = factors.flat().detach().cpu().contiguous()
    return hashlib.blake2b(numbers.numpy().tobytes(), digest_size=8).hexdigest()


@dataclass
class Kept:
    """A checkpoint, written by the first process after every step.

    Args:
        path: The file; None for no checkpoint.
    """

    path: Path | None

    def __call__(self, taken: int, factors: Callable[[], Factors]) -> None:
        if self.path is not None and is_first():
            write_checkpoint(self.path, factors())


def write_checkpoint(path: Path, factors: Factors) -> None:
    """Write layers, as a whole or not at all."""
    tensors: dict[str, Tensor] = {}
    header = {"format": FORMAT, "factors": pack(factors, "factors", tensors, KINDS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        write_tensors(temporary, tensors, header)


def read_checkpoint(path: Path) -> Factors:
    """The layers of a checkpoint.

    Raises:
        ValueError: if the file is damaged or another.
    """
    header, tensors = read_file(path, "a checkpoint", "the checkpoint")
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint: it has the format {header.get('format')!r}")
    found = unpack(header.get("factors"), tensors, KINDS)
    if not isinstance(found, Factors):
        raise ValueError(f"{path} is damaged: it holds no layers")
    return found
