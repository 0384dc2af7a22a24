"""Outputs and Jacobians of a map at many points, in chunks, in whichever mode is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from tenflex.checks import require_eval, require_finite, require_floating, require_share
from tenflex.coordinates.active import active_axes, to_active_axes
from tenflex.coordinates.base import Coordinates
from tenflex.coordinates.sensitivity import Sensitivity
from tenflex.reduction import Reduction
from tenflex.samples import Samples
from tenflex.split import Split, groups_of_rows, split_samples
from tenflex.sums import at_once
from tenflex.surgery.batch import nearly_equal

BatchMap = Callable[[Tensor], Tensor]
"""A map of a batch: `(S, *in)` to `(S, *out)`, each sample on its own."""

MOST_MEMORY = 4 * 2**30
"""Bytes that the reduced Jacobians may take, unless told otherwise."""

MOST_TOLD = 512
"""So many samples tell the sensitivity of a map to its inputs as well as more do."""

LOST_ENERGY = 3e-4
"""The share of the Jacobians' energy that may be dropped with the least active directions of a network's block."""


def sample(f: Callable[[Tensor], Tensor] | nn.Module, points: Float[Tensor, "S m"], *, order: int = 1) -> Samples:
    r"""The outputs and Jacobians of a map :math:`f: R^m \to R^n` at S points.

    Reverse mode when n <= m, forward mode otherwise. The full Jacobians are kept, `S n m` numbers; blocks of networks,
    where that is too much, are reduced while they are sampled (`sample_block`).

    Args:
        f: Takes one point `(m,)` to `(n,)` or a number, and can be differentiated by torch; or a module, which takes a
            batch `(S, m)` to `(S, n)` as modules do.
        points: The points, `(S, m)`, floating-point.
        order: The highest derivatives to take: 1 for the Jacobians, 2 for the Hessians as well, `S n m^2` numbers.

    Raises:
        TypeError: if `points` is not a floating-point tensor, or `f` cannot be called or does not return a tensor.
        ValueError: if `order` is neither 1 nor 2; points, outputs or derivatives have a wrong shape or are not finite;
            `f` is random, a module in train mode, or made of operations that torch cannot differentiate.

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
    if isinstance(f, nn.Module):
        require_eval("f", f)
    batched = f if isinstance(f, nn.Module) else over_points(f)
    with torch.no_grad():
        outputs, again = flat_outputs(batched, points), flat_outputs(batched, points)
    require_finite("the outputs of f", outputs)
    if not nearly_equal(outputs, again):
        raise ValueError("f must give the same output for the same input, but two runs differ: take out what is random")
    jacobians = torch.cat([part for _, part in jacobian_chunks(batched, points, outputs.shape[1])])
    hessians = hessians_of(batched, points, outputs.shape[1]) if order == 2 else None
    return Samples(points.detach(), outputs, jacobians, hessians=hessians)


def over_points(f: Callable[[Tensor], Tensor]) -> BatchMap:
    """A map of single points as a map of a batch: vectorized where torch can, one point at a time where it cannot."""

    def tensor_of(point: Tensor) -> Tensor:
        output = f(point)
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


def jacobian_chunks(f: BatchMap, x: Float[Tensor, "S *m"], n: int) -> Iterator[tuple[slice, Float[Tensor, "s n m"]]]:
    """The Jacobians of a batch map, a chunk of samples at a time, checked to be finite."""
    m = x[0].numel()
    step = min(512, at_once(-(-n * m // 4)))  # more than elsewhere: they are of single precision and reduced at once
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        jacobians = forward_jacobians(f, x[part], n) if n > m else reverse_jacobians(f, x[part], n)
        require_finite(f"the Jacobians of samples {part.start} to {part.stop - 1}", jacobians)
        yield part, jacobians


def reverse_jacobians(f: BatchMap, x: Float[Tensor, "s *m"], n: int) -> Float[Tensor, "s n m"]:
    """One backward pass of the whole chunk for each output."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        outputs = flat_outputs(f, x)
        if not outputs.requires_grad:
            raise ValueError("the outputs of f do not depend on its inputs by operations that torch can differentiate")
        rows = [
            torch.autograd.grad(outputs[:, i].sum(), x, retain_graph=i < n - 1, materialize_grads=True)[0].flatten(1)
            for i in range(n)
        ]
    return torch.stack(rows, 1)


def hessians_of(f: BatchMap, x: Float[Tensor, "S m"], n: int) -> Float[Tensor, "S n m m"]:
    """The second derivatives of all outputs: the Jacobians of the gradients, an output at a time, in chunks."""
    step = at_once(n * x.shape[1] ** 2)
    return torch.cat([chunk_hessians(f, x[start : start + step], n) for start in range(0, len(x), step)])


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


def forward_jacobians(f: BatchMap, x: Float[Tensor, "s *m"], n: int) -> Float[Tensor, "s n m"]:
    """One forward pass with tangents for each input; reverse mode where an operation has no forward derivative."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            columns = [slope_along(f, x.detach().clone(), j) for j in range(x[0].numel())]
    except (NotImplementedError, RuntimeError):
        return reverse_jacobians(f, x, n)
    return torch.stack(columns, 2)


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
    would not fit in memory, the active axes are found on as many samples as fit, and the others are reduced straight to
    them.

    Args:
        f: The block, as a map of a batch.
        inputs: What arrives at it.
        outputs: What should leave it (the original network's, when earlier blocks were replaced).
        coordinates: The rule of reduction; `Sensitivity()` when left out.
        split: Which samples will be fitted and which not; some 15 % are held out when left out.
        lost_energy: The share of the Jacobians' energy that may be dropped.
        most_memory: Bytes that the reduced Jacobians may take.
        on_chunk: Told how many samples of how many are done.

    Raises:
        ValueError: if something is not finite, or not even the active directions would fit: the message has the number
            of samples that would.
    """
    require_share("lost_energy", lost_energy, below=1)
    split = split or split_samples(groups_of_rows((inputs,)))
    inputs, outputs = inputs[torch.cat(split)], outputs[torch.cat(split)]
    x, y = inputs.flatten(1), outputs.flatten(1)
    fitted = slice(len(split.fitted))
    rule = coordinates or Sensitivity()
    some = some_jacobians(f, inputs[fitted], y.shape[1]) if rule.from_jacobians else None
    reduction = rule.choose(x[fitted], y[fitted], some)
    fitting = most_memory // (8 * y.shape[1] * reduction.up.shape[1])
    if len(x) > fitting:
        reduction = _piloted(f, inputs[fitted], y, reduction, fitting, lost_energy)
        fitting = most_memory // (8 * y.shape[1] * reduction.up.shape[1])
    if len(x) > fitting:
        raise ValueError(
            f"the Jacobians of {len(x)} samples, {y.shape[1]} outputs and {reduction.up.shape[1]} active inputs take "
            f"{8 * len(x) * y.shape[1] * reduction.up.shape[1] / 2**30:.1f} GiB, more than {most_memory / 2**30:.1f}: "
            f"use at most samples={fitting}"
        )
    jacobians = _reduced(f, inputs, y.shape[1], reduction, on_chunk)
    aside = len(split.validation), len(split.test)
    samples = Samples(reduction.inputs(x), reduction.outputs(y), jacobians, reduction, aside=aside)
    return to_active_axes(samples, reduction, lost_energy, fitted)[0]


def some_jacobians(f: BatchMap, inputs: Float[Tensor, "S *m"], n: int) -> Float[Tensor, "some n m"]:
    """The Jacobians of as many samples, evenly drawn, as tell what the map does with each input; bounded in memory."""
    count = max(2, min(len(inputs), MOST_TOLD, 16 * at_once(n * inputs[0].numel())))
    some = inputs[:: -(-len(inputs) // count)]
    return torch.cat([part for _, part in jacobian_chunks(f, some, n)])


def _piloted(
    f: BatchMap, inputs: Tensor, y: Tensor, reduction: Reduction, fitting: int, lost_energy: float
) -> Reduction:
    """The reduction narrowed to the active axes of a few samples, evenly drawn."""
    count = max(fitting, 2)
    pilot = inputs[:: -(-len(inputs) // count)]
    inner, _ = active_axes(_reduced(f, pilot, y.shape[1], reduction, None), lost_energy)
    return replace(reduction, down=reduction.down @ inner, up=reduction.up @ inner)


def _reduced(
    f: BatchMap, inputs: Tensor, n: int, reduction: Reduction, on_chunk: Callable[[int, int], None] | None
) -> Float[Tensor, "S n k"]:
    """All Jacobians in reduced coordinates; only a chunk of the full ones exists at a time."""
    total = reduction.up.new_empty(len(inputs), n, reduction.up.shape[1])
    for part, jacobians in jacobian_chunks(f, inputs, n):
        total[part] = reduction.jacobians(jacobians)
        if on_chunk is not None:
            on_chunk(part.stop, len(inputs))
    return total
