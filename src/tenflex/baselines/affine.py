"""The best affine map: what a network does that needs no nodes at all."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_finite, require_floating
from tenflex.evaluate.fidelity import predict
from tenflex.nn.low_rank import make_linear
from tenflex.sums import flattened

RIDGES = torch.logspace(-12, 1, 53, dtype=torch.float64, device="cpu")
"""The ridges tried, relative to the largest eigenvalue of the inputs' covariance: four in each decade."""


def best_affine(model: nn.Module, inputs: Float[Tensor, "S *m"]) -> nn.Module:
    r"""The affine map from the inputs to the outputs of a model, by ridge-regularised least squares.

    .. math:: \min_{A, b} \|F - X A^\top - b\|_F^2 + \lambda \|A\|_F^2

    The bias is not penalised. The ridge is the one with the least generalised cross-validation, so a few inputs of many
    pixels are not fitted to the last digit.

    References:
        Golub, Heath, Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter",
        Technometrics 21, 1979, https://doi.org/10.1080/00401706.1979.10489751

    Args:
        model: The network, in eval mode, with outputs `(S, n)` or `(S,)`.
        inputs: Calibration inputs, `(S, ...)` with S at least 2, unlabelled.

    Returns:
        `nn.Sequential(nn.Flatten(), nn.Linear(m, n))` in eval mode, with the dtype of the outputs; flat at the end if
        these are `(S,)`.

    Raises:
        TypeError: if the inputs are not a floating-point tensor.
        ValueError: if there are fewer than two inputs, they are not finite, the model is in train mode, or its outputs
            are not finite or have more axes.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval()
        >>> best_affine(model, torch.randn(50, 4))
        Sequential(
          (0): Flatten(start_dim=1, end_dim=-1)
          (1): Linear(in_features=4, out_features=3, bias=True)
        )
    """
    require_floating("inputs", inputs)
    require_finite("inputs", inputs)
    outputs = predict(model, inputs)
    require_floating("the outputs of the model", outputs)
    require_finite("the outputs of the model", outputs)
    if len(inputs) < 2 or inputs.dim() < 2 or outputs.dim() > 2:
        raise ValueError(
            f"an affine map needs at least two inputs (S, ...) with numbers (S,) or outputs (S, n), got "
            f"{tuple(inputs.shape)} and {tuple(outputs.shape)}"
        )
    weight, bias = ridge_regression(inputs.flatten(1).double(), flattened(outputs).double())
    last = [nn.Flatten(0)] if outputs.dim() == 1 else []
    return nn.Sequential(nn.Flatten(), make_linear(weight, bias, outputs).requires_grad_(), *last).eval()


def ridge_regression(
    inputs: Float[Tensor, "S m"], outputs: Float[Tensor, "S n"]
) -> tuple[Float[Tensor, "n m"], Float[Tensor, " n"]]:
    """Slope and offset of the regression whose ridge has the least generalised cross-validation."""
    mean, middle = inputs.mean(0), outputs.mean(0)
    left, lengths, right = torch.linalg.svd(inputs - mean, full_matrices=False)
    along = left.mT @ (outputs - middle)
    unexplained = (outputs - middle).square().sum() - along.square().sum()
    ridge = best_ridge(lengths.square(), along.square().sum(1), unexplained.clamp_min(0), len(inputs))
    slopes = along * (lengths / (lengths.square() + ridge))[:, None]
    weight = slopes.mT @ right
    return weight, middle - weight @ mean


def best_ridge(
    energies: Float[Tensor, " k"], explained: Float[Tensor, " k"], unexplained: Float[Tensor, ""], count: int
) -> float:
    """The ridge of least generalised cross-validation, residual / (1 - degrees of freedom / S)^2.

    Args:
        energies: Squared singular values of the inputs.
        explained: What of the outputs lies along each, squared.
        unexplained: What lies along none.
        count: The number of samples S.
    """
    largest = energies[0].item() or 1.0  # inputs that are all the same have no slope, whatever the ridge
    ridges = largest * RIDGES.to(energies.device)[:, None]
    lost = ridges / (energies + ridges)
    residual = (lost.square() * explained).sum(1) + unexplained
    free = count - 1 - (1 - lost).sum(1)  # the mean takes one degree of freedom
    scores = residual / free.clamp_min(1e-9 * count).square()
    return ridges[scores.argmin()].item()
