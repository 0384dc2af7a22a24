"""How the rest of a network uses the outputs of a block: the metric in which their errors count."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases.base import positive
from tenflex.coordinates.metric import OutputMetric
from tenflex.reduction import matrix_of
from tenflex.samples import Samples
from tenflex.sampling.capture import together
from tenflex.sampling.inputs import chunks
from tenflex.sampling.memory import MOST_MEMORY
from tenflex.sums import flattened, gram_matrix
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch, call, clone, count_samples, take, tensors_in
from tenflex.surgery.paths import get_module
from tenflex.surgery.quiet import undisturbed

DRAWS = 8
"""Random combinations of the network's outputs whose gradients are taken, for every example."""

RowsOf = Callable[[Tensor], Tensor]

EXAMPLES, EACH = 256, 64
"""So many examples tell the metric; fewer where their positions give so many gradients for each output."""

AT_ONCE, SHARE, FEW = 32, 4, 2
"""Examples whose gradients are taken at once; fewer where they would take more than a fourth of the memory, as a few
tell."""


def metric_root(
    model: nn.Module,
    cut: Cut,
    batches: list[Batch],
    metric: OutputMetric,
    rows: RowsOf,
    seed: int = 0,
    most_memory: int = MOST_MEMORY,
    compared: Callable[[Batch, Tensor], Tensor] = lambda batch, outputs: outputs,
) -> Float[Tensor, "n n"] | None:
    """The symmetric root of the matrix that measures errors of a block's outputs; the mean of its diagonal is 1.

    None where all count alike exactly: what leaves the block is what leaves the network.

    Args:
        model: The original network.
        cut: The block.
        batches: Inputs of the network, of which the first are used.
        metric: What counts.
        rows: Divides what leaves the block into its samples, such as the positions of sequences.
        seed: Of the draws.
        most_memory: What may be taken, in bytes; a share of it goes into what passes behind the block.
        compared: What counts of the network's outputs for some inputs: all, but what stands at padding.

    Raises:
        ValueError: if no gradient leads from the network's outputs back to the block's.
    """
    last, each = behind(model, cut, take(batches[0], slice(FEW)))
    if last and metric.alike:
        return None
    at_once = max(1, min(AT_ONCE, int(most_memory / SHARE / max(1.0, each))))
    generator = torch.Generator().manual_seed(seed)
    total: Any = 0.0
    left, found, enough = EXAMPLES, 0, DRAWS * EXAMPLES
    for part in chunks(batches, at_once):
        if left <= 0 or found >= enough:
            break
        slopes = _gradients(model, cut, part, (metric, compared), generator)
        gradients = flattened(rows(slopes.flatten(0, 1))).double()
        total = total + gram_matrix(gradients)
        left, found, enough = left - at_once, found + len(gradients), max(enough, EACH * gradients.shape[1])
    M = total / positive(total.diagonal().mean())
    if not bool(M.any()):
        raise ValueError(f"nothing that leaves block {cut.name!r} changes the network's outputs: leave metric out")
    eye = torch.eye(len(M), dtype=M.dtype, device=M.device)
    return symmetric_root((M + metric.ridge * eye) / (1 + metric.ridge))


def symmetric_root(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The root of a positive semidefinite matrix that is one itself."""
    values, axes = torch.linalg.eigh(matrix)
    return (axes * values.clamp(min=0).sqrt()) @ axes.mT


def behind(model: nn.Module, cut: Cut, few: Batch) -> tuple[bool, float]:
    """Whether what leaves a block is what leaves the network, and the bytes that an example takes behind the block.

    Args:
        model: The network.
        cut: The block.
        few: A few inputs.
    """
    own = {storage.data_ptr() for one in (*model.parameters(), *model.buffers()) for storage in storages(one)}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held.update({one.data_ptr(): one.nbytes() for one in storages(tensor) if one.data_ptr() not in own})
        return tensor

    counting = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with undisturbed(model), torch.enable_grad(), counting:
        leaves, outputs = _passed(model, cut, few)
    same = len(leaves) == 1 and leaves[0].shape == outputs.shape and torch.equal(leaves[0], outputs)
    return same, (sum(held.values()) + DRAWS * leaves[0].nbytes) / count_samples(few)


def storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """What holds the numbers of a tensor; empty for those of other layouts, such as sparse ones."""
    return [tensor.untyped_storage()] if tensor.layout == torch.strided else []


def _gradients(
    model: nn.Module,
    cut: Cut,
    part: Batch,
    counted: tuple[OutputMetric, Callable[[Batch, Tensor], Tensor]],
    generator: torch.Generator,
) -> Float[Tensor, "draws S *n"]:
    """The gradients of random scores in what leaves a block."""
    metric, compared = counted
    with undisturbed(model), torch.enable_grad():
        leaves, outputs = _passed(model, cut, part)
        outputs = compared(part, outputs)
        scores = (metric.score(outputs, generator) for _ in range(DRAWS))
        slopes = (
            torch.autograd.grad(one, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for one in scores
        )
        first = ([one.movedim(cut.axis, 0) for one in each] for each in slopes)  # examples
        return torch.stack([one[0] if len(one) == 1 else together(one) for one in first])


def _passed(model: nn.Module, cut: Cut, part: Batch) -> tuple[list[Tensor], Tensor]:
    """What leaves a block in each of its calls, cut off from what arrives, and the network's outputs made of it.

    Raises:
        ValueError: if no gradient leads from the network's outputs back to the block's.
    """
    leaves: list[Tensor] = []

    def cut_off(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if leaves:  # a later call, through which gradients lead to what left the earlier ones
            leaves.append(torch.zeros_like(output, requires_grad=True))
            return output + leaves[-1]
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()  # what follows may change it in place

    hook = get_module(model, cut.last).register_forward_hook(cut_off)
    try:
        outputs = next(tensors_in(call(model, clone(part))))
    finally:
        hook.remove()
    if len(leaves) != cut.calls or not outputs.requires_grad:
        raise ValueError(f"no gradient leads from the network's outputs to block {cut.name!r}: leave metric out")
    return leaves, outputs


def are_followed(model: nn.Module, cuts: Iterable[Cut], part: Batch, metric: OutputMetric) -> bool:
    """Whether something of what leaves each of some blocks changes the network's outputs, as gradients say.

    Args:
        model: The network.
        cuts: The blocks.
        part: A few inputs.
        metric: What counts of the outputs.
    """
    left: list[list[Tensor]] = []

    def keep(calls: list[Tensor], module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        calls.append(output if output.requires_grad else output.detach().clone().requires_grad_())
        return calls[-1].clone()

    with undisturbed(model), torch.enable_grad(), ExitStack() as hooks:
        for cut in cuts:
            left.append([])
            hook = get_module(model, cut.last).register_forward_hook(partial(keep, left[-1]))
            hooks.callback(hook.remove)
        outputs = list(tensors_in(call(model, clone(part))))
        if len(outputs) != 1 or not outputs[0].requires_grad or not all(left):
            return False
        score = metric.score(outputs[0], torch.Generator().manual_seed(0))
        ends = [one for calls in left for one in calls]
        slopes = torch.autograd.grad(score, ends, allow_unused=True, materialize_grads=True)
        changing = {id(one) for one, slope in zip(ends, slopes, strict=True) if bool(slope.any())}
        return all(any(id(one) in changing for one in calls) for calls in left)


def turned(outputs: Float[Tensor, "S *n"], root: Float[Tensor, "n *n"]) -> Float[Tensor, "S n"]:
    """Outputs of which errors count the same in all directions; the root may be its diagonal."""
    flat, root = outputs.flatten(1), root.to(outputs)
    return flat * root if root.ndim == 1 else flat @ root


def in_metric(f: Callable[[Tensor], Tensor], root: Float[Tensor, "n *n"]) -> Callable[[Tensor], Tensor]:
    """A batch map whose outputs are turned so that their errors count the same in all directions."""
    return lambda x: turned(f(x), root)


def out_of_metric(samples: Samples, root: Float[Tensor, "n *n"]) -> Samples:
    """Samples of a map that `in_metric` turned, with a reduction that leads back to its own outputs."""
    one = samples.reduction
    if one is None:
        raise ValueError("expected samples with a reduction")
    root = matrix_of(root.to(one.output_down))
    back = torch.linalg.inv(root)
    reduction = replace(
        one,
        output_mean=one.output_mean @ back,
        output_down=root @ matrix_of(one.output_down),
        output_up=back.mT @ matrix_of(one.output_up),
    )
    return replace(samples, reduction=reduction)
