"""Measures of what a model preserves of another one."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tenflex.checks import require_eval
from tenflex.demo.digits import Digits
from tenflex.demo.networks import LeNet300
from tenflex.demo.train import accuracy as accuracy_in_training
from tenflex.evaluate.fidelity import (
    Fidelity,
    accuracy,
    agreement,
    balanced_agreement,
    fidelity,
    predict,
    relative_error,
    tail_error,
)


class Returning(nn.Module):
    """Whatever a function makes of the inputs."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> object:
        return self.function(x)


@pytest.fixture
def outputs(generator: torch.Generator) -> Tensor:
    return torch.randn(30, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def reference(generator: torch.Generator, outputs: Tensor) -> Tensor:
    return outputs + 0.3 * torch.randn(30, 4, generator=generator, dtype=torch.float64)


def test_relative_error_is_one_for_the_mean_and_zero_for_the_same(reference: Tensor) -> None:
    assert relative_error(reference, reference) == 0
    assert math.isclose(relative_error(reference.mean(0).expand_as(reference), reference), 1)


def test_relative_error_squared_is_the_unexplained_variance(outputs: Tensor, reference: Tensor) -> None:
    expected = (outputs - reference).square().sum() / (len(reference) * reference.var(0, correction=0).sum())
    assert math.isclose(relative_error(outputs, reference) ** 2, expected.item())


def test_relative_error_knows_no_units_no_origin_and_no_order(outputs: Tensor, reference: Tensor) -> None:
    error = relative_error(outputs, reference)
    assert 0.1 < error < 1
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert math.isclose(relative_error(1e6 * outputs, 1e6 * reference), error)
    assert math.isclose(relative_error(outputs + 5, reference + 5), error)
    assert math.isclose(relative_error(outputs[order], reference[order]), error)
    assert math.isclose(relative_error(outputs.reshape(30, 2, 2), reference.reshape(30, 2, 2)), error)


def test_relative_error_is_computed_in_double_precision(generator: torch.Generator) -> None:
    reference = 1e4 + torch.rand(1000, 3, generator=generator)
    shifted = reference + 0.5
    exact = (shifted.double() - reference.double()).norm() / (reference.double() - reference.double().mean(0)).norm()
    assert math.isclose(relative_error(shifted, reference), exact.item(), rel_tol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_infinitely_wrong(outputs: Tensor, reference: Tensor, bad: float) -> None:
    outputs[3, 1] = bad
    assert relative_error(outputs, reference) == math.inf


def test_agreement_is_the_share_of_equal_largest_outputs(outputs: Tensor) -> None:
    changed = outputs.clone()
    changed[:12] = outputs[:12].roll(1, 1)
    assert agreement(changed, outputs) == 18 / 30
    assert agreement(3 * outputs + 7, outputs) == 1
    assert agreement(outputs.reshape(5, 6, 4), outputs.reshape(5, 6, 4)) == 1


def test_fidelity_puts_the_measures_together(lenet: LeNet300, digits: Digits) -> None:
    worse = nn.Sequential(lenet, nn.Threshold(2.0, 0.0)).eval()
    inputs, labels = digits.test_images[:600], digits.test_labels[:600]
    with torch.no_grad():
        outputs, reference = worse(inputs), lenet(inputs)
    expected = Fidelity(
        relative_error=relative_error(outputs, reference),
        agreement=agreement(outputs, reference),
        accuracy=accuracy_in_training(worse, inputs, labels),
        balanced_agreement=balanced_agreement(outputs, reference),
    )
    found = fidelity(worse, lenet, inputs, labels)
    assert math.isclose(found.relative_error, expected.relative_error, rel_tol=1e-5)
    assert replace(found, relative_error=expected.relative_error) == expected
    assert f"{100 * found.accuracy:.2f} %" in str(found)
    assert "same decision, averaged over its classes" in str(found)
    assert 0 < found.relative_error < 1


def test_the_reference_may_be_given_by_its_outputs(lenet: LeNet300, digits: Digits) -> None:
    inputs, labels = digits.test_images[:300], digits.test_labels[:300].int()
    found = fidelity(lenet, predict(lenet, inputs), inputs, labels)
    assert found == Fidelity(0.0, 1.0, accuracy(predict(lenet, inputs), labels), 1.0)
    assert fidelity(lenet, lenet, inputs, labels) == found


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_chunks_change_nothing(chunk: int) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh()).double().eval()
    inputs = torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(predict(model, inputs, chunk), model(inputs).detach())
    assert not predict(model, inputs, chunk).requires_grad


@pytest.mark.parametrize("width", [None, 1, (2, 3)], ids=["vector", "column", "maps"])
def test_outputs_that_are_no_scores_have_no_agreement(width: object) -> None:
    shapes = {None: (-1,), 1: (-1, 1), (2, 3): (-1, 2, 3)}
    model = Returning(lambda x: (x if width == (2, 3) else x[:, :1]).reshape(shapes[width]))
    inputs = torch.randn(8, 6)
    assert fidelity(model, 2 * predict(model, inputs), inputs).agreement is None
    with pytest.raises(ValueError, match=r"accuracy needs outputs .* leave labels out"):
        fidelity(model, model, inputs, torch.zeros(8, dtype=torch.long))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1, 2], TypeError, "labels must be a torch.Tensor of whole numbers, got list"),
        (torch.zeros(3), TypeError, r"got torch.float32: convert with \.long\(\)"),
        (torch.zeros(3, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.zeros(2, dtype=torch.long), ValueError, r"one class for each of 3 samples, got shape \(2,\)"),
        (torch.zeros(3, 4, dtype=torch.long), ValueError, r"got shape \(3, 4\)"),
        (torch.tensor([0, 4, 1]), ValueError, "from 0 to 3, one for each output, got 0 to 4"),
        (torch.tensor([-1, 2, 1]), ValueError, "got -1 to 2"),
    ],
)
def test_bad_labels(labels: object, error: type[Exception], message: str) -> None:
    model = nn.Linear(2, 4).eval()
    with pytest.raises(error, match=message):
        fidelity(model, model, torch.randn(3, 2), labels)


def test_bad_inputs() -> None:
    model = nn.Linear(2, 4).eval()
    with pytest.raises(ValueError, match="expected at least 2 examples, got 0: pass more inputs"):
        fidelity(model, model, torch.zeros(0, 2))
    with pytest.raises(TypeError, match=r"expected batch 0 to be a tensor or an array, .*, got 1\.0"):
        predict(model, [[1.0, 2.0]])
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1, got 0"):
        predict(model, torch.zeros(3, 2), chunk=0)


def test_bad_outputs() -> None:
    inputs = torch.randn(6, 3)
    with pytest.raises(
        TypeError, match=r"must return floating-point tensors, got int64 \(6,\): leave out the decision"
    ):
        predict(Returning(lambda x: x.argmax(-1)), inputs)
    with pytest.raises(ValueError, match=r"one output for each of 6 samples, got shape \(3, 6\) and \(\)"):
        predict(Returning(lambda x: (x.mT, x.sum())), inputs)
    with pytest.raises(ValueError, match="none has a row for each in all batches"):
        predict(Returning(lambda x: (x.new_ones(4), x.new_ones(2))), inputs, chunk=4)
    with pytest.raises(ValueError, match=r"one output for each of 6 samples, got shape \(3, 6\)"):
        predict(Returning(lambda x: x.mT), inputs)
    with pytest.raises(ValueError, match=r"must have the same shape, got \(6, 3\) and \(6, 2\)"):
        fidelity(Returning(lambda x: x), Returning(lambda x: x[:, :2]), inputs)
    with pytest.raises(ValueError, match="outputs of all 6 samples are the same"):
        fidelity(Returning(lambda x: x), Returning(torch.ones_like), inputs)
    with pytest.raises(ValueError, match="reference outputs must be finite"):
        fidelity(Returning(lambda x: x), torch.full((6, 3), math.nan), inputs)
    with pytest.raises(TypeError, match=r"reference outputs must be a torch\.Tensor, got str"):
        fidelity(Returning(lambda x: x), "original", inputs)
    with pytest.raises(ValueError, match=r"at least two classes, last, got shape \(6, 1\)"):
        agreement(inputs[:, :1], inputs[:, :1])


def test_train_mode_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout())).eval()
    predict(model, torch.zeros(1, 2))
    model[1].train()
    with pytest.raises(ValueError, match=r"model must be in eval mode, but 2 of its modules .* the first is '1'"):
        predict(model, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"the first is 'Dropout': call \.eval\(\)"):
        require_eval("the block", nn.Dropout())


# several outputs, and inputs of every form


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class Scored(OrderedDict):  # type: ignore[type-arg]
    """As Hugging Face's outputs: a mapping, and attributes."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple with a loss": lambda y: (y, y.sum(), None),
    "dataclass": lambda y: Output(y, y.sum()),
    "mapping": lambda y: {"logits": y, "hidden": y**2},
    "mapping with attributes": lambda y: Scored(loss=y.sum(), logits=y, states=(y, 2 * y)),
    "mapping without logits": lambda y: {"scores": y, "decision": y.argmax(-1)},
    "state that is not per sample": lambda y: (y, y.new_ones(2, len(y), 3)),
}


@pytest.mark.parametrize("wrap", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_other_forms_are_judged_by_their_scores(wrap: Callable[[Tensor], Any]) -> None:
    inputs = torch.randn(30, 3)
    model, reference = nn.Linear(3, 4).eval(), nn.Linear(3, 4).eval()
    expected = fidelity(model, reference, inputs, chunk=7)  # products round by their sizes
    assert expected.agreement is not None
    found = fidelity(Returning(lambda x: wrap(model(x))), Returning(lambda x: wrap(reference(x))), inputs, chunk=7)
    assert found == expected


def test_several_outputs_are_taken_together() -> None:
    inputs = torch.randn(30, 6)
    both = Returning(lambda x: (x[:, :4], {"more": x[:, 4], "maps": x[:, :4].view(-1, 2, 2)}))
    assert torch.equal(predict(both, inputs, 7), torch.cat([inputs[:, :5], inputs[:, :4]], 1))
    worse = Returning(lambda x: (x[:, :4], {"more": 2 * x[:, 4], "maps": x[:, :4].view(-1, 2, 2)}))
    found = fidelity(worse, both, inputs)
    assert found.relative_error == relative_error(predict(worse, inputs), predict(both, inputs)) > 0
    assert found.agreement == 1  # of the first
    assert fidelity(worse, predict(both, inputs), inputs).relative_error == found.relative_error


class Product(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left * right


def test_inputs_of_every_form_that_is_compressed(unchanged_rng: Callable[[], Any]) -> None:
    model, reference = nn.Linear(3, 4).eval(), nn.Linear(3, 4).eval()
    x, labels = torch.randn(30, 3), torch.randint(4, (30,))
    expected = fidelity(model, reference, x, labels)
    loader = DataLoader(TensorDataset(x, labels), batch_size=8)
    for inputs in (x.double(), x.numpy(), loader, iter(x.split(8)), [{"input": x, "labels": labels}]):
        with unchanged_rng() if inputs is not loader else torch.random.fork_rng(devices=[]):
            assert fidelity(model, reference, inputs, labels.numpy()) == expected
    pairs = list(zip(x.split(8), x.split(8), strict=True))
    assert torch.equal(predict(Product().eval(), pairs), x**2)


def test_a_generator_is_read_once_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.randn(5, 3)

    monkeypatch.setattr("tenflex.evaluate.fidelity.MOST", 23)
    model = nn.Linear(3, 4).eval()
    assert len(predict(model, endless())) == 23
    assert fidelity(model, model, endless()).relative_error == 0


def test_what_networks_do_to_their_inputs_stays_theirs() -> None:
    inputs = torch.randn(30, 3)
    doubling = Returning(lambda x: x.mul_(2))
    given = inputs.clone()
    assert fidelity(doubling, doubling, inputs).relative_error == 0
    assert torch.equal(inputs, given)


def test_bad_labels_are_told_before_any_work() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("the network was run")

    with pytest.raises(TypeError, match="labels must be whole numbers"):
        fidelity(Returning(never), Returning(never), torch.randn(3, 2), np.zeros(3))
    with pytest.raises(TypeError, match=r"reference outputs must be a torch\.Tensor"):
        fidelity(Returning(never), "original", torch.randn(3, 2))


# rare decisions


def rare() -> tuple[Tensor, Tensor]:
    """Logits of 300 inputs of which 1 % are of the second class, and what a constant makes of them."""
    reference = torch.tensor([[3.0, 0.0]]).repeat(300, 1)
    reference[::100] = torch.tensor([0.0, 3.0])
    return torch.tensor([[3.0, 0.0]]).repeat(300, 1), reference


def test_rare_decisions_are_seen_in_the_balanced_agreement() -> None:
    outputs, reference = rare()
    assert agreement(outputs, reference) == 0.99
    assert balanced_agreement(outputs, reference) == 0.5
    assert balanced_agreement(reference, reference) == 1
    found = fidelity(Returning(lambda x: outputs[: len(x)]), reference, torch.randn(300, 1), chunk=300)
    assert found.balanced_agreement == 0.5
    assert found.tail_error is None
    assert "same decision as the original: 99.00 %\nsame decision, averaged over its classes: 50.00 %" in str(found)


def test_balanced_agreement_is_the_agreement_where_classes_are_as_frequent(generator: torch.Generator) -> None:
    reference = nn.functional.one_hot(torch.arange(40) % 4).double()
    outputs = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    assert math.isclose(balanced_agreement(outputs, reference), agreement(outputs, reference))
    assert balanced_agreement(outputs.view(5, 8, 4), reference.view(5, 8, 4)) == balanced_agreement(outputs, reference)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_the_error_of_scores_is_told_for_the_tails(shape: tuple[int, ...]) -> None:
    reference = torch.arange(-50.0, 50.0).reshape(shape)
    wrong = reference.clone()
    wrong[-10:] = 0
    middle = reference.clone()
    middle[20:80] *= 0.5
    assert tail_error(middle, reference) == 0
    centred = reference.double().flatten() - reference.double().mean()
    tails = torch.cat([centred[:10], centred[-10:]])
    assert math.isclose(tail_error(wrong, reference), (reference[-10:].double().norm() / tails.norm()).item())
    found = fidelity(Returning(lambda x: wrong), reference, torch.randn(100, 1), chunk=100)
    assert found.tail_error == tail_error(wrong, reference)
    assert "error on its lowest and highest tenth: 0.699" in str(found)
    assert tail_error(wrong * math.nan, reference) == math.inf


def test_tails_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"one output for each sample, got shape \(4, 2\)"):
        tail_error(torch.randn(4, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="outputs of all 4 samples are the same"):
        tail_error(torch.randn(4), torch.ones(4))


class OnSequences(nn.Module):
    """Positions times a number, those of padding times another one."""

    def __init__(self, inside: float, padding: float) -> None:
        super().__init__()
        self.inside, self.padding = inside, padding
        self.eval()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return x * torch.where(attention_mask[..., None] > 0, self.inside, self.padding)


def test_padding_is_not_compared() -> None:
    x, mask = torch.randn(6, 5, 3), torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 2])[:, None]
    batch = {"x": x, "attention_mask": mask.long()}
    original = OnSequences(1, 1)
    assert fidelity(OnSequences(1, 7), original, batch).relative_error == 0
    rows = x[mask]
    expected = relative_error(0.9 * rows, rows)
    for padding in (0.9, 7):
        found = fidelity(OnSequences(0.9, padding), original, batch)
        assert found.relative_error == pytest.approx(expected)
        assert found.agreement is None
    with pytest.raises(ValueError, match=r"mask='shown' is none of the inputs"):
        fidelity(OnSequences(1, 7), original, batch, mask="shown")


def test_outputs_of_positions_and_of_examples_are_compared_together() -> None:
    """As those of transformers with a pooler: of the first the positions that are no padding, of the second all."""

    class Both(OnSequences):
        def forward(self, x: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x, attention_mask), self.inside * x[:, 0]

    x, mask = torch.randn(6, 5, 3), torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 2])[:, None]
    batch = {"x": x, "attention_mask": mask.long()}
    found = fidelity(Both(0.9, 7), Both(1, 1), batch)
    rows, first = x[mask], x[:, 0]
    spreads = [(one - one.mean(0)).square().sum() for one in (rows, first)]
    errors = [(0.1 * one).square().sum() for one in (rows, first)]
    assert found.relative_error == pytest.approx(float(sum(errors) / sum(spreads)) ** 0.5, rel=1e-5)
    assert found.each == pytest.approx([float(a / b) ** 0.5 for a, b in zip(errors, spreads, strict=True)], rel=1e-5)
