"""Whether a network can be sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tenflex.checks import require_doubles, require_eval, require_finite, require_ordinary
from tenflex.sampling.inputs import run
from tenflex.surgery.batch import Batch, call, clone, count_samples, few, nearly_equal, take, tensors_in
from tenflex.surgery.door import require_module
from tenflex.surgery.quiet import undisturbed


def require_samplable(model: nn.Module, example: Batch) -> None:
    """Refuse networks whose outputs are not a function of each sample alone, before any work.

    Args:
        model: The network; nothing of it changes.
        example: One batch of input, samples first; of two samples or more for the last check. All numbers are looked
            at, and the network is run on the first few samples.

    Raises:
        TypeError: if the network is not a module, or the example is not made of tensors.
        ValueError: if the network fails on the example; a module is in train mode; a parameter, buffer, input or
            output is NaN or infinite; two runs on the same input differ; or what comes out for a sample depends on the
            others in its batch.
    """
    require_module(model)
    require_eval("the network", model)
    for tensor in (*model.parameters(), *model.buffers(), *tensors_in(example)):
        require_doubles(tensor.device)
    _require_finite_state(model)
    for index, tensor in enumerate(tensors_in(example)):
        require_ordinary(f"input tensor {index}", tensor)
        require_finite(f"input tensor {index}", tensor)
    example = few(example)
    with undisturbed(model):
        output = run(model, example)
        for tensor in tensors_in(output):
            require_finite("the output of the network", tensor)
        _require_repeatable(model, example, output)
        _require_apart(model, example, output)


def _require_finite_state(model: nn.Module) -> None:
    """Raise ValueError if a parameter or a buffer holds NaN or infinity, except for -inf, of which masks are made."""
    for name, parameter in model.named_parameters():
        require_finite(f"parameter {name!r}", parameter.detach())
    for name, buffer in model.named_buffers():
        require_finite(f"buffer {name!r}", buffer.masked_fill(buffer == -torch.inf, 0))


def _require_repeatable(model: nn.Module, example: Batch, output: Any) -> None:
    """Raise ValueError unless a second run gives the same bits."""
    runs = list(tensors_in(output)), list(tensors_in(call(model, clone(example))))
    if len(runs[0]) != len(runs[1]) or not all(map(torch.equal, *runs)):
        raise ValueError(
            "expected a network that gives the same output for the same input, but two runs differ: look for dropout "
            "called with training=True, or random numbers in the forward pass, and switch them off"
        )


def _require_apart(model: nn.Module, example: Batch, output: Any) -> None:
    """Raise ValueError if the first sample alone gives something else than in its batch."""
    size = count_samples(example)
    if size < 2:
        return
    try:
        alone = list(tensors_in(call(model, clone(take(example, slice(1))))))
    except ValueError as error:
        raise ValueError(
            f"expected a network that runs on any number of samples, but it does not on the first one alone: {error}"
        ) from None
    used = (*model.parameters(), *model.buffers(), *tensors_in(example))
    eps = max((torch.finfo(one.dtype).eps for one in used if one.is_floating_point()), default=0.0)
    for index, tensor in enumerate(tensors_in(output)):
        per_sample = tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == size
        if per_sample and not (index < len(alone) and nearly_equal(alone[index], tensor[:1], eps)):
            raise ValueError(
                "expected outputs that depend on their own sample alone, but the first sample gives something else "
                "without the others of its batch: pass inputs whose first dimension counts the samples, to a network "
                "without statistics over the batch; or, where inputs are so large that digits are lost, a network and "
                "inputs in double precision"
            )
