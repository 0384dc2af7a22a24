"""Data-aware SVD with as much shrinkage of the covariance as held-out inputs ask for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tenflex.baselines.chen2021 import RIDGE, data_aware_svd
from tenflex.evaluate.fidelity import predict, relative_error

SHRINKAGES = (RIDGE, 0.01, 0.03, 0.1, 0.3, 1.0)
"""What is tried."""

EVERY = 5
"""One input of so many is held out to choose."""


def shrunk_svd(model: nn.Module, inputs: Tensor, parameters: int, *, layers: Sequence[str] | None = None) -> nn.Module:
    r"""Data-aware SVD as if inputs varied a little more in every direction, :math:`\Sigma + \lambda \bar\sigma^2 I`.

    From few inputs the covariance is that of the inputs at hand, and says nothing of what others meet. The shrinkage is
    the one with the least error of the model's outputs on a fifth of the inputs; then all of them are used.

    References:
        Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004,
        https://doi.org/10.1016/S0047-259X(03)00096-4

    Args:
        model: As for `data_aware_svd`.
        inputs: At least five, samples first.
        parameters: As for `data_aware_svd`.
        layers: As for `data_aware_svd`.

    Returns:
        A new model in eval mode.

    Raises:
        TypeError: as `data_aware_svd`.
        ValueError: as `data_aware_svd`, or if there are fewer than five inputs.

    Example:
        >>> from tenflex.baselines import shrunk_svd
        >>> from tenflex.evaluate.cost import stored_numbers
        >>> stored_numbers(shrunk_svd(model, inputs, 120)) <= 120
        True
    """
    if len(inputs) < EVERY:
        raise ValueError(f"at least {EVERY} inputs are needed to choose the shrinkage, got {len(inputs)}")
    held_out = [place for place in range(len(inputs)) if place % EVERY == 0]
    fitted = [place for place in range(len(inputs)) if place % EVERY]
    judged, expected = inputs[held_out], predict(model, inputs[held_out])

    def loss(shrinkage: float) -> float:
        smaller = data_aware_svd(model, inputs[fitted], parameters, layers=layers, shrinkage=shrinkage)
        return relative_error(predict(smaller, judged), expected)

    return data_aware_svd(model, inputs, parameters, layers=layers, shrinkage=min(SHRINKAGES, key=loss))
