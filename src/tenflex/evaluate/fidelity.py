"""How close a model stays to the one it replaces: relative output error, agreement, accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.checks import require_eval, require_finite, require_floating, require_ordinary, require_whole
from tenflex.surgery.quiet import kept


@dataclass(frozen=True)
class Fidelity:
    """What a model preserves of another one, on the same inputs.

    Args:
        relative_error: `||o - r||_F / ||r - mean(r)||_F`; 0 is the same outputs, 1 is no better than their mean.
        agreement: The share of samples with the largest output at the same place, in [0, 1]; None if outputs are not
            scores of classes, `(S, classes)` with at least two.
        accuracy: The share of samples with the largest output at the label, in [0, 1]; None without labels.
    """

    relative_error: float
    agreement: float | None
    accuracy: float | None


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
    require_alike(outputs, reference)
    require_finite("reference outputs", reference)
    expected = reference.double()
    spread = (expected - expected.mean(0)).norm().item()
    if spread == 0:
        raise ValueError(
            f"the reference outputs of all {len(reference)} samples are the same, so there is no spread to compare an "
            "error with: pass more, and different, inputs"
        )
    error = (outputs.double() - expected).norm().item() / spread
    return error if error < float("inf") else float("inf")  # NaN compares false


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


def fidelity(
    model: nn.Module,
    reference: nn.Module | Float[Tensor, "S *n"],
    inputs: Tensor,
    labels: Int[Tensor, " S"] | None = None,
    chunk: int = 256,
) -> Fidelity:
    """Compare a model with the one it replaces.

    Args:
        model: The model to judge, in eval mode.
        reference: The original model, in eval mode, or its outputs for these inputs.
        inputs: `(S, ...)`.
        labels: The classes, whole numbers `(S,)`, for the accuracy.
        chunk: How many samples run at a time.

    Raises:
        TypeError: if inputs, labels or outputs are no tensors of the right kind.
        ValueError: if there are no inputs, a model is in train mode, or outputs, reference and labels do not fit.
    """
    outputs = predict(model, inputs, chunk)
    correct = None if labels is None else accuracy(outputs, labels)
    expected = predict(reference, inputs, chunk) if isinstance(reference, nn.Module) else reference
    error = relative_error(outputs, expected)
    scores = outputs.dim() == 2 and outputs.shape[1] >= 2
    return Fidelity(
        relative_error=error,
        agreement=agreement(outputs, expected) if scores else None,
        accuracy=correct,
    )


def accuracy(outputs: Float[Tensor, "S classes"], labels: Int[Tensor, " S"]) -> float:
    """The share of samples whose largest output is at the label, in [0, 1].

    Raises:
        TypeError: if labels are not a tensor of whole numbers.
        ValueError: if outputs are not `(S, classes)`, or labels are not S numbers of classes.
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise ValueError(
            f"accuracy needs outputs (S, classes) with at least two classes, got {shape(outputs)}: leave labels out"
        )
    require_labels(labels, *outputs.shape)
    return (outputs.argmax(-1) == labels.to(outputs.device)).double().mean().item()


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, chunk: int = 256) -> Tensor:
    """The outputs of a model, computed `chunk` samples at a time without gradients.

    Raises:
        TypeError: if inputs or outputs are not one tensor.
        ValueError: if there are no inputs, the model is in train mode, or it does not give one output for each sample.
    """
    require_whole("chunk", chunk, at_least=1)
    require_eval("model", model)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor, samples first, got {type(inputs).__name__}")
    require_ordinary("inputs", inputs)
    if inputs.dim() == 0 or len(inputs) == 0:
        raise ValueError(f"inputs must hold at least one sample, samples first, got shape {shape(inputs)}")
    with kept(model):
        return torch.cat([one_output_each(model(part.clone()), len(part)) for part in inputs.split(chunk)])


def one_output_each(outputs: object, count: int) -> Tensor:
    """What a model returned, if it is one tensor with a row for each sample."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"the model must return one torch.Tensor, got {type(outputs).__name__}: wrap it in a module that picks one"
        )
    if outputs.dim() == 0 or len(outputs) != count:
        raise ValueError(f"the model must return one output for each of {count} samples, got shape {shape(outputs)}")
    return outputs


def require_alike(outputs: Tensor, reference: Tensor) -> None:
    """Raise unless both are tensors of real floating-point numbers of one shape."""
    require_floating("outputs", outputs)
    require_floating("reference outputs", reference)
    if shape(outputs) != shape(reference):
        raise ValueError(
            f"outputs and reference outputs must have the same shape, got {shape(outputs)} and {shape(reference)}"
        )


def require_labels(labels: object, count: int, classes: int) -> None:
    """Raise unless labels are `count` whole numbers below `classes`."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor of whole numbers, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be whole numbers, the classes, got {labels.dtype}: convert with .long()")
    if shape(labels) != (count,):
        raise ValueError(f"labels must be one class for each of {count} samples, got shape {shape(labels)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be from 0 to {classes - 1}, one for each output, got {low} to {high}")


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as a plain tuple, as messages show it."""
    return tuple(tensor.shape)
