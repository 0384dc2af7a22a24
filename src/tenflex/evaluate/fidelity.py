"""How close a model stays to the one it replaces: errors, agreement, accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.checks import require_eval, require_finite, require_floating, require_whole
from tenflex.sampling.inputs import chunks as parts_of
from tenflex.sampling.inputs import from_numpy, read, run
from tenflex.scratch import Rows
from tenflex.sums import chunks
from tenflex.surgery.batch import Batch, count_samples, describe, tensors_in
from tenflex.surgery.quiet import undisturbed
from tenflex.units.mask import find_mask

MOST = 200_000
"""Examples that are judged of iterables that do not know their length, such as a generator without end."""


@dataclass(frozen=True)
class Fidelity:
    """What a model preserves of another one, on the same inputs; `str()` says it in words.

    Args:
        relative_error: `||o - r||_F / ||r - mean(r)||_F`; 0 is the same outputs, 1 is no better than their mean. Where
            there are several outputs, of all of them together.
        agreement: The share of samples with the largest output at the same place, in [0, 1]; None if outputs are not
            scores of classes, `(S, classes)` with at least two. Of several outputs the first is looked at.
        accuracy: The share of samples with the largest output at the label, in [0, 1]; None without labels.
        balanced_agreement: The agreement among the samples of each class that the original decides for, averaged over
            these classes: the agreement says little where nearly all samples are of one class. None as for agreement.
        tail_error: The relative error on the tenth of the samples with the largest outputs of the original and the
            tenth with the smallest; None unless there is one output for each sample, a score.
        each: The relative error of each output, where there are several: in all of them together large ones drown the
            small. None of one output.

    Example:
        >>> from tenflex.evaluate.fidelity import Fidelity
        >>> print(Fidelity(relative_error=0.1, agreement=0.97, accuracy=None))
        relative output error: 0.100
        same decision as the original: 97.00 %
    """

    relative_error: float
    agreement: float | None
    accuracy: float | None
    balanced_agreement: float | None = None
    tail_error: float | None = None
    each: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.each is not None:
            object.__setattr__(self, "each", tuple(self.each))  # a list, where it comes from a file

    def rows(self) -> dict[str, str]:
        """What there is, by what it is called, as texts."""
        shares = {
            "same decision as the original": self.agreement,
            "same decision, averaged over its classes": self.balanced_agreement,
            "accuracy": self.accuracy,
        }
        errors = {
            "relative output error": self.relative_error,
            "error on its lowest and highest tenth": self.tail_error,
        }
        found = {name: f"{one:.3f}" for name, one in errors.items() if one is not None}
        if self.each is not None:
            found["error of each output"] = ", ".join(f"{one:.3f}" for one in self.each)
        return found | {name: f"{100 * one:.2f} %" for name, one in shares.items() if one is not None}

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.rows().items())


def relative_error(outputs: Float[Tensor, "S *n"], reference: Float[Tensor, "S *n"]) -> float:
    r"""The error of outputs relative to how much the reference varies.

    .. math:: \frac{\|O - R\|_F}{\|R - \bar R\|_F}

    with the mean over samples. It is the square root of the second term of the objective. Outputs that are not finite
    have an infinite error.

    Args:
        outputs: `(S, ...)`.
        reference: As many, `(S, ...)`.

    Raises:
        TypeError: if one of the two is not a floating-point tensor.
        ValueError: if shapes differ, or the reference is not finite or the same for all samples.

    Example:
        >>> relative_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [4.0]]))
        0.5
    """
    return error_of_all([outputs], [reference])


def error_of_all(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The same of several outputs, whose squared errors and spreads are added up.

    They need not have as many rows: of some that are no padding may be compared alone.
    """
    norms = [_norms(*pair) for pair in zip(outputs, reference, strict=True)]
    error, spread = (together(each) for each in zip(*norms, strict=True))
    if spread == 0:
        raise ValueError(
            f"the reference outputs of all {len(reference[0])} samples are the same, so there is no spread to compare "
            "an error with: pass more, and different, inputs"
        )
    error /= spread
    return error if error < float("inf") else float("inf")  # NaN compares false


def _norms(outputs: Tensor, reference: Tensor) -> tuple[float, float]:
    """The norms of the error of an output, and of how much it varies."""
    require_alike(outputs, reference)
    require_finite("reference outputs", reference)
    parts = list(chunks(len(reference), 4 * max(reference[:1].numel(), 1)))
    mean = sum(reference[part].double().sum(0) for part in parts) / len(reference)
    spread = together((reference[part].double() - mean).norm() for part in parts)
    error = together((outputs[part].double() - reference[part].double()).norm() for part in parts)
    return error, spread


def together(norms: Iterable[float | Float[Tensor, ""]]) -> float:
    """The norm of what has parts with these norms."""
    return torch.stack([torch.as_tensor(one, dtype=torch.float64, device="cpu") for one in norms]).norm().item()


def agreement(outputs: Float[Tensor, "*S classes"], reference: Float[Tensor, "*S classes"]) -> float:
    """The share of samples whose largest output is at the same place, in [0, 1].

    Raises:
        TypeError: if one of the two is not a floating-point tensor.
        ValueError: if shapes differ, there are no samples, or there are fewer than two classes.

    Example:
        >>> agreement(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        0.5
    """
    require_alike(outputs, reference)
    if outputs.dim() < 1 or outputs.shape[-1] < 2 or outputs.numel() == 0:
        raise ValueError(f"agreement needs samples with at least two classes, last, got shape {shape(outputs)}")
    return (outputs.argmax(-1) == reference.argmax(-1)).double().mean().item()


def balanced_agreement(outputs: Float[Tensor, "*S classes"], reference: Float[Tensor, "*S classes"]) -> float:
    """The agreement among the samples of each class that the reference decides for, averaged over these, in [0, 1].

    Raises:
        TypeError: if one of the two is not a floating-point tensor.
        ValueError: if shapes differ, there are no samples, or there are fewer than two classes.

    Example:
        >>> always_first = torch.tensor([[1.0, 0.0]]).expand(4, 2)
        >>> once_second = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> agreement(always_first, once_second), balanced_agreement(always_first, once_second)
        (0.75, 0.5)
    """
    agreement(outputs, reference)  # which checks them
    decided = reference.argmax(-1).flatten()
    same = (outputs.argmax(-1).flatten() == decided).double()
    counts = torch.bincount(decided)
    shares = torch.bincount(decided, weights=same)[counts > 0] / counts[counts > 0]
    return shares.mean().item()


def tail_error(outputs: Float[Tensor, "S *one"], reference: Float[Tensor, "S *one"]) -> float:
    """The relative error on the tenth of the samples with the largest reference and the tenth with the smallest.

    1 is no better there than the mean over all samples. Outputs that are not finite have an infinite error.

    Raises:
        TypeError: if one of the two is not a floating-point tensor.
        ValueError: if shapes differ, there is not one output for each sample, or the reference is not finite or the
            same for all samples.

    Example:
        >>> from tenflex.evaluate.fidelity import tail_error
        >>> scores = torch.arange(20.0)
        >>> tail_error(scores, scores)
        0.0
    """
    relative_error(outputs, reference)  # which checks them
    if reference.numel() != len(reference):
        raise ValueError(f"the tails of scores need one output for each sample, got shape {shape(reference)}")
    scores, expected = outputs.double().flatten(), reference.double().flatten()
    order, tenth = expected.argsort(), -(-len(expected) // 10)
    tails = torch.cat([order[:tenth], order[-tenth:]])
    error = ((scores - expected)[tails].norm() / (expected - expected.mean())[tails].norm()).item()
    return error if error < math.inf else math.inf  # NaN compares false


def fidelity(
    model: nn.Module,
    reference: nn.Module | Float[Tensor, "S *n"],
    inputs: Any,
    labels: Int[Tensor, " S"] | None = None,
    chunk: int = 256,
    mask: str | None = None,
) -> Fidelity:
    """Compare a model with the one it replaces.

    Args:
        model: The model to judge, in eval mode.
        reference: The original model, in eval mode, or its outputs for these inputs.
        inputs: Whatever `tenflex.compress` takes: a batch or an iterable of batches, which is read once. All of it is
            used, of an iterable that does not know its length the first 200,000 examples.
        labels: The classes, whole numbers `(S,)`, for the accuracy.
        chunk: How many samples run at a time.
        mask: The argument of the networks that tells which positions of a sequence are padding; None for
            `attention_mask`, where there is one. What two networks give there is not compared.

    Raises:
        TypeError: if inputs, labels or outputs are no tensors of the right kind.
        ValueError: if there are no inputs, a model is in train mode, or outputs, reference and labels do not fit.

    Example:
        >>> from tenflex.evaluate.fidelity import fidelity
        >>> fidelity(model, model, inputs).relative_error
        0.0
    """
    labels = None if labels is None else class_numbers(labels)
    if isinstance(reference, nn.Module):
        networks = reference, model
        expected, outputs = outputs_of(networks, read(reference, inputs, MOST), chunk, Unpadded(mask))
        return judged(outputs, expected, labels)
    require_floating("reference outputs", reference)
    return judged([predict(model, inputs, chunk)], [reference], labels)


def judged(outputs: Sequence[Tensor], reference: Sequence[Tensor], labels: Tensor | None = None) -> Fidelity:
    """The same from what `outputs_of` gives."""
    ours, theirs = outputs[0], reference[0]
    correct = None if labels is None else accuracy(ours, labels)
    each = tuple(map(_error_of, outputs, reference)) if len(reference) > 1 else None
    if len({*map(len, (*outputs, *reference))}) == 1:
        outputs, reference = [side_by_side(outputs)], [side_by_side(reference)]
    error = error_of_all(outputs, reference)
    classes = ours.dim() == 2 and ours.shape[1] >= 2
    score = ours.numel() == len(ours) and shape(ours) == shape(theirs) and bool((theirs != theirs[0]).any())
    return Fidelity(
        relative_error=error,
        agreement=agreement(ours, theirs) if classes else None,
        accuracy=correct,
        balanced_agreement=balanced_agreement(ours, theirs) if classes else None,
        tail_error=tail_error(ours, theirs) if score else None,
        each=each,
    )


def _error_of(ours: Tensor, theirs: Tensor) -> float:
    """The relative error of one of several outputs; of one that never changes, 0 or infinity."""
    if bool((theirs == theirs[:1]).all()):
        return 0.0 if torch.equal(ours, theirs) else math.inf
    return relative_error(ours, theirs)


def accuracy(outputs: Float[Tensor, "S classes"], labels: Int[Tensor, " S"]) -> float:
    """The share of samples whose largest output is at the label, in [0, 1].

    Raises:
        TypeError: if labels are not a tensor of whole numbers.
        ValueError: if outputs are not `(S, classes)`, or labels are not S numbers of classes.

    Example:
        >>> from tenflex.evaluate.fidelity import accuracy
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"accuracy needs outputs (S, classes) with at least two classes, got {shape(outputs)}: leave labels out; "
            f"of one score z, as of two classes, pass a network that gives torch.cat([0 * z, z], -1)"
        )
    require_labels(labels, *outputs.shape)
    return (outputs.argmax(-1) == labels.to(outputs.device)).double().mean().item()


def predict(model: nn.Module, inputs: Any, chunk: int = 256) -> Tensor:
    """The outputs of a model, computed `chunk` samples at a time without gradients; several of them side by side.

    Args:
        model: The model, in eval mode.
        inputs: As for `fidelity`.
        chunk: How many samples run at a time.

    Raises:
        TypeError: if inputs are no tensors, or no output is a floating-point tensor.
        ValueError: if there are no inputs, the model is in train mode, or it does not give one output for each sample.

    Example:
        >>> from tenflex.evaluate.fidelity import predict
        >>> predict(model, inputs).shape
        torch.Size([100, 3])
    """
    return side_by_side(outputs_of((model,), read(model, inputs, MOST), chunk)[0])


@dataclass(frozen=True)
class Unpadded:
    """Which positions of outputs are compared: those that are no padding.

    Args:
        name: The argument of the networks that tells; None for the usual one, where there is one.
    """

    name: str | None

    def of(self, network: nn.Module, part: Batch, rows: dict[int, Tensor]) -> dict[int, Tensor]:
        """Outputs that have the positions of the mask become rows of positions, the others stay as they are."""
        mask = find_mask(network, part, self.name)
        if mask is None:
            return rows
        there = {place: one.ndim > 2 and one.shape[:2] == mask.shape for place, one in rows.items()}
        return {place: one[mask.to(one.device)][:, None] if there[place] else one for place, one in rows.items()}


def outputs_of(
    networks: Sequence[nn.Module], batches: Iterable[Batch], chunk: int = 256, unpadded: Unpadded | None = None
) -> list[list[Tensor]]:
    """For each network all its floating-point outputs that have a row for each sample, over all batches.

    Of a mapping or an object with `logits`, as Hugging Face's networks return it, these alone. Where positions are
    left out as padding, those of sequences have a row for each position that is left.

    Raises:
        TypeError: if a network returns no floating-point tensor.
        ValueError: if one is in train mode, or has no output with a row for each sample.
    """
    require_whole("chunk", chunk, at_least=1)
    for network in networks:
        require_eval("model", network)
    kept = [Outputs() for _ in networks]
    for part in parts_of(batches, chunk):
        for network, outputs in zip(networks, kept, strict=True):
            with undisturbed(network):
                found = floating_rows(run(network, part), count_samples(part))
            outputs.add(found if unpadded is None else unpadded.of(network, part, found))
    return [one.joined() for one in kept]


def answers_in(output: Any) -> list[Tensor]:
    """The floating-point tensors in what a network returns; its logits alone, where it has such."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    return [one for one in tensors_in(output if logits is None else logits) if one.is_floating_point()]


def floating_rows(output: Any, count: int) -> dict[int, Tensor]:
    """The floating-point tensors with a row for each sample, by their places among all that are floating-point."""
    found = answers_in(output)
    if not found:
        raise TypeError(f"the model must return floating-point tensors, got {describe(output)}: leave out the decision")
    rows = {place: one for place, one in enumerate(found) if one.ndim and len(one) == count}
    if not rows:
        raise ValueError(
            f"the model must return one output for each of {count} samples, got shape "
            f"{' and '.join(str(shape(one)) for one in found)}: samples come first"
        )
    return rows


class Outputs:
    """The outputs that every part has, by their places; in files where they are large."""

    def __init__(self) -> None:
        self.rows: dict[int, Rows] | None = None

    def add(self, part: dict[int, Tensor]) -> None:
        """Those of the next samples."""
        if self.rows is None:
            self.rows = {place: Rows() for place in part}
        self.rows = {place: rows for place, rows in self.rows.items() if place in part}
        for place, rows in self.rows.items():
            rows.add(part[place])

    def joined(self) -> list[Tensor]:
        """Those of all samples.

        Raises:
            ValueError: if there are none.
        """
        if not self.rows:
            raise ValueError(
                "the model must return one output for each sample, but none has a row for each in all batches"
            )
        return [rows.joined() for rows in self.rows.values()]


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is; several as one, `(S, n)`, with all numbers of a sample in a row."""
    return tensors[0] if len(tensors) == 1 else torch.cat([one.reshape(len(one), -1) for one in tensors], 1)


def require_alike(outputs: Tensor, reference: Tensor) -> None:
    """Raise unless both are tensors of real floating-point numbers of one shape."""
    require_floating("outputs", outputs)
    require_floating("reference outputs", reference)
    if shape(outputs) != shape(reference):
        raise ValueError(
            f"outputs and reference outputs must have the same shape, got {shape(outputs)} and {shape(reference)}"
        )


def class_numbers(labels: object) -> Tensor:
    """Labels as a tensor, if they are whole numbers."""
    if isinstance(labels, np.ndarray):
        labels = from_numpy(labels, "labels")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor of whole numbers, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be whole numbers, the classes, got {labels.dtype}: convert with .long()")
    return labels


def require_labels(labels: object, count: int, classes: int) -> None:
    """Raise unless labels are `count` whole numbers below `classes`."""
    labels = class_numbers(labels)
    if shape(labels) != (count,):
        raise ValueError(f"labels must be one class for each of {count} samples, got shape {shape(labels)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, one for each output, got {low} to {high}")


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as a plain tuple, as messages show it."""
    return tuple(tensor.shape)
