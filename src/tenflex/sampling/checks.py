"""Whether a network can be sampled, and the inputs to sample it on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tenflex.checks import require_eval, require_finite, require_ordinary, require_whole
from tenflex.surgery.batch import Batch, call, clone, count_samples, describe, each, few, nearly_equal, take, tensors_in
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
        ValueError: if a module is in train mode; a parameter, buffer, input or output is NaN or infinite; two runs on
            the same input differ; or what comes out for a sample depends on the others in its batch.
    """
    require_module(model)
    require_eval("the network", model)
    _require_finite_state(model)
    for index, tensor in enumerate(tensors_in(example)):
        require_ordinary(f"input tensor {index}", tensor)
        require_finite(f"input tensor {index}", tensor)
    example = few(example)
    with undisturbed(model):
        output = call(model, clone(example))
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
    for index, tensor in enumerate(tensors_in(output)):
        per_sample = tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == size
        if per_sample and not (index < len(alone) and nearly_equal(alone[index], tensor[:1])):
            raise ValueError(
                "expected outputs that depend on their own sample alone, but the first sample gives something else "
                "without the others of its batch: pass inputs whose first dimension counts the samples, to a network "
                "without statistics over the batch"
            )


def gather(inputs: Tensor | Mapping[str, Tensor] | Iterable[Any], samples: int, seed: int = 0) -> list[Batch]:
    """Batches that hold at most `samples` examples together.

    Args:
        inputs: A tensor whose first dimension counts the examples, or a mapping of such tensors from argument names: of
            more than `samples` examples a random subset is taken. Or an iterable of batches, such as a `DataLoader`:
            each a tensor, a tuple or list whose first element is the input and the rest labels, or a mapping; it is
            read until there are `samples` examples.
        samples: How many examples to use, at least 2.
        seed: Of the random subset.

    Returns:
        A list of tensors, or of mappings of keyword tensors.

    Raises:
        TypeError: if the inputs are not tensors.
        ValueError: if there are fewer than 2 examples, their shapes disagree, or a number is NaN or infinite.
    """
    require_whole("samples", samples, at_least=2)
    require_whole("seed", seed, at_least=0)
    if isinstance(inputs, (Tensor, Mapping)):
        batches = [_subset(_check(inputs, "the inputs"), samples, seed)]
    else:
        batches = list(_until(_read(inputs), samples))
    _require_alike(batches)
    total = sum(map(count_samples, batches))
    if total < 2:
        empty = "; a generator that was read before is empty" if isinstance(inputs, Iterator) else ""
        raise ValueError(
            f"expected at least 2 examples, got {total}: pass more inputs (a few hundred are usual){empty}"
        )
    return batches


def _subset(batch: Batch, samples: int, seed: int) -> Batch:
    """Some of the examples, drawn at random, in their order."""
    size = count_samples(batch)
    if size <= samples:
        return batch
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed), device="cpu")[:samples].sort().values
    return each(batch, lambda tensor: tensor[chosen.to(tensor.device)])


def _read(inputs: object) -> Iterator[Batch]:
    """The batches of an iterable, checked as they come."""
    if isinstance(inputs, Dataset):
        raise TypeError(
            f"expected batches, got the dataset {type(inputs).__name__}, which gives single examples: "
            f"pass torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"expected a tensor or an iterable of batches of tensors, got {describe(inputs)}: load the inputs first, "
            f"and convert arrays with torch.from_numpy"
        )
    for index, item in enumerate(inputs):
        first = item[0] if isinstance(item, (tuple, list)) and item else item
        yield _check(first, f"batch {index}")


def _check(batch: Any, name: str) -> Batch:
    """A batch whose tensors are finite and agree on the number of examples."""
    tensors = list(batch.values()) if isinstance(batch, Mapping) else [batch]
    if not tensors or not all(isinstance(one, Tensor) for one in tensors):
        raise TypeError(
            f"expected {name} to be a tensor, a tuple (tensor, labels, ...) or a mapping of tensors, got "
            f"{describe(batch)}: convert arrays with torch.from_numpy"
        )
    for one in tensors:
        require_ordinary(name, one)
    sizes = {len(one) if one.ndim else None for one in tensors}
    if len(sizes) > 1 or None in sizes:
        raise ValueError(
            f"expected tensors whose first dimension counts the examples in {name}, got {describe(batch)}: "
            f"add that dimension, or leave out what is not per example"
        )
    for one in tensors:
        require_finite(name, one)
    return dict(batch) if isinstance(batch, Mapping) else batch


def _until(batches: Iterator[Batch], samples: int) -> Iterator[Batch]:
    """Batches until there are enough examples; the last one is cut."""
    left = samples
    while left > 0 and (batch := next(batches, None)) is not None:
        yield take(batch, slice(left))
        left -= count_samples(batch)


def _require_alike(batches: list[Batch]) -> None:
    """Raise ValueError if shapes or dtypes differ between batches."""
    forms = [_form(batch) for batch in batches]
    for index, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"expected examples of one shape and dtype, got {describe(batches[0])} in batch 0 and "
                f"{describe(batches[index])} in batch {index}: bring them to one shape (if the second holds labels, "
                f"leave it out)"
            )


def _form(batch: Batch) -> Any:
    named = batch.items() if isinstance(batch, Mapping) else [("", batch)]
    return {name: (tuple(one.shape[1:]), one.dtype) for name, one in named if isinstance(one, Tensor)}
