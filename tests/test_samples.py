"""Samples and problems: what is refused, with which words, and what is set aside."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tenflex.bases import BSpline, Hinge, Monomial
from tenflex.coordinates.standardize import Standardize
from tenflex.coordinates.whiten import Whiten
from tenflex.decouple import decouple
from tenflex.problem import Problem
from tenflex.samples import Samples
from tenflex.sampling.jacobian import sample
from tenflex.solvers import ConstrainedALS, prepare

S, M, N = 20, 4, 3


@pytest.fixture
def numbers(generator):
    """Inputs, outputs and Jacobians of nothing in particular, by name."""
    shapes = {"inputs": (S, M), "outputs": (S, N), "jacobians": (S, N, M)}
    return {key: torch.randn(*shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}


@pytest.fixture
def samples(numbers):
    return Samples(**numbers)


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


# ---- Samples ----


def test_samples_are_selected_in_the_order_of_the_index(samples, numbers):
    index = torch.tensor([5, 2, 2, 19])
    chosen = samples.select(index)
    assert len(chosen) == 4
    assert len(samples) == S
    for key, tensor in numbers.items():
        assert torch.equal(getattr(chosen, key), tensor[[5, 2, 2, 19]])


@pytest.mark.parametrize(
    "form", [(S, N, M), (S, N * M, N * M), (S * N * M, S * N * M)], ids=["diagonal", "block", "full"]
)
def test_samples_that_follow_each_other_are_views(numbers, form):
    covariance = torch.ones(form, dtype=torch.float64) + (torch.eye(form[-1]) if form[-1] > M else 0)
    samples = Samples(**numbers, covariance=covariance)
    chosen = samples.select(torch.arange(3, 9))
    for key, tensor in numbers.items():
        assert getattr(chosen, key).data_ptr() == tensor[3].data_ptr()
        assert torch.equal(getattr(chosen, key), tensor[3:9])
    assert chosen.covariance.shape[0] * S == form[0] * 6


def test_samples_behind_the_last_are_refused(samples):
    with pytest.raises(IndexError):
        samples.select(torch.arange(S - 2, S + 1))
    assert torch.equal(samples.select(torch.tensor([-2, -1])).inputs, samples.inputs[-2:])
    assert torch.equal(samples.select(torch.tensor([4, 3, 2])).inputs, samples.inputs[[4, 3, 2]])


def test_what_is_reduced_in_another_order_is_the_same(samples, numbers):
    reduction = Standardize().choose(numbers["inputs"], numbers["outputs"])
    index = torch.tensor([5, 2, 2, 19])
    once, twice = samples.reduced(reduction, index), samples.reduced(reduction).select(index)
    for key in numbers:
        torch.testing.assert_close(getattr(once, key), getattr(twice, key))


@pytest.mark.parametrize("at_once", [1, 12, 50, 10**6])
def test_what_is_not_finite_is_found_in_any_part(numbers, at_once, monkeypatch):
    monkeypatch.setattr("tenflex.checks.AT_ONCE", at_once)
    Samples(**numbers)
    numbers["jacobians"][7, 2, 1] = numbers["jacobians"][19, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"but 2 of 240 numbers are NaN or infinite, the first at \[7, 2, 1\]"):
        Samples(**numbers)


def test_samples_keep_their_reduction(numbers, samples):
    reduction = Standardize().choose(numbers["inputs"], numbers["outputs"])
    reduced = samples.reduced(reduction)
    assert reduced.reduction is reduction
    assert reduced.select(torch.arange(3)).reduction is reduction


def test_samples_are_frozen(samples):
    with pytest.raises(dataclasses.FrozenInstanceError):
        samples.inputs = samples.outputs


def test_samples_problems_and_solutions_can_be_compared_and_hashed(numbers, samples):
    """By identity, or by settings around parts that are the same objects."""
    twin = Samples(**numbers)
    problem = Problem(samples, 2, Monomial(2))
    assert samples == samples
    assert samples != twin
    assert problem == Problem(samples, 2, Monomial(2))
    assert hash(problem) == hash(Problem(samples, 2, Monomial(2)))
    assert problem != Problem(twin, 2, Monomial(2))
    assert problem != Problem(samples, 3, Monomial(2))
    solution = decouple(problem, ConstrainedALS(1))
    assert solution == dataclasses.replace(solution)
    assert hash(solution) == hash(dataclasses.replace(solution))
    assert solution != decouple(problem, ConstrainedALS(1))
    assert len({samples, twin, problem, solution}) == 4


@pytest.mark.parametrize("key", ["inputs", "outputs", "jacobians"])
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda t: t.numpy(), TypeError, r"{} must be a torch.Tensor, got ndarray"),
        (lambda t: t.tolist(), TypeError, r"{} must be a torch.Tensor, got list"),
        (lambda t: t.round().long(), TypeError, r"{} must be real floating-point numbers, got torch.int64: convert"),
        (lambda t: t > 0, TypeError, r"{} must be real floating-point numbers, got torch.bool"),
        (lambda t: t.to(torch.complex128), TypeError, r"{} must be real floating-point numbers, got torch.complex128"),
        (lambda t: t[0], ValueError, r"expected inputs \(S, m\), outputs \(S, n\) and jacobians \(S, n, m\), got"),
        (lambda t: t[..., None], ValueError, r"expected inputs \(S, m\), outputs \(S, n\) and jacobians \(S, n, m\)"),
        (lambda t: t[..., :-1], ValueError, r"expected inputs \(S, m\), outputs \(S, n\) and jacobians \(S, n, m\)"),
        (lambda t: t[:-1], ValueError, r"\(S, n, m\), got .*19|as many samples, got 20 and 19"),
        (lambda t: t.sum(), ValueError, r"expected inputs \(S, m\), outputs \(S, n\) and jacobians"),
        (lambda t: changed(t, (3, 1), torch.nan), ValueError, r"{} must be finite, but .* the first at \[3, 1"),
        (lambda t: changed(t, (0, 0), -torch.inf), ValueError, r"{} must be finite, but .* NaN or infinite"),
    ],
)
def test_bad_samples_are_refused(numbers, key, spoil, error, message):
    numbers[key] = spoil(numbers[key])
    with pytest.raises(error, match=message.replace("{}", key)):
        Samples(**numbers)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_are_refused(numbers, count):
    with pytest.raises(ValueError, match=rf"at least 2 samples are needed, got {count}: pass more inputs"):
        Samples(**{key: tensor[:count] for key, tensor in numbers.items()})


def test_maps_without_inputs_or_outputs_are_refused(numbers):
    J = numbers["jacobians"]
    with pytest.raises(ValueError, match="a map needs at least one input and one output"):
        Samples(numbers["inputs"][:, :0], numbers["outputs"], J[:, :, :0])
    with pytest.raises(ValueError, match="a map needs at least one input and one output"):
        Samples(numbers["inputs"], numbers["outputs"][:, :0], J[:, :0])


# ---- Problem ----


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rank": 0}, ValueError, r"rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, ValueError, r"rank must be a whole number of at least 1, got 2.0"),
        ({"rank": True}, ValueError, r"rank must be a whole number of at least 1, got True"),
        (
            {"rank": 37},
            ValueError,
            r"rank must be at most 36 for 17 fitted samples of a map from 4 to 3 numbers, got 37",
        ),
        ({"rank": 22, "held_out": 0.5}, ValueError, r"rank must be at most 21 for 10 fitted samples"),
        ({"basis": 10}, TypeError, r"basis must be a basis such as BSpline\(10\), got 10"),
        ({"basis": BSpline}, TypeError, r"basis must be a basis such as BSpline\(10\), got <class"),
        ({"coupling": -1.0}, ValueError, r"coupling must be a finite number of at least 0, got -1.0"),
        ({"coupling": float("inf")}, ValueError, r"coupling must be a finite number of at least 0, got inf"),
        ({"coupling": "3"}, ValueError, r"coupling must be a finite number of at least 0, got '3'"),
        ({"factor": 0}, ValueError, r"factor must be a whole number of at least 1, got 0"),
        ({"factor": 3}, ValueError, r"factor must be at most the rank \(2\) .* got 3: a larger one stores more"),
        ({"rank": 6, "factor": 5}, ValueError, r"number of inputs that vary \(4\), got 5"),
        ({"rank": 6, "output_factor": 4}, ValueError, r"number of outputs that vary \(3\), got 4"),
        ({"held_out": -0.1}, ValueError, r"held_out must be a finite number of at least 0, got -0.1"),
        ({"held_out": 0.6}, ValueError, r"held_out must be a share of at most 0.5, got 0.6"),
        ({"coordinates": "whiten"}, TypeError, r"coordinates must be Standardize\(\) or Whiten\(\), got 'whiten'"),
        ({"coordinates": Whiten}, TypeError, r"coordinates must be Standardize\(\) or Whiten\(\), got <class"),
    ],
)
def test_bad_problems_are_refused(samples, settings, error, message):
    with pytest.raises(error, match=message):
        Problem(samples, **{"rank": 2, **settings})


def test_other_things_than_samples_are_refused(numbers):
    with pytest.raises(
        TypeError, match=r"samples must be a tenflex.Samples, got Tensor: use tenflex.sample\(f, points"
    ):
        Problem(numbers["inputs"], rank=2)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_say_nothing_are_refused(numbers, constant, dtype):
    numbers = {key: tensor.to(dtype) for key, tensor in numbers.items()}
    with pytest.raises(ValueError, match="all inputs are the same: expected samples that vary"):
        Problem(Samples(**{**numbers, "inputs": torch.full((S, M), constant, dtype=dtype)}), rank=2)
    with pytest.raises(ValueError, match="all outputs are the same: expected a map whose outputs vary"):
        Problem(Samples(**{**numbers, "outputs": torch.full((S, N), constant, dtype=dtype)}), rank=2)
    with pytest.raises(ValueError, match=r"all Jacobians are zero: .* pass inputs that excite the block"):
        Problem(Samples(**{**numbers, "jacobians": torch.zeros(S, N, M, dtype=dtype)}), rank=2)


def test_one_input_or_output_that_varies_is_enough(numbers):
    inputs, outputs = torch.zeros(S, M), torch.zeros(S, N)
    inputs[0, 0] = outputs[7, 2] = 1e-30
    assert Problem(Samples(inputs, outputs, numbers["jacobians"]), rank=2).rank == 2


def test_the_largest_rank_has_as_many_numbers_as_there_are_data(generator):
    """A node has m + n numbers to find besides its coefficients; the data are S n (m + 1)."""
    points = torch.rand(10, 6, generator=generator)
    samples = sample(lambda x: (x**2).sum(), points)
    most = 8 * (6 + 1) * 1 // (6 + 1)
    assert Problem(samples, rank=most, held_out=0.2).rank == most
    with pytest.raises(ValueError, match=f"rank must be at most {most} for 8 fitted samples of a map from 6 to 1"):
        Problem(samples, rank=most + 1, held_out=0.2)


@pytest.mark.parametrize(
    ("count", "share", "aside"), [(20, 0.15, 3), (20, 0.0, 0), (8, 0.01, 2), (7, 0.5, 0), (100, 0.5, 50), (9, 0.5, 4)]
)
def test_the_share_that_is_held_out(generator, count, share, aside):
    samples = sample(lambda x: x**2, torch.rand(count, 2, generator=generator, dtype=torch.float64))
    problem = Problem(samples, rank=1, held_out=share)
    assert len(problem.split.validation) + len(problem.split.test) == aside
    prepared, _ = prepare(problem)
    assert len(prepared.fitted.inputs) == count - aside
    if aside == 0:
        assert prepared.validation is prepared.test is None
        return
    parts = [one for one in (prepared.fitted, prepared.validation, prepared.test) if one is not None]
    assert len(parts) == (3 if aside >= 4 else 2)
    back = prepare(problem)[1]
    together = torch.cat([back.mean + part.inputs @ back.up.mT for part in parts])
    torch.testing.assert_close(together.sort(0).values, samples.inputs.sort(0).values, rtol=1e-12, atol=1e-12)


def test_the_same_samples_are_held_out_each_time(samples):
    first, second = (prepare(Problem(samples, rank=rank))[0] for rank in (1, 2))
    assert torch.equal(first.validation.inputs, second.validation.inputs)


def test_signal_at_held_out_samples_only_is_refused(generator):
    points = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    problem = Problem(sample(lambda x: x**2, points), rank=1)
    set_aside = torch.ones(40, dtype=torch.bool).index_fill(0, problem.split.fitted, False)
    J = torch.where(set_aside[:, None, None], problem.samples.jacobians, 0.0)
    with pytest.raises(ValueError, match=r"vary at held-out samples only, .* at the 34 fitted ones: .*held_out=0"):
        prepare(Problem(Samples(points, problem.samples.outputs, J), rank=1))
    F = torch.where(set_aside[:, None], problem.samples.outputs, 0.0)
    with pytest.raises(ValueError, match=r"vary at held-out samples only, .* at the 34 fitted ones: .*held_out=0"):
        prepare(Problem(Samples(points, F, problem.samples.jacobians), rank=1))


def test_problems_are_values(samples):
    problem = Problem(samples, 2, Monomial(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.rank = 3
    assert dataclasses.replace(problem, basis=Hinge(3)).basis == Hinge(3)
    assert problem.basis == Monomial(3)
