"""Two solutions side by side: which nodes are the same, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.checks import require_finite, require_floating
from tenflex.factors import Factors, one_layer
from tenflex.identify.assignment import assign


@dataclass(frozen=True)
class Alignment:
    r"""How the nodes of one layer correspond to those of a reference.

    Node `permutation[k]` of the layer corresponds to node k of the reference, with :math:`v \approx s_k v_k^{ref}` and
    :math:`w \approx u_k w_k^{ref}`. Errors do not depend on order, scales and signs.

    Args:
        permutation: The matching node of the layer for every node of the reference.
        inner_scales: s, `(r,)`, in the order of the reference.
        outer_scales: u, `(r,)`.
        inner_errors: The distance of the unit vectors along the two columns of V, up to sign: between 0 and
            :math:`\sqrt 2`, and the sine of the angle to first order; 1 if one of the two is zero.
        outer_errors: The same for W.
        activation_errors: The relative error of what each node contributes to the outputs on given inputs,
            :math:`w_k g_k(v_k \cdot x)`, centred; None without inputs.

    Example:
        >>> from tenflex.identify import align
        >>> factors = decouple(problem).factors
        >>> align(factors, factors).permutation
        (0, 1)
    """

    permutation: tuple[int, ...]
    inner_scales: tuple[float, ...]
    outer_scales: tuple[float, ...]
    inner_errors: tuple[float, ...]
    outer_errors: tuple[float, ...]
    activation_errors: tuple[float, ...] | None = None

    @property
    def inner_error(self) -> float:
        """The largest of the errors of V."""
        return max(self.inner_errors)

    @property
    def outer_error(self) -> float:
        """The largest of the errors of W."""
        return max(self.outer_errors)

    @property
    def factor_error(self) -> float:
        """The largest error of a direction, of V or of W."""
        return max(self.inner_error, self.outer_error)

    @property
    def activation_error(self) -> float | None:
        """The largest error of a contribution, or None."""
        return None if self.activation_errors is None else max(self.activation_errors)


def align(factors: Factors, reference: Factors, inputs: Float[Tensor, "S m"] | None = None) -> Alignment:
    r"""Match the nodes of two layers up to order and scale.

    The matching maximizes :math:`\sum_k |\cos(v_{\pi(k)}, v_k^{ref})| \, |\cos(w_{\pi(k)}, w_k^{ref})|`.

    Args:
        factors: The layer to compare.
        reference: The layer to compare with, such as planted truth; as many inputs, outputs and nodes.
        inputs: Points at which to compare the contributions of the nodes as well, `(S, m)`.

    Returns:
        The matching and the errors.

    Raises:
        TypeError: if one of the two is not a `Factors`, or the inputs are not floating-point numbers.
        ValueError: if sizes differ or a number is not finite.

    Example:
        >>> eye = torch.eye(2)
        >>> from tenflex.factors import Activations
        >>> layer = Factors.single(eye, eye, Activations(eye, torch.zeros(2), Monomial(2)), torch.zeros(2))
        >>> turned = layer.with_map(0, -3 * eye.flip(1)).with_map(1, eye.flip(0))
        >>> found = align(turned, layer)
        >>> found.permutation, found.inner_scales, found.factor_error
        ((1, 0), (-3.0, -3.0), 0.0)
    """
    _require_alike(factors, reference)
    V, W, V_ref, W_ref = (one.detach().double() for one in (factors.V, factors.W, reference.V, reference.W))
    cosines = (_unit(V).mT @ _unit(V_ref)) * (_unit(W).mT @ _unit(W_ref))
    permutation = assign(-cosines.abs())
    order = list(permutation)
    return Alignment(
        permutation,
        _scales(V[:, order], V_ref),
        _scales(W[:, order], W_ref),
        _errors(V[:, order], V_ref),
        _errors(W[:, order], W_ref),
        None if inputs is None else _contribution_errors(factors, reference, order, inputs),
    )


def _require_alike(factors: Factors, reference: Factors) -> None:
    for name, one in (("factors", factors), ("reference", reference)):
        if not isinstance(one, Factors):
            raise TypeError(f"{name} must be a tenflex.Factors, got {type(one).__name__}: use solution.factors")
        one_layer(one, f"{name} must be those of")
        require_finite(f"the columns of {name}", torch.cat([one.V, one.W]))
    ours, theirs = ((len(one.V), len(one.W), *one.ranks) for one in (factors, reference))
    if ours != theirs:
        raise ValueError(
            f"expected two layers with the same m, n and r (inputs, outputs, nodes), got {ours} and {theirs}"
        )


def _unit(columns: Tensor) -> Tensor:
    return columns / positive(columns.norm(dim=0))


def _scales(columns: Tensor, reference: Tensor) -> tuple[float, ...]:
    """The least-squares factors from the columns of the reference."""
    return tuple(((columns * reference).sum(0) / positive(reference.square().sum(0))).tolist())


def _errors(columns: Tensor, reference: Tensor) -> tuple[float, ...]:
    ours, theirs = _unit(columns), _unit(reference)
    sign = torch.where((ours * theirs).sum(0) < 0, -1.0, 1.0)
    return tuple((ours - sign * theirs).norm(dim=0).tolist())


def _contribution_errors(
    factors: Factors, reference: Factors, order: list[int], inputs: Float[Tensor, "S m"]
) -> tuple[float, ...]:
    require_floating("inputs", inputs)
    require_finite("inputs", inputs)
    ours, theirs = _centred(factors, inputs)[:, order], _centred(reference, inputs)
    W, W_ref = factors.W.detach().double()[:, order], reference.W.detach().double()
    pairs = zip(ours.unbind(1), W.unbind(1), theirs.unbind(1), W_ref.unbind(1), strict=True)
    return tuple(_relative_error(torch.outer(g, w), torch.outer(g_ref, w_ref)) for g, w, g_ref, w_ref in pairs)


def _centred(factors: Factors, inputs: Tensor) -> Float[Tensor, "S r"]:
    with torch.no_grad():
        G = factors.only.values(factors.arguments(inputs.to(factors.bias))[0]).double()
    return G - G.mean(0)


def _relative_error(contribution: Tensor, reference: Tensor) -> float:
    return ((contribution - reference).norm() / positive(reference.norm())).item()
