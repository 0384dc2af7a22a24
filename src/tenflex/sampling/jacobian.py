"""Outputs and Jacobians of a map at many points, in chunks, in whichever mode is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from tenflex.checks import require_eval, require_finite, require_floating, require_share
from tenflex.coordinates.active import UNRELIABLE, by_energy, needed, to_active_axes_
from tenflex.coordinates.base import Coordinates, require_varying
from tenflex.coordinates.sensitivity import Sensitivity
from tenflex.modes import Multilinear
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.sampling.memory import AT_WORK, MOST_MEMORY, Budget, require_whole_jacobians
from tenflex.sampling.polynomial import Polynomial
from tenflex.split import Split, groups_of_rows, split_samples
from tenflex.sums import any_of, at_once, over_samples
from tenflex.surgery.batch import nearly_equal

BatchMap = Callable[[Tensor], Tensor]
"""A map of a batch: `(S, *in)` to `(S, *out)`, each sample on its own."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A map of a batch of which only what modes tell of its inputs is sampled: `P^T x` and `J P`.

    Args:
        f: The map.
        modes: P.
    """

    f: BatchMap
    modes: Multilinear

    def __call__(self, x: Float[Tensor, "S *m"]) -> Float[Tensor, "S *n"]:
        """The map itself."""
        return self.f(x)

    def inputs(self, x: Float[Tensor, "S *m"]) -> Float[Tensor, "S k"]:
        """What the modes tell of inputs."""
        return self.modes.narrow(x.flatten(1))

    def around(self, x: Float[Tensor, "S *m"]) -> BatchMap:
        """The map of moves along the modes from these inputs on, which are at `inputs(x)`."""
        start = self.inputs(x)
        return lambda z: self.f(x + self.modes.widen(z - start).view_as(x))


def seen(f: BatchMap, x: Float[Tensor, "S *m"]) -> Float[Tensor, "S k"]:
    """Inputs as they are sampled: flat, or what the modes of the map tell of them."""
    return f.inputs(x) if isinstance(f, Seen) else x.flatten(1)


MOST_TOLD = 512
"""So many samples tell the sensitivity of a map to its inputs as well as more do."""

LOST_ENERGY = 1e-3
"""The share of the Jacobians' energy that may be dropped with the least active directions of a network's block."""


def sample(
    f: Callable[[Tensor], Tensor] | nn.Module,
    points: Float[Tensor, "S m"],
    *,
    order: int = 1,
    most_memory: int = MOST_MEMORY,
) -> Samples:
    r"""The outputs and Jacobians of a map :math:`f: R^m \to R^n` at S points.

    Reverse mode when n <= m, forward mode otherwise. The full Jacobians are kept, `S n m` numbers; blocks of networks,
    where that is too much, are reduced while they are sampled (`sample_block`).

    Args:
        f: Takes one point `(m,)` to `(n,)` or a number, and can be differentiated by torch: what it detaches is
            constant to its Jacobians. Or a module, which takes a batch `(S, m)` to `(S, n)` as modules do.
        points: The points, `(S, m)`, floating-point.
        order: The highest derivatives to take: 1 for the Jacobians, 2 for the Hessians as well, `S n m^2` numbers.
        most_memory: Bytes that sampling may take at its peak.

    Raises:
        TypeError: if `points` is not a floating-point tensor, or `f` cannot be called or does not return a tensor.
        ValueError: if `order` is neither 1 nor 2; points, outputs or derivatives have a wrong shape or are not finite;
            `f` is random, a module in train mode, or made of operations that torch cannot differentiate; or the
            derivatives would not fit in memory: the message has the number of points that would.

    Example:
        >>> samples = sample(lambda x: torch.stack([x[0] * x[1], x[0] ** 2]), torch.rand(50, 2))
        >>> samples.jacobians.shape
        torch.Size([50, 2, 2])
    """
    if not callable(f):
        raise TypeError(f"f must be a function or a module, got {type(f).__name__}")
    require_floating("points", points)
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (Jacobians) or 2 (Hessians as well), got {order!r}")
    if points.ndim != 2 or not points.numel():
        raise ValueError(f"points must have the shape (S, m), got {tuple(points.shape)}")
    require_finite("points", points)
    sizes = len(points), 1, points.shape[1]
    require_whole_jacobians(sizes, points.element_size(), order, most_memory)  # of one output at least
    if isinstance(f, nn.Module):
        require_eval("f", f)
    batched = f if isinstance(f, nn.Module) else over_points(f)
    with torch.no_grad():
        outputs, again = flat_outputs(batched, points), flat_outputs(batched, points)
    require_floating("the outputs of f", outputs)
    require_finite("the outputs of f", outputs)
    if not nearly_equal(outputs, again):
        raise ValueError("f must give the same output for the same input, but two runs differ: take out what is random")
    sizes = (*outputs.shape, points.shape[1])
    require_whole_jacobians(sizes, points.element_size(), order, most_memory)
    jacobians = whole_jacobians(batched, points, outputs.shape[1])
    hessians = hessians_of(batched, points, outputs.shape[1]) if order == 2 else None
    names = names_of(f, outputs.shape[1])
    return Samples(points.detach(), outputs, jacobians, hessians=hessians, names=names)


def names_of(f: object, n: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The names that a polynomial has for its inputs, with those of its outputs; None for other maps."""
    names = f.names if isinstance(f, Polynomial) else None
    return None if names is None else (names, tuple(f"f{k + 1}" for k in range(n)))


def over_points(f: Callable[[Tensor], Tensor]) -> BatchMap:
    """A map of single points as a map of a batch: vectorized where torch can, one point at a time where it cannot."""

    def tensor_of(point: Tensor) -> Tensor:
        try:
            output = f(point)
        except RuntimeError as error:
            if "numpy()" not in str(error):
                raise
            raise ValueError(
                "f must be made of operations of torch, which can be differentiated, but it uses NumPy: write it with "
                "torch, or pass a table of its inputs and outputs to tenflex.sample_table"
            ) from error
        if not isinstance(output, Tensor):
            raise TypeError(f"f must return a tensor, got {type(output).__name__}: make it of x with torch.stack")
        return output

    vectorized = torch.func.vmap(tensor_of)

    def batched(x: Tensor) -> Tensor:
        try:
            return vectorized(x)
        except RuntimeError:  # control flow that depends on the data
            return torch.stack([tensor_of(point) for point in x])

    return batched


def flat_outputs(f: BatchMap, x: Float[Tensor, "S *m"]) -> Float[Tensor, "S n"]:
    """The outputs as one row a sample; the map may change what it is given."""
    outputs = f(x.clone())
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(x):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"f must give one output for each of {len(x)} samples, got {got}")
    return outputs.reshape(len(x), -1)


def whole_jacobians(f: BatchMap, x: Float[Tensor, "S *m"], n: int) -> Float[Tensor, "S n m"]:
    """The Jacobians of a batch map, all of them."""
    return gathered(((part.start, jacobians) for part, jacobians in jacobian_chunks(f, x, n)), len(x))


def gathered(parts: Iterator[tuple[int, Tensor]], count: int) -> Float[Tensor, "S *rest"]:
    """What comes some samples at a time, in order, as one tensor: without a moment in which there are two of each."""
    start, first = next(parts)
    whole = first.new_empty(count, *first.shape[1:])
    for at, part in chain([(start, first)], parts):
        whole[at : at + len(part)] = part
    return whole


def jacobian_chunks(
    f: BatchMap, x: Float[Tensor, "S *m"], n: int, most: int | None = None
) -> Iterator[tuple[slice, Float[Tensor, "s n m"]]]:
    """The Jacobians of a batch map, a chunk of samples at a time, at most `most`, checked to be finite.

    Each chunk is written over the one before, in the same memory: new memory for each, between all that comes and goes
    in a pass, would leave holes, and the process would grow.
    """
    m = seen(f, x[:1]).shape[1]
    # More than elsewhere: one pass serves all of them, and they are reduced some at a time.
    step = min(512, at_once(-(-n * m * x.element_size() // 16)), most or 512)
    room = None
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        into = None if room is None else room[: part.stop - start]
        map_, at = (f.around(x[part]), f.inputs(x[part])) if isinstance(f, Seen) else (f, x[part])
        jacobians = forward_jacobians(map_, at, n, into) if n > m else reverse_jacobians(map_, at, n, into)
        room = jacobians if room is None else room
        require_finite(f"the Jacobians of samples {part.start} to {part.stop - 1}", jacobians)
        yield part, jacobians


def reverse_jacobians(
    f: BatchMap, x: Float[Tensor, "s *m"], n: int, into: Float[Tensor, "s n m"] | None = None
) -> Float[Tensor, "s n m"]:
    """One backward pass of the whole chunk for each output; `into` memory that is there, or new one."""
    jacobians = x.new_empty(len(x), n, x[0].numel()) if into is None else into
    back, each = Backward(f, x), torch.eye(n, dtype=x.dtype, device=x.device)
    for i in range(n):
        jacobians[:, i] = back.times(each[i].expand(len(x), n), again=i < n - 1)
    back.require_path()
    return jacobians


class Backward:
    """Backward passes of a whole batch through a map, which is called once.

    Args:
        f: The map.
        x: The samples, `(s, *m)`.
    """

    def __init__(self, f: BatchMap, x: Float[Tensor, "s *m"]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self.x = x.detach().clone().requires_grad_()
            self.outputs = flat_outputs(f, self.x)
        self.reached = False

    def times(self, u: Float[Tensor, "s n"], again: bool) -> Float[Tensor, "s m"]:
        """`J_s^T u` of every sample; `again` if this is not the last pass.

        Raises:
            ValueError: if torch cannot differentiate an operation.
        """
        row = None
        if self.outputs.requires_grad:
            try:
                (row,) = torch.autograd.grad(
                    self.outputs, self.x, u.to(self.outputs), retain_graph=again, allow_unused=True
                )
            except NotImplementedError as error:
                raise ValueError(f"f cannot be differentiated: {error}") from None
        self.reached |= row is not None
        return torch.zeros_like(self.x).flatten(1) if row is None else row.flatten(1)

    def require_path(self) -> None:
        """Raise ValueError if no derivative led from the outputs to the inputs in all passes."""
        if not self.reached:
            raise ValueError("the outputs of f do not depend on its inputs by operations that torch can differentiate")


def hessians_of(f: BatchMap, x: Float[Tensor, "S m"], n: int) -> Float[Tensor, "S n m m"]:
    """The second derivatives of all outputs: the Jacobians of the gradients, an output at a time, in chunks."""
    step = at_once(n * x.shape[1] ** 2)
    starts = range(0, len(x), step)
    return gathered(((start, chunk_hessians(f, x[start : start + step], n)) for start in starts), len(x))


def chunk_hessians(f: BatchMap, x: Float[Tensor, "s m"], n: int) -> Float[Tensor, "s n m m"]:
    """Two backward passes of the whole chunk for each second derivative."""
    m = x.shape[1]
    hessians = x.new_zeros(len(x), n, m, m)
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        outputs = flat_outputs(f, x)
        for i in range(n):
            slopes = torch.autograd.grad(
                outputs[:, i].sum(), x, create_graph=True, retain_graph=True, materialize_grads=True
            )[0]
            if not slopes.requires_grad:
                continue  # linear in every input
            for j in range(m):
                rows = torch.autograd.grad(slopes[:, j].sum(), x, retain_graph=True, materialize_grads=True)[0]
                hessians[:, i, j] = rows
    require_finite("the Hessians", hessians)
    return hessians


def forward_jacobians(
    f: BatchMap, x: Float[Tensor, "s *m"], n: int, into: Float[Tensor, "s n m"] | None = None
) -> Float[Tensor, "s n m"]:
    """One forward pass with tangents for each input; reverse mode where an operation has no forward derivative."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            first = slope_along(f, x.detach().clone(), 0)
            jacobians = first.new_empty(*first.shape, x[0].numel()) if into is None else into
            jacobians[:, :, 0] = first
            for j in range(1, x[0].numel()):
                jacobians[:, :, j] = slope_along(f, x.detach().clone(), j)
    except (NotImplementedError, RuntimeError):
        return reverse_jacobians(f, x, n, into)
    return jacobians


def slope_along(f: BatchMap, x: Float[Tensor, "s *m"], j: int) -> Float[Tensor, "s n"]:
    """The derivative of all outputs in input j; RuntimeError if the outputs carry none."""
    tangent = torch.zeros_like(x)
    tangent.view(len(x), -1)[:, j] = 1
    with forward_ad.dual_level():
        slope = forward_ad.unpack_dual(flat_outputs(f, forward_ad.make_dual(x, tangent))).tangent
    if slope is None:
        raise RuntimeError("the outputs carry no tangent")
    return slope


def sample_block(
    f: BatchMap,
    inputs: Float[Tensor, "S *m"],
    outputs: Float[Tensor, "S *n"],
    *,
    coordinates: Coordinates | None = None,
    split: Split | None = None,
    lost_energy: float = LOST_ENERGY,
    most_memory: int = MOST_MEMORY,
    on_chunk: Callable[[int, int], None] | None = None,
) -> Samples:
    """The samples of a network's block in reduced coordinates, the Jacobians being reduced while they are made.

    The inputs are brought to the coordinates that a rule chooses and rotated to the active axes, both from the samples
    that will be fitted alone; the samples come back with those last that will not. When the Jacobians of all samples
    would be large, the active axes are found on some samples first, and all are reduced straight to them. So besides
    the Jacobians along the active axes only some are in memory at a time.

    Args:
        f: The block, as a map of a batch; of one that is `Seen` through modes what these tell is sampled.
        inputs: What arrives at it.
        outputs: What should leave it (the original network's, when earlier blocks were replaced).
        coordinates: The rule of reduction; `Sensitivity()` when left out.
        split: Which samples will be fitted and which not; some 15 % are held out when left out.
        lost_energy: The share of the Jacobians' energy that may be dropped.
        most_memory: Bytes that sampling, and solving on the samples, may take at the peak, beside what is passed here.
        on_chunk: Told how many samples of how many are done.

    Raises:
        ValueError: if something is not finite, or not even the active directions would fit: the message has the number
            of samples that would. Where one active direction would not, it is raised before any work.
    """
    require_share("lost_energy", lost_energy, below=1)
    budget = Budget(most_memory, outputs[0].numel(), seen(f, inputs[:1]).shape[1])
    budget.require(len(inputs))
    if on_chunk is not None:
        on_chunk(0, len(inputs))
    split = split or split_samples(groups_of_rows((inputs,)))
    inputs, outputs = inputs[torch.cat(split)], outputs[torch.cat(split)]
    x, y = seen(f, inputs), outputs.flatten(1)
    fitted = slice(len(split.fitted))
    require_varying(x[fitted])
    rule = coordinates or Sensitivity()
    some = some_jacobians(f, inputs[fitted], y.shape[1], most_memory) if rule.from_jacobians else None
    reduction = rule.choose(x[fitted], y[fitted], some)
    del some
    k = reduction.up.shape[1]
    large = len(x) > budget.fitting(k) or (lost_energy > 0 and 8 * len(x) * y.shape[1] * k > budget.room)
    if any_of(large):
        reduction = _piloted(f, inputs[fitted], budget, reduction, lost_energy / 2)
        lost_energy /= 2
    budget.require(len(x), reduction.up.shape[1])
    jacobians = _reduced(f, inputs, budget, reduction, on_chunk)
    aside = len(split.validation), len(split.test)
    samples = Samples(reduction.inputs(x), reduction.outputs(y), jacobians, reduction, aside=aside)
    return to_active_axes_(samples, reduction, lost_energy, fitted)[0]


def some_jacobians(
    f: BatchMap, inputs: Float[Tensor, "S *m"], n: int, most_memory: int = MOST_MEMORY
) -> Float[Tensor, "some n m"]:
    """The Jacobians of as many samples, evenly drawn, as tell what the map does with each input; bounded in memory."""
    size = n * seen(f, inputs[:1]).shape[1]
    count = max(2, min(len(inputs), MOST_TOLD, 16 * at_once(size), most_memory // (AT_WORK * size)))
    return whole_jacobians(f, evenly(inputs, count), n)


def evenly(inputs: Float[Tensor, "S *m"], count: int) -> Float[Tensor, "some *m"]:
    """At most `count` of the samples, at equal distances."""
    return inputs[:: -(-len(inputs) // count)]


def _piloted(f: BatchMap, inputs: Tensor, budget: Budget, reduction: Reduction, lost_energy: float) -> Reduction:
    """The reduction narrowed to the active axes of some samples, of which nothing but the sum of `J^T J` is kept.

    So many that their Jacobians have four rows for each direction. Less than rounding is not told by this sum.
    """
    k = reduction.up.shape[1]
    pilot = evenly(inputs, max(MOST_TOLD, -(-4 * k // budget.n)))
    gram = reduction.up.new_zeros(k, k)
    for _, jacobians in jacobian_chunks(f, pilot, budget.n, budget.together):
        rows = reduction.jacobians(jacobians).flatten(0, 1)
        gram += rows.mT @ rows
    energies, axes = by_energy(over_samples(gram))  # once: processes may have other numbers of chunks
    inner = axes[:, : needed(energies, max(lost_energy, UNRELIABLE))]
    return replace(reduction, down=reduction.down @ inner, up=reduction.up @ inner)


def _reduced(
    f: BatchMap, inputs: Tensor, budget: Budget, reduction: Reduction, on_chunk: Callable[[int, int], None] | None
) -> Float[Tensor, "S n k"]:
    """All Jacobians in reduced coordinates; only a chunk of the full ones exists at a time."""
    total = reduction.up.new_empty(len(inputs), budget.n, reduction.up.shape[1])
    for part, jacobians in jacobian_chunks(f, inputs, budget.n, budget.together):
        reduction.jacobians(jacobians, into=total[part])
        if on_chunk is not None:
            on_chunk(part.stop, len(inputs))
    return total
