"""The objective and its products with the Jacobian tensor against dense references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import layer as planted_layer
from planted import random, sampled
from torch import Tensor
from torch.func import jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tenflex.bases import BSpline, Chebyshev, Hinge, Monomial, TwoSidedHinge
from tenflex.bases.orthonormal import Orthonormal
from tenflex.factors import Factors
from tenflex.objective.equal import Misfit, Overlap
from tenflex.objective.objective import Curve, Objective
from tenflex.objective.tensor import JacobianTensor, khatri_rao
from tenflex.samples import Samples

S, M, N, R = 9, 4, 3, 5
COUPLING = 3.0


def quantile() -> BSpline:
    t = torch.linspace(-1, 1, 60, dtype=torch.float64)
    return BSpline(7, spacing="quantile").fit(torch.stack([t * (0.2 + 0.1 * k) for k in range(R)], 1))


# A new basis is one row.
BASES = {
    "B-spline": BSpline(6),
    "linear B-spline": BSpline(6, degree=1),
    "quantile": quantile(),
    "monomial": Monomial(3),
    "Chebyshev": Chebyshev(4),
    "hinge": Hinge(4),
    "two-sided hinge": TwoSidedHinge(4),
    "orthonormal": Orthonormal(BSpline(6)),
}
bases = pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
maps = pytest.mark.parametrize("factored", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=lambda one: "x".join(map(str, one)))


def layer(generator, basis, factored=(1, 1), m=M, n=N, r=R) -> Factors:
    inner = (0.4 * random(generator, m, r),) if factored[0] == 1 else (random(generator, m, 2), random(generator, 2, r))
    outer = (random(generator, n, r),) if factored[1] == 1 else (random(generator, n, 2), random(generator, 2, r))
    C, shift, bias = random(generator, r, basis.size), 0.1 * random(generator, r), random(generator, n)
    return planted_layer(inner, outer, C, shift, bias, basis)


def unrelated(generator, S=S, n=N, m=M) -> Samples:
    """Samples that no layer fits."""
    return Samples(random(generator, S, m), random(generator, S, n) + 5, random(generator, S, n, m))


def kinds(samples: Samples, generator) -> tuple[Samples, Samples, Samples]:
    """The same samples with whole Jacobians, with views of them, and with outputs only."""
    u = random(generator, S, 2, N)
    views = Samples(samples.inputs, samples.outputs, u @ samples.jacobians, directions=u)
    return samples, views, Samples(samples.inputs, samples.outputs, samples.jacobians[:, :0], directions=u[:, :0])


def dense_errors(samples: Samples, factors: Factors) -> tuple[Tensor, Tensor]:
    """Both terms, everything formed."""
    x, F, J, one = samples.inputs, samples.outputs, samples.jacobians, factors.only
    t = x @ factors.V + one.shift
    H = torch.einsum("srd,rd->sr", one.basis.derivative(t), one.coefficients)
    G = torch.einsum("srd,rd->sr", one.basis.value(t), one.coefficients)
    J_hat = torch.einsum("sr,nr,mr->snm", H, factors.W, factors.V)
    F_hat = G @ factors.W.mT + factors.bias
    return (J - J_hat).square().sum() / J.square().sum(), (F - F_hat).square().sum() / (F - F.mean(0)).square().sum()


def best_bias(samples: Samples, factors: Factors) -> Factors:
    without = factors.outputs(samples.inputs) - factors.bias
    return replace(factors, bias=(samples.outputs - without).mean(0))


# ---- the layer as matrices ----


@bases
@maps
def test_the_jacobians_of_a_layer_are_those_of_its_outputs(basis, factored, generator):
    factors, x = layer(generator, basis, factored), random(generator, S, M)
    torch.testing.assert_close(factors.jacobians(x), vmap(jacrev(factors.outputs))(x))
    (t,) = factors.arguments(x)
    torch.testing.assert_close(t, x @ factors.V + factors.only.shift)
    torch.testing.assert_close(factors.outputs(x), factors.only.values(t) @ factors.W.mT + factors.bias)
    assert factors.ranks == (R,)
    assert factors.V.shape == (M, R)
    assert factors.W.shape == (N, R)


# ---- the value ----


@bases
@maps
@pytest.mark.parametrize("exact", [False, True])
def test_the_value_is_the_dense_one_at_the_best_bias(basis, factored, exact, generator):
    samples, factors = unrelated(generator), layer(generator, basis, factored)
    value = Objective(samples, COUPLING).value(factors, exact=exact)
    torch.testing.assert_close(value, dense_errors(samples, best_bias(samples, factors)))


@bases
def test_errors_are_those_of_the_bias_that_the_layer_has(basis, generator):
    samples, factors = unrelated(generator), layer(generator, basis)
    for one in (factors, best_bias(samples, factors)):
        expected = tuple(error.item() for error in dense_errors(samples, one))
        assert Objective(samples, COUPLING).errors(one) == pytest.approx(expected)


@maps
@pytest.mark.parametrize("off", [0.0, 1e-9, 1e-4])
def test_errors_near_an_exact_fit_have_all_their_digits(factored, off, generator):
    factors, x = layer(generator, BSpline(6), factored), random(generator, S, M)
    samples = sampled(factors, x)
    moved = factors.with_activations(0, coefficients=factors.only.coefficients * (1 + off))
    moved = best_bias(samples, moved)
    errors = Objective(samples, COUPLING).errors(moved)
    # Activations and slopes are linear in the coefficients: both relative errors are `off` exactly.
    assert errors == pytest.approx((off**2, off**2), rel=1e-5, abs=1e-29)


def test_weights_are_relative(generator):
    """Outputs and Jacobians a hundred times as large change neither the errors nor the balance."""
    samples, factors = unrelated(generator), layer(generator, Monomial(3))
    larger = Samples(samples.inputs, 100 * samples.outputs, 100 * samples.jacobians)
    scaled = replace(factors.with_map(-1, 100 * factors.W.mT), bias=100 * factors.bias)
    one, other = Objective(samples, COUPLING), Objective(larger, COUPLING)
    assert other.errors(scaled) == pytest.approx(one.errors(factors))
    assert float(one.weight_f * one.size_f) == pytest.approx(COUPLING)
    assert float(one.weight_j * one.size_j) == pytest.approx(1.0)


def test_samples_that_are_all_alike_have_finite_errors(generator):
    """A few held-out samples of a network may have the same outputs, and no slope."""
    samples, factors = unrelated(generator), layer(generator, Monomial(3))
    flat = Samples(samples.inputs, samples.outputs[:1].expand(S, N), torch.zeros_like(samples.jacobians))
    jacobian_error, output_error = Objective(flat, COUPLING).errors(factors)
    left = flat.outputs - factors.outputs(flat.inputs)
    assert output_error == pytest.approx(left.square().sum().item())
    assert jacobian_error == pytest.approx(factors.jacobians(flat.inputs).square().sum().item())


# ---- gradients ----


@bases
@maps
@pytest.mark.parametrize("exact", [False, True])
def test_gradients_of_the_value_are_exact(basis, factored, exact, generator):
    target, factors = Objective(unrelated(generator), COUPLING), layer(generator, basis, factored)

    def loss(*tensors: Tensor) -> Tensor:
        errors = target.value(factors.with_tensors(tensors), exact)
        return errors[0] + COUPLING * errors[1]

    assert torch.autograd.gradcheck(loss, [one.clone().requires_grad_() for one in factors.tensors()])


@bases
@maps
@pytest.mark.parametrize("chunk", [1, 16 * M * 4, 2**22])
def test_the_loss_and_its_gradient_are_those_of_the_value(basis, factored, chunk, generator, monkeypatch):
    """However many samples are passed over at a time, and whether what the nodes make of them is kept or not."""
    samples, factors = unrelated(generator), layer(generator, basis, factored)
    monkeypatch.setattr("tenflex.objective.passing.fits", lambda numbers: True)
    for one in kinds(samples, generator):
        target, tensors = Objective(one, COUPLING), [each.clone().requires_grad_() for each in factors.tensors()]
        value = target.total(*target.value(factors.with_tensors(tensors)))
        expected = torch.autograd.grad(value, tensors)
        monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
        loss = target.loss(factors.with_tensors(tensors))
        torch.testing.assert_close(loss, value)
        torch.testing.assert_close(torch.autograd.grad(loss, tensors), expected)
        best, jacobians, outputs = target.measured(factors)
        assert jacobians + COUPLING * outputs == pytest.approx(float(value.detach()))
        torch.testing.assert_close(best.bias, best_bias(samples, factors).bias)
        monkeypatch.undo()
        monkeypatch.setattr("tenflex.objective.passing.fits", lambda numbers: True)


@bases
@maps
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_products_in_single_precision_err_by_its_rounding(basis, factored, chunk, generator, monkeypatch):
    """And the gradient comes in double precision, like what is added up."""
    samples, factors = unrelated(generator), layer(generator, basis, factored)
    monkeypatch.setattr("tenflex.objective.passing.fits", lambda numbers: True)
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    for one in kinds(samples, generator):
        target, tensors = Objective(one, COUPLING), [each.clone().requires_grad_() for each in factors.tensors()]
        values = [target.loss(factors.with_tensors(tensors), dtype=dtype) for dtype in (torch.float64, torch.float32)]
        double, single = (torch.autograd.grad(each, tensors) for each in values)
        assert values[1].dtype == torch.float64
        assert 0 < abs(values[1] - values[0]) < 1e-5 * values[0]
        for exact, rough in zip(double, single, strict=True):
            assert rough.dtype == torch.float64
            assert (rough - exact).norm() < 1e-5 * sum(each.norm() for each in double)


@bases
def test_gradients_of_the_curves_are_exact(basis, generator):
    t, c = random(generator, S, R).requires_grad_(), random(generator, R, basis.size).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, c: Curve.apply(t, c, basis), (t, c))


@pytest.mark.parametrize("factored", [False, True])
def test_gradients_of_the_overlap_are_exact(factored, generator):
    J = JacobianTensor(random(generator, S, N, M))
    inner = (random(generator, M, 2), random(generator, 2, R)) if factored else (random(generator, M, R),)
    inputs = [one.requires_grad_() for one in (random(generator, N, R), random(generator, S, R), *inner)]
    assert torch.autograd.gradcheck(lambda *all: Overlap.apply(J, *all), inputs)


def test_gradients_of_the_misfit_are_exact(generator):
    J = JacobianTensor(random(generator, S, N, M))
    inputs = [random(generator, size, R).requires_grad_() for size in (M, N, S)]
    assert torch.autograd.gradcheck(lambda V, W, H: Misfit.apply(J, V, W, H), inputs)


# ---- products with the tensor ----


@pytest.mark.parametrize("chunk", [1, 7, 25, 60, 2**22])
@pytest.mark.parametrize("shape", [(9, 3, 4), (5, 1, 6), (4, 7, 1), (2, 40, 3)])
def test_products_are_their_sums_whatever_the_chunk(chunk, shape, generator, monkeypatch):
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    samples, n, m = shape
    J = random(generator, samples, n, m)
    V, W, H = (random(generator, size, R) for size in (m, n, samples))
    B, A = random(generator, m, 2), random(generator, 2, R)
    product = JacobianTensor(J)
    torch.testing.assert_close(product.onto(V, W), torch.einsum("snm,nr,mr->sr", J, W, V))
    to_v, to_w = product.unfold(V, W, H)
    torch.testing.assert_close(to_v, torch.einsum("snm,nr,sr->mr", J, W, H))
    torch.testing.assert_close(to_w, torch.einsum("snm,mr,sr->nr", J, V, H))
    torch.testing.assert_close(product.through(B).entries, torch.einsum("snm,mq->snq", J, B))
    torch.testing.assert_close(product.to_first(A, W, H), torch.einsum("snm,nr,sr,qr->mq", J, W, H, A))
    torch.testing.assert_close(
        Misfit.apply(product, V, W, H), (J - torch.einsum("sr,nr,mr->snm", H, W, V)).square().sum()
    )


def test_the_tensor_may_lie_in_memory_in_any_order(generator):
    J = random(generator, M, N, S).permute(2, 1, 0)
    V, W = random(generator, M, R), random(generator, N, R)
    torch.testing.assert_close(JacobianTensor(J).onto(V, W), torch.einsum("snm,nr,mr->sr", J, W, V))


def test_khatri_rao_columns_are_kronecker_products(generator):
    W, V = random(generator, N, R), random(generator, M, R)
    for k in range(R):
        torch.testing.assert_close(khatri_rao(W, V)[:, k], torch.kron(W[:, k], V[:, k]))


# ---- memory ----


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that any operation allocated; views of what was there do not count."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {one.untyped_storage().data_ptr() for one in known}
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self.known:
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return result


@pytest.mark.parametrize(("factored", "exact"), [((1, 1), False), ((2, 1), False), ((2, 2), False), ((1, 1), True)])
def test_no_tensor_of_the_size_of_the_jacobians_is_made(factored, exact, generator, monkeypatch):
    samples_count, n, m, r, chunk = 50, 24, 30, 6, 1500
    monkeypatch.setattr("tenflex.sums.CHUNK", chunk)
    samples = unrelated(generator, samples_count, n, m)
    target = Objective(samples, COUPLING)
    factors = layer(generator, BSpline(6), factored, m, n, r)
    matrices = [one.requires_grad_() for one in factors.tensors()]
    with Largest(samples.jacobians, target.jacobians.entries) as largest:
        errors = target.value(factors, exact=exact)
        (errors[0] + COUPLING * errors[1]).backward()
    assert all(one.grad is not None for one in matrices)
    # A chunk, or J behind the first factor of V: S n q numbers.
    allowed = max(chunk, samples_count * n * 2 if factored[0] == 2 else 0)
    assert 0 < largest.numbers <= allowed
    assert allowed < samples_count * n * m / 10


def test_the_watch_over_memory_sees_what_is_made(generator):
    J = random(generator, S, N, M)
    with Largest(J) as largest:
        assert J.view(S, -1)[:3].mT.shape == (N * M, 3)
        assert largest.numbers == 0
        J * 2
    assert largest.numbers == S * N * M
