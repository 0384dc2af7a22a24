r"""The directions in which a node can move: the derivatives of what it does in all its parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases import Basis
from tenflex.bases.base import positive
from tenflex.checks import require_finite, require_floating
from tenflex.coordinates.base import require_varying
from tenflex.coordinates.standardize import deviations
from tenflex.factors import Activations, Factors, one_layer

MOST_SAMPLES = 4096
"""Of more samples than these, as many are taken at even steps."""

NUMBERS = 2**23
"""Derivatives that are always formed when there are no more than these: 64 MiB."""

OVERSAMPLING = 4
"""Otherwise as many random combinations of them as this many times the parameters."""

ROUNDING = 2e-6
"""An output that varies by a smaller share of its size may be constant but for rounding in single precision."""

SPAN = 1e-12
"""Directions of V and W with a smaller share of the largest singular value are not in their span."""


@dataclass(frozen=True, eq=False)
class Compact:
    """A layer and samples in orthonormal coordinates of the spans of V and W, inputs and outputs of unit variance.

    The tangents of a node in the other directions of the inputs are all alike, and so are those of the outputs:
    they need not be formed once for each of thousands of inputs.

    Args:
        factors: The layer, V `(p, r)` and W `(q, r)`.
        inputs: `(S, p)`.
        more_inputs: The directions of the inputs outside of the span of V, `m - p`.
        more_outputs: The directions of the outputs outside of the span of W, `n - q`.
    """

    factors: Factors
    inputs: Float[Tensor, "S p"]
    more_inputs: int
    more_outputs: int

    @property
    def parameters(self) -> int:
        """The parameters of all nodes: columns of V and W, coefficients, and a shift."""
        one, (rank,) = self.factors.only, self.factors.ranks
        return rank * (len(self.factors.V) + len(self.factors.W) + one.basis.size + 1)


def compact(factors: Factors, inputs: Float[Tensor, "S m"], units: Float[Tensor, " n"] | None = None) -> Compact:
    """Change to coordinates in which the tangents are few.

    Args:
        factors: The layer.
        inputs: Where it is used.
        units: Those of the outputs; their deviations there if None.

    Raises:
        TypeError: if the inputs are not floating-point numbers.
        ValueError: if they have another shape than the layer takes, never vary, or a number is not finite.
    """
    full = whole(factors, inputs, units)
    axes, inner = _span(full.factors.V)
    _, outer = _span(full.factors.W)
    small = Factors.single(inner, outer, full.factors.only, outer.new_zeros(len(outer)))
    more = len(full.factors.V) - len(inner), len(full.factors.W) - len(outer)
    return Compact(small, full.inputs @ axes, *more)


def whole(factors: Factors, inputs: Float[Tensor, "S m"], units: Float[Tensor, " n"] | None = None) -> Compact:
    """Only the change to centred inputs and to inputs and outputs of unit variance; raises what `compact` does."""
    require_inputs(factors, inputs)
    units = output_units(factors, inputs) if units is None else units
    V, W = factors.V.detach().double(), factors.W.detach().double() / units[:, None]
    x = inputs.detach().to(V)
    x = x[used(len(x))]
    mean, deviation = deviations(x)
    one = one_layer(factors, "the uniqueness is known of").only
    shift = one.shift.detach().double() + mean @ V
    activations = Activations(one.coefficients.detach().double(), shift, one.basis)
    turned = Factors.single(V * deviation[:, None], W, activations, W.new_zeros(len(W)))
    return Compact(turned, (x - mean) / deviation, 0, 0)


def output_units(factors: Factors, inputs: Float[Tensor, "S m"]) -> Float[Tensor, " n"]:
    """The unit of every output of a layer, by how it varies at inputs, wherever its mean is."""
    return units_of(without_bias(factors, inputs))


def without_bias(factors: Factors, inputs: Float[Tensor, "S m"]) -> Float[Tensor, "S n"]:
    """The outputs of a layer less its bias, in which digits would get lost."""
    x = inputs.detach().to(factors.V)
    return replace(factors, bias=torch.zeros_like(factors.bias)).outputs(x).detach()


def units_of(outputs: Float[Tensor, "S n"], varying: Float[Tensor, "S n"] | None = None) -> Float[Tensor, " n"]:
    """The deviation of every output; the size of one that varies by no more than rounding in single precision does.

    So an output that is constant counts next to nothing, and not by its rounding.

    Args:
        outputs: The outputs.
        varying: What a layer makes of them, less its bias: where it varies as much, that is no rounding.
    """
    y = outputs.detach().double()
    found, size = (y - y.mean(0)).square().mean(0).sqrt(), y.abs().amax(0)
    varies = found > ROUNDING * size
    if varying is not None:
        varies |= varying.double().std(0, correction=0).to(found) > found / 2
    return torch.where(varies & (found > 0), found, torch.where(size > 0, size, 1.0))


def used(count: int) -> slice:
    """The samples that are used, of so many."""
    return slice(None, None, -(-count // MOST_SAMPLES))


def require_inputs(factors: Factors, inputs: Tensor) -> None:
    """Raise unless inputs are samples that the layer can take, and all numbers are finite."""
    require_floating("inputs", inputs)
    m = len(factors.V)
    if inputs.dim() != 2 or inputs.shape[1] != m or len(inputs) < 2:
        raise ValueError(f"inputs must be at least 2 samples of {m} numbers, (S, {m}), got shape {tuple(inputs.shape)}")
    require_finite("inputs", inputs)
    for name, tensor in (("V", factors.V), ("W", factors.W), ("coefficients", factors.only.coefficients)):
        require_finite(name, tensor)
    require_varying(inputs)


def _span(columns: Float[Tensor, "m r"]) -> tuple[Float[Tensor, "m p"], Float[Tensor, "p r"]]:
    """An orthonormal basis of the span of columns, and the columns in it; at least one vector."""
    axes, sizes, right = torch.linalg.svd(columns, full_matrices=False)
    p = max(1, int((sizes > SPAN * sizes[0]).sum()))
    return axes[:, :p], sizes[:p, None] * right[:p]


@dataclass(frozen=True, eq=False)
class Moves:
    r"""What a layer does on samples, and how that moves with the parameters of its nodes.

    Node k is the map :math:`x \mapsto w_k g_k(v_k \cdot x + a_k)`. To change :math:`v_k, c_k, a_k` adds
    :math:`w_k \psi(x)` with a scalar function :math:`\psi`: one of :math:`x_l g_k'`, :math:`\phi_j` and :math:`g_k'`
    at :math:`t = v_k \cdot x + a_k`. To change :math:`w_k` adds :math:`e_i g_k(t)`. Every function is seen through its
    values, centred over the samples, and its gradients, both relative to the layer's:
    component 0 is a value, components 1 to p are a gradient.

    Args:
        compact: The layer and the samples.
        scores: G, centred and relative, `(S, r)`.
        slopes: H, relative, `(S, r)`.
        values: The functions :math:`\psi`, centred and relative, `(S, r, e)`, with e = p + d + 1.
        along: The parts of their gradients along :math:`v_k`, relative, `(S, r, e)`.
    """

    compact: Compact
    scores: Float[Tensor, "S r"]
    slopes: Float[Tensor, "S r"]
    values: Float[Tensor, "S r e"]
    along: Float[Tensor, "S r e"]

    def at(self, some: slice) -> Moves:
        """The same at some of the samples."""
        here = (getattr(self, name)[some] for name in ("scores", "slopes", "values", "along"))
        return Moves(replace(self.compact, inputs=self.compact.inputs[some]), *here)

    def nodes(self) -> Float[Tensor, "S components r"]:
        """The activations, as functions of x."""
        V = self.compact.factors.V
        return torch.cat([self.scores[:, None], V * self.slopes[:, None]], 1)

    def matrix(self) -> Float[Tensor, "equations parameters"]:
        """The derivatives of outputs and Jacobians in all parameters, or of random combinations that keep the rank."""
        W, (count, components, _) = self.compact.factors.W, self.nodes().shape
        sizes = (len(W), components)
        each, parameters = len(W) * components, self.compact.parameters
        enough = max(OVERSAMPLING * parameters, NUMBERS // parameters)
        if count * each <= enough:
            every = torch.cartesian_prod(*map(torch.arange, sizes)).T
            units = (
                torch.eye(size, dtype=W.dtype, device=W.device)[index].expand(count, -1, -1)
                for size, index in zip(sizes, every, strict=True)
            )
            return self.observed(*units)
        generator = torch.Generator().manual_seed(0)
        kept = -(-enough // count)
        random = (
            torch.randn(count, kept, size, generator=generator, dtype=torch.float64, device="cpu").to(W)
            for size in sizes
        )
        return self.observed(*random) / kept**0.5

    def observed(
        self, of_output: Float[Tensor, "S c q"], of_input: Float[Tensor, "S c components"]
    ) -> Float[Tensor, "equations parameters"]:
        """The derivatives of c combinations of the outputs and Jacobians of each sample, one node after another."""
        V, W = self.compact.factors.V, self.compact.factors.W
        of_value, of_gradient = of_input[..., :1], of_input[..., 1:]
        along = of_gradient @ V
        functions = of_value[..., None] * self.values[:, None] + along[..., None] * self.along[:, None]
        functions[..., : len(V)] += self.slopes[:, None, :, None] * of_gradient[:, :, None, :]
        nodes = of_value * self.scores[:, None] + along * self.slopes[:, None]
        by_function = (of_output @ W)[..., None] * functions
        by_output = of_output[:, :, None, :] * nodes[..., None]
        return torch.cat([by_function, by_output], -1).flatten(2).flatten(0, 1)


def moves(small: Compact) -> Moves:
    """Evaluate a layer, its functions, and their derivatives."""
    factors, x = small.factors, small.inputs
    basis, (t,) = factors.only.basis, factors.arguments(x)
    G, H, K = factors.only.curves(t)
    one = torch.ones_like(x[:, :1])
    along_x = torch.cat([x, one], 1)[:, None]
    values = _insert(along_x * H[..., None], basis.value(t))
    along = _insert(along_x * K[..., None], basis.derivative(t))
    for_values, for_slopes = _weights(factors, G, H)
    return Moves(
        small,
        for_values * (G - G.mean(0)),
        for_slopes * H,
        for_values * (values - values.mean(0)),
        for_slopes * along,
    )


def _insert(of_inner: Float[Tensor, "S r p+1"], of_basis: Float[Tensor, "S r d"]) -> Float[Tensor, "S r e"]:
    """The functions that belong to V, to the coefficients, and to the shift, in this order."""
    return torch.cat([of_inner[..., :-1], of_basis, of_inner[..., -1:]], -1)


def _weights(factors: Factors, G: Float[Tensor, "S r"], H: Float[Tensor, "S r"]) -> tuple[Tensor, Tensor]:
    """One over the sizes of the layer's centred outputs and of its Jacobians."""
    V, W = factors.V, factors.W
    outputs = (G - G.mean(0)) @ W.mT
    gram = (W.mT @ W) * (V.mT @ V)
    jacobians = ((H @ gram) * H).sum().clamp(min=0).sqrt()
    return 1 / positive(outputs.norm()), 1 / positive(jacobians)


def function_counts(basis: Basis, rank: int) -> list[int]:
    r"""How many functions, beside the constant, the parameters of a generic activation move it by; one number a node.

    These are the :math:`\phi_j`, :math:`g'` (the shift) and :math:`t g'` (the scale of a column of V). For polynomials
    the last two are in the span of the first, and there are d; for splines, whose knots they move, there are d + 1, one
    of the d + 2 being the constant.
    """
    low, high = basis.interval
    margin = (high - low) / 2  # the tails of piecewise functions count as well
    grid = torch.linspace(low - margin, high + margin, 1024, dtype=torch.float64, device="cpu")
    t = grid[:, None].expand(-1, rank)
    some = torch.randn(rank, basis.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    slope = basis.curves(t, some)[1]
    functions = torch.cat([torch.stack([torch.ones_like(t), slope, t * slope], -1), basis.value(t)], -1).transpose(0, 1)
    sizes = torch.linalg.svdvals(functions / positive(functions.norm(dim=1, keepdim=True)))
    return ((sizes > 1e-10 * sizes[:, :1]).sum(1) - 1).tolist()
