"""Low-rank factorization of linear layers and convolutions for the inputs that really arrive at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.allocation import allocated_
from tenflex.baselines.linear import (
    Dense,
    Thin,
    apply_weight,
    linear_layers,
    matrix_of,
    require_budget,
    require_unshared,
    stored,
    thin,
)
from tenflex.baselines.moments import Moments, listening
from tenflex.baselines.ranks import Ladder
from tenflex.checks import require_eval, require_finite
from tenflex.evaluate.fidelity import predict
from tenflex.surgery.twin import duplicate

RIDGE = 1e-9
"""Variance given to every direction of the inputs, relative to what arrives on average: it orders directions that the
data never excite, and is too little to change the others."""


def data_aware_svd(
    model: nn.Module,
    inputs: Tensor,
    parameters: int,
    *,
    layers: Sequence[str] | None = None,
    shrinkage: float = RIDGE,
) -> nn.Module:
    r"""Replace linear layers and convolutions by two thin ones, the best for the data, within a budget.

    For a layer :math:`A x + b` whose inputs X arrive with mean :math:`\mu` and covariance :math:`\Sigma`, the map of
    rank q with the least error on these inputs,

    .. math:: \min_{\mathrm{rank} A_q \le q} \|(A - A_q)(X - \mu)\|_F, \qquad
              A_q = U_q S_q P_q^\top \Sigma^{-1/2} \quad\text{with}\quad A \Sigma^{1/2} = U S P^\top,

    is stored as two layers, :math:`m \to q` without a bias and :math:`q \to n` with one that absorbs the mean; a layer
    stays as it is where that would not be smaller. A convolution acts on patches: it becomes one to q channels,
    followed by one of single positions. Ranks start where they keep the most relative energy of all layers;
    a local search then exchanges them as long as the relative error of the model's outputs on the calibration inputs
    falls. No labels, nothing random, and every layer is fitted to the original network.

    References:
        Chen, Yu, Dhillon, Hsieh, "DRONE: Data-aware low-rank compression for large NLP models", NeurIPS 2021.
        Wang, Zheng, Wan, Zhang, "SVD-LLM: Truncation-aware singular value decomposition for large language model
        compression", 2024, https://arxiv.org/abs/2403.07378

    Args:
        model: Any module of one tensor, in eval mode; it is left as it is.
        inputs: Calibration inputs, `(S, ...)`, unlabelled.
        parameters: The most numbers that the named layers may store together, biases included.
        layers: Names of `nn.Linear` modules and of convolutions without groups; None for all of them.
        shrinkage: Variance that every direction of a layer's inputs is given besides, relative to what arrives on
            average: with few inputs, what they happen not to excite counts as well. `shrunk_svd` chooses it.

    Returns:
        A new model in eval mode.

    Raises:
        TypeError: if inputs or outputs are not one tensor, or `layers` is a single string.
        ValueError: if the model is in train mode; a name is unknown, its layer is never called or shares its numbers
            with another one; or the budget is below rank 1 everywhere or above what the layers store now.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
        >>> smaller = data_aware_svd(model, torch.randn(100, 20), parameters=400)
        >>> sum(one.numel() for one in smaller.parameters()) <= 400
        True
    """
    require_eval("model", model)
    chosen = linear_layers(model, layers)
    require_unshared(model, chosen)
    require_budget(parameters, chosen)
    scratch = duplicate(model)
    spectra, outputs = analyse(scratch, linear_layers(scratch, tuple(chosen)), inputs, shrinkage)
    return allocated_(scratch, spectra, parameters, inputs, outputs)[0]


@dataclass(frozen=True, eq=False)
class Responses:
    """A layer's weight as `A = Q R`: Q with orthonormal columns `(n, k)`, R `(k, m)`, `k = min(n, m)`.

    What the layer does to its inputs is all in `R x`, which has no more numbers than inputs or outputs.
    """

    layer: Dense
    Q: Float[Tensor, "n k"]
    R: Float[Tensor, "k m"]

    @staticmethod
    def of(layer: Dense) -> Responses:
        """Those of a layer, in float64."""
        return Responses(layer, *torch.linalg.qr(matrix_of(layer)))

    def to(self, inputs: Tensor) -> Float[Tensor, "rows k"]:
        """`R x` for every input, or for every patch, one a row."""
        return apply_weight(self.layer, self.R, inputs)


@dataclass(frozen=True, eq=False)
class Spectrum:
    r"""A linear layer in the principal axes of what it does to its data, :math:`c + U (M x - \mu)`.

    Keeping the first q axes is the best map of rank q on the data: with :math:`A \Sigma^{1/2} = U S P^\top` the best
    :math:`A_q = U_q S_q P_q^\top \Sigma^{-1/2}` is :math:`U_q U_q^\top A`, so M is `U^T A` and nothing is inverted.

    Args:
        dense: The layer as it is.
        outer: U, orthonormal columns, strongest first, `(n, k)` with `k = min(n, m)`.
        inner: M, `(k, m)`.
        mean: mu, the mean of `M x`, `(k,)`.
        centre: c, the mean of the outputs, `(n,)`.
        energies: The variance of `M x`, `(k,)`, descending.
    """

    dense: Dense
    outer: Float[Tensor, "n k"]
    inner: Float[Tensor, "k m"]
    mean: Float[Tensor, " k"]
    centre: Float[Tensor, " n"]
    energies: Float[Tensor, " k"]

    def layer(self, rank: int | None) -> nn.Module:
        """The best layer of a rank, as two; the layer as it is for None."""
        return self.dense if rank is None else self.thin(rank)

    def thin(self, rank: int) -> Thin:
        """The best layer of a rank, as two."""
        outer = self.outer[:, :rank]
        bias = self.centre - outer @ self.mean[:rank]
        return thin(self.inner[:rank], outer, bias, like=self.dense)

    def ladder(self) -> Ladder:
        """The ranks at which the layer is smaller than it is, with the energy each loses, and the layer itself."""
        whole = self.energies.sum().item() or 1.0
        left = (self.energies.flip(0).cumsum(0).flip(0) / whole).tolist()
        ranks = [rank for rank in range(1, len(left)) if stored(self.dense, rank) < stored(self.dense, None)]
        return Ladder(
            ranks=(*ranks, None),
            parameters=tuple(stored(self.dense, rank) for rank in (*ranks, None)),
            losses=(*(left[rank] for rank in ranks), 0.0),
        )


def analyse(
    model: nn.Module, layers: Mapping[str, Dense], inputs: Tensor, shrinkage: float = RIDGE
) -> tuple[dict[str, Spectrum], Float[Tensor, "S *n"]]:
    """The spectra of layers for what arrives at them, and the outputs of the model."""
    responses = {name: Responses.of(linear) for name, linear in layers.items()}
    moments = {name: Moments(one.R) for name, one in responses.items()}
    with listening(layers, lambda name, arriving: moments[name].add(responses[name].to(arriving))):
        outputs = predict(model, inputs)
    for name, one in moments.items():
        if one.count == 0:
            raise ValueError(
                f"the layer {name!r} is never called by the model, which may use its weight in another way: "
                "leave it out by naming the others in `layers`"
            )
    require_finite("the outputs of the model", outputs)
    return {name: spectrum(layers[name], responses[name], moments[name], shrinkage) for name in layers}, outputs


def spectrum(linear: Dense, responses: Responses, moments: Moments, shrinkage: float) -> Spectrum:
    """The principal axes of what a layer does to the inputs that the moments are of."""
    Q, R, mean = responses.Q, responses.R, moments.mean
    energies, axes = principal_axes(moments.covariance, R, shrinkage)
    return Spectrum(linear, Q @ axes, axes.mT @ R, axes.mT @ mean, with_bias(Q @ mean, linear), energies)


def with_bias(outputs: Float[Tensor, " n"], linear: Dense) -> Float[Tensor, " n"]:
    """Outputs of the weight, with the bias of the layer if it has one."""
    return outputs if linear.bias is None else outputs + linear.bias.detach().double()


def principal_axes(
    covariance: Float[Tensor, "k k"], R: Float[Tensor, "k m"], shrinkage: float = RIDGE
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
    """Variances and axes of the covariance of `R x`, largest first, as if x varied a little more in every direction."""
    gram = R @ R.mT
    arriving = (covariance.trace() / gram.trace()).item() if gram.any() else 0.0
    energies, axes = torch.linalg.eigh(covariance + shrinkage * (arriving or 1.0) * gram)
    return energies.flip(0).clamp_min(0), axes.flip(1)
