"""What is left in the network: the same numbers as the factors, and everything that a module of torch must stand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from planted import layer as planted_layer
from planted import random
from torch import nn
from torch.func import functional_call, jacrev, vmap

from tenflex.bases import BSpline, Chebyshev, Hinge, Monomial, Monotone, PositiveHinge, Smooth, TwoSidedHinge
from tenflex.factors import Factors
from tenflex.nn import FlexibleActivation, FlexibleLayer

M, N, R = 6, 4, 5


def quantile() -> BSpline:
    t = torch.linspace(-1, 1, 80, dtype=torch.float64)
    return BSpline(7, spacing="quantile").fit(torch.stack([t * (0.3 + 0.1 * k) for k in range(R)], 1))


# A new basis is one row.
BASES = {
    "B-spline": BSpline(6),
    "linear B-spline": BSpline(6, degree=1),
    "quantile": quantile(),
    "monomial": Monomial(3),
    "Chebyshev": Chebyshev(4),
    "hinge": Hinge(4),
    "positive hinge": PositiveHinge(3),
    "two-sided hinge": TwoSidedHinge(4),
    "smooth": Smooth(BSpline(6), 0.1),
    "monotone": Monotone(Smooth(BSpline(6))),
}
bases = pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
WIDTHS = [(None, None), (2, None), (None, 3), (2, 3)]
widths = pytest.mark.parametrize("widths", WIDTHS, ids=str)


def factors_of(generator, basis, widths=(None, None)) -> Factors:
    q, p = widths
    inner = (random(generator, M, R) / 3,) if q is None else (random(generator, M, q) / 2, random(generator, q, R) / 2)
    outer = (random(generator, N, R),) if p is None else (random(generator, N, p), random(generator, p, R))
    C, shift, bias = random(generator, R, basis.size), random(generator, R) / 5, random(generator, N)
    return planted_layer(inner, outer, C, shift, bias, basis)


def layer_of(generator, basis=None, widths=(None, None), dtype=None) -> FlexibleLayer:
    return FlexibleLayer.from_factors(factors_of(generator, basis or BSpline(6), widths), dtype=dtype)


# ---- the same numbers ----


@bases
@widths
def test_a_layer_computes_what_its_factors_say(basis, widths, generator):
    factors = factors_of(generator, basis, widths)
    layer = FlexibleLayer.from_factors(factors)
    x = random(generator, 20, M)
    torch.testing.assert_close(layer(x), factors.outputs(x))
    torch.testing.assert_close(vmap(jacrev(layer))(x), factors.jacobians(x))
    (t,) = factors.arguments(x)
    torch.testing.assert_close(layer.activations[0](t), factors.only.values(t))
    assert all(parameter.dtype == torch.float64 for parameter in layer.parameters())


@bases
@widths
def test_the_factors_come_back(basis, widths, generator):
    factors = factors_of(generator, basis, widths)
    layer = FlexibleLayer.from_factors(factors)
    again = layer.factors()
    assert list(map(len, again.maps)) == list(map(len, factors.maps))
    for one, other in zip((*again.tensors(), again.bias), (*factors.tensors(), factors.bias), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    assert again.only.basis == basis
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(again.only.coefficients, factors.only.coefficients)  # copies, not windows


def test_an_activation_is_the_sum_of_its_functions(generator):
    C, t = random(generator, R, 6), random(generator, 3, 7, R)
    activation = FlexibleActivation(R, BSpline(6), C)
    dense = torch.einsum("...rd,rd->...r", BSpline(6).value(t), C)
    torch.testing.assert_close(activation(t), dense)
    C.zero_()
    torch.testing.assert_close(activation(t), dense)  # a copy
    assert not FlexibleActivation(R, BSpline(6))(t.float()).any()


@pytest.mark.parametrize("in_shape", [(M,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("out_shape", [(N,), (2, 2), (1, 4, 1)])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_inputs_and_outputs_keep_their_shapes(in_shape, out_shape, batch, generator):
    factors = factors_of(generator, BSpline(6))
    layer = FlexibleLayer.from_factors(factors, in_shape, out_shape)
    x = random(generator, *batch, *in_shape)
    y = layer(x)
    assert y.shape == (*batch, *out_shape)
    torch.testing.assert_close(y.reshape(-1, N), factors.outputs(x.reshape(-1, M)))


def test_an_empty_batch_has_no_outputs(generator):
    assert layer_of(generator)(torch.zeros(0, M, dtype=torch.float64)).shape == (0, N)


# ---- saved ----


@bases
@widths
def test_settings_and_weights_bring_back_the_same_bits(basis, widths, generator):
    layer = FlexibleLayer.from_factors(factors_of(generator, basis, widths), (2, 3), (4, 1), torch.float32)
    saved = json.loads(json.dumps(layer.to_dict()))
    again = FlexibleLayer.from_dict(saved)
    assert again.to_dict() == layer.to_dict()
    again.load_state_dict(layer.state_dict())
    x = random(generator, 7, 2, 3).float()
    assert torch.equal(again(x), layer(x))
    assert list(again.state_dict()) == list(layer.state_dict())


@widths
def test_stored_numbers_are_those_of_the_formula(widths, generator):
    q, p = widths
    stored = sum(parameter.numel() for parameter in layer_of(generator, BSpline(6), widths).parameters())
    maps = (M * R if q is None else q * (M + R)) + (N * R if p is None else p * (N + R))
    assert stored == maps + R * 6 + R + N


def test_layers_are_made_without_drawing_random_numbers(generator, unchanged_rng):
    layer = layer_of(generator)
    with unchanged_rng():
        FlexibleLayer.from_factors(layer.factors())
        FlexibleLayer.from_dict(layer.to_dict())


def test_copies_are_independent(generator):
    layer, x = layer_of(generator, quantile()), random(generator, 5, M)
    before = layer(x).detach()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        twin.activations[0].coefficients.add_(1.0)
        twin.maps[0].bias.add_(1.0)
    assert torch.equal(layer(x), before)
    assert twin.activations[0].basis == layer.activations[0].basis


# ---- trained ----


@bases
@widths
def test_gradients_are_exact_in_everything(basis, widths, generator):
    layer, x = layer_of(generator, basis, widths), random(generator, 4, M).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    assert torch.autograd.gradcheck(
        lambda x, *values: functional_call(layer, dict(zip(names, values, strict=True)), (x,)), (x, *parameters)
    )


@bases
def test_training_lowers_the_loss(basis, generator):
    """From the layer of a solution, and from the layer that the settings alone make."""
    x = random(generator, 100, M).float()
    y = torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2], x[:, 3].abs(), x.sum(1).tanh()], 1)
    for layer in (layer_of(generator, basis, dtype=torch.float32), FlexibleLayer((M,), (N,), R, basis)):
        optimizer = torch.optim.Adam(layer.parameters(), 0.01)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(layer(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.95 * losses[0]
        assert all(parameter.grad is not None for parameter in layer.parameters())


# ---- converted, traced, exported ----


@bases
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.15), (torch.float32, 1e-5), (torch.float64, 0.0)]
)
def test_dtypes_are_converted(basis, dtype, tolerance, generator):
    layer, x = layer_of(generator, basis, (2, 3)), random(generator, 50, M)
    expected = layer(x).detach()
    y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= tolerance * expected.norm()


def test_autocast_runs_in_low_precision(generator):
    layer, x = layer_of(generator, dtype=torch.float32), random(generator, 50, M).float()
    expected = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() <= 0.05 * expected.norm()


@bases
@widths
def test_layers_are_exported(basis, widths, generator):
    """With a batch of any size, before anything was evaluated, and leaving the layer as it was."""
    layer = FlexibleLayer.from_factors(factors_of(generator, replace(basis), widths), (2, 3), (4, 1), torch.float32)
    batch = torch.export.Dim("batch", min=2, max=1000)
    exported = torch.export.export(layer.eval(), (torch.zeros(3, 2, 3),), dynamic_shapes=({0: batch},))
    x = random(generator, 11, 2, 3).float()
    torch.testing.assert_close(exported.module()(x), layer(x))
    assert len(exported.graph.nodes) < 75
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not [one for one in targets if "linspace" in one or "index_put" in one]  # no table is made at run time


def test_layers_are_vectorized_and_differentiated_forwards(generator):
    layer, x = layer_of(generator, quantile()), random(generator, 8, M)
    torch.testing.assert_close(vmap(layer)(x), layer(x))
    direction = random(generator, 8, M)
    _, slope = torch.func.jvp(layer, (x,), (direction,))
    torch.testing.assert_close(slope, torch.einsum("snm,sm->sn", layer.factors().jacobians(x), direction))


# ---- described ----


def test_what_is_printed(generator):
    text = repr(FlexibleLayer((784,), (10,), 40, BSpline(10), factor=10))
    assert "in_features=784, out_features=10, bias=False" in text
    assert "FlexibleActivation(40 nodes, BSpline(count=10, degree=3, spacing='even', knots=None))" in text
    assert len(repr(layer_of(generator, quantile()))) < 2000


def test_what_activations_cost():
    activation = FlexibleActivation(7, BSpline(10, spacing="quantile"))
    assert activation.stored_knots() == 7 * 6
    assert FlexibleActivation(7, BSpline(10)).stored_knots() == 0
    assert FlexibleActivation(7, Monomial(3)).operations_per_example() == 7 * 5


# ---- refusals ----


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FlexibleActivation(0, BSpline(6)), ValueError, r"nodes must be a whole number of at least 1, got 0"),
        (lambda: FlexibleActivation(3, "BSpline"), TypeError, r"basis must be a basis such as BSpline\(10\), got 'BS"),
        (
            lambda: FlexibleActivation(3, BSpline(6), torch.zeros(6, 3)),
            ValueError,
            r"must have shape \(3, 6\), got \(6,",
        ),
        (lambda: FlexibleActivation(3, BSpline(6), [[0.0] * 6] * 3), TypeError, r"coefficients must be a torch.Tensor"),
        (
            lambda: FlexibleActivation(3, BSpline(6), torch.zeros(3, 6).long()),
            TypeError,
            r"coefficients must be real fl",
        ),
        (lambda: FlexibleActivation(3, quantile()), ValueError, r"the basis has knots for 5 nodes, got 3: use as many"),
        (
            lambda: FlexibleLayer((6,), (4,), 3, Smooth(quantile())),
            ValueError,
            r"the basis has knots for 5 nodes, got 3",
        ),
        (
            lambda: FlexibleLayer(6, (4,), 3, BSpline(6)),
            TypeError,
            r"in_shape must be a tuple of sizes such as \(784,\)",
        ),
        (lambda: FlexibleLayer((6,), (), 3, BSpline(6)), TypeError, r"out_shape must be a tuple of sizes"),
        (
            lambda: FlexibleLayer((6, 0), (4,), 3, BSpline(6)),
            ValueError,
            r"each size of in_shape must be a whole number",
        ),
        (
            lambda: FlexibleLayer((6,), (4.0,), 3, BSpline(6)),
            ValueError,
            r"each size of out_shape must be a whole numb",
        ),
        (lambda: FlexibleLayer((6,), (4,), None, BSpline(6)), ValueError, r"rank must be a whole number of at least 1"),
        (
            lambda: FlexibleLayer((6,), (4,), 3, BSpline(6), factor=0),
            ValueError,
            r"factor must be a whole number of at",
        ),
        (
            lambda: FlexibleLayer((6,), (4,), 3, BSpline(6), None, 0),
            ValueError,
            r"output_factor must be a whole number",
        ),
        (
            lambda: FlexibleLayer((6,), (4,), 3, None),
            TypeError,
            r"basis must be a basis such as BSpline\(10\), got None",
        ),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


GOOD = {
    "in_shape": [6],
    "out_shape": [4],
    "rank": [3],
    "basis": [{"family": "Monomial", "degree": 3}],
    "factor": None,
    "output_factor": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"a flexible layer has the settings \['basis', 'factor', .* got .*extra"),
        ({"rank": "3"}, r"rank must be a whole number of at least 1, got '3'"),
        ({"rank": [0]}, r"rank must be a whole number of at least 1, got 0"),
        ({"rank": []}, r"rank and basis must be lists of one a layer, got \[\] and \[{'family': 'Monomial'"),
        ({"rank": [3, 2]}, r"rank and basis must be lists of one a layer, got \[3, 2\] and \[{'family': 'Monomial'"),
        ({"in_shape": 6}, r"in_shape and out_shape must be lists of sizes, got \[6, \[4\]\]"),
        ({"out_shape": []}, r"in_shape and out_shape must be lists of sizes, got \[\[6\], \[\]\]"),
        ({"out_shape": [2, -1]}, r"each size of out_shape must be a whole number of at least 1, got -1"),
        ({"factor": 0}, r"factor must be a whole number of at least 1, got 0"),
        ({"output_factor": 1.5}, r"output_factor must be a whole number of at least 1, got 1.5"),
        ({"basis": {"family": "Spline"}}, r"no basis is called 'Spline'; did you mean 'BSpline'"),
        (
            {"basis": {"family": "BSpline", "count": 5, "spacing": "quantile", "knots": [[0.0]]}},
            r"the basis has knots for 1 nodes, got 3",
        ),
    ],
)
def test_bad_saved_settings_are_refused(change, message):
    assert FlexibleLayer.from_dict(GOOD).to_dict() == GOOD
    with pytest.raises(ValueError, match=message):
        FlexibleLayer.from_dict({**GOOD, **change})


def test_settings_of_one_layer_need_no_lists():
    alone = {**GOOD, "rank": 3, "basis": {"family": "Monomial", "degree": 3}}
    assert FlexibleLayer.from_dict(alone).to_dict() == GOOD


@pytest.mark.parametrize("missing", GOOD)
def test_missing_settings_are_refused(missing):
    with pytest.raises(ValueError, match="a flexible layer has the settings"):
        FlexibleLayer.from_dict({key: value for key, value in GOOD.items() if key != missing})
    with pytest.raises(ValueError, match=r"a flexible layer has the settings .*, got 3"):
        FlexibleLayer.from_dict(3)


def test_shapes_that_do_not_fit_the_factors_are_refused(generator):
    factors = factors_of(generator, BSpline(6))
    for shapes in (((7,), (N,)), ((M,), (2, 3)), ((M, 2), None)):
        with pytest.raises(ValueError, match=r"the factors map 6 numbers to 4: expected shapes of as many, got"):
            FlexibleLayer.from_factors(factors, *shapes)
