"""What users pass as inputs: how it is read, and how examples are drawn from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tenflex.progress import Progress
from tenflex.sampling.inputs import READ_FOR_ONE, Reservoir, gather, read, run
from tenflex.surgery.batch import tensors_in


class Pair(nn.Module):
    """Two arguments that are needed, and one that is not."""

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return scale * (left + right)


class Named(nn.Module):
    def forward(self, *, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return tokens if mask is None else tokens * mask


class Supervised(nn.Module):
    """Takes labels, as networks with their own loss do."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return x


class Anything(nn.Module):
    def forward(self, **named: Tensor) -> Tensor:
        return sum(named.values())


IDENTITY = nn.Identity()


def numbers(count: int = 100) -> Tensor:
    return torch.arange(float(count))[:, None]


def drawn(inputs: Any, samples: int, seed: int = 0, model: nn.Module = IDENTITY) -> list[float]:
    batch = gather(model, inputs, samples, seed)
    assert isinstance(batch, Tensor)
    return batch.flatten().tolist()


# the draw


def test_the_seed_decides_which_examples_are_drawn(unchanged_rng: Callable[[], Any]) -> None:
    x = numbers()
    with unchanged_rng():
        few, again, other = drawn(x, 10, 1), drawn(x, 10, 1), drawn(x, 10, 2)
    assert few == again
    assert few != other
    assert len(set(few)) == 10
    assert few == sorted(few)
    assert drawn(x, 1000) == x.flatten().tolist()


@pytest.mark.parametrize("size", [1, 7, 33, 100])
def test_batches_give_the_draw_of_the_whole(size: int) -> None:
    """Also where the batches are sorted, of which the first are of one kind."""
    x = numbers()
    assert drawn(x.split(size), 10, 3) == drawn(iter(x.split(size)), 10, 3) == drawn(x, 10, 3)
    assert drawn(list(x.numpy()[:, None].swapaxes(1, 2)), 10, 3) == drawn(x, 10, 3)


def test_every_example_is_as_likely() -> None:
    """Each of 20 is drawn 5 of 20 times; the counts of 300 draws are within 4 standard deviations."""
    counts = torch.zeros(20)
    for seed in range(300):
        counts[gather(IDENTITY, numbers(20).split(3), 5, seed).long()] += 1  # type: ignore[union-attr]
    assert counts.sum() == 5 * 300
    assert (counts - 75).abs().max() < 4 * (300 * 0.25 * 0.75) ** 0.5


def test_sorted_classes_are_all_drawn() -> None:
    labels = torch.arange(10.0).repeat_interleave(300)[:, None]
    loader = DataLoader(TensorDataset(labels), batch_size=64)
    assert set(drawn(loader, 200)) == set(range(10))


def test_only_what_is_drawn_is_held() -> None:
    held = Reservoir(10, 0)
    for batch in numbers(1000).split(50):
        held.add(batch)
        assert sum(one.untyped_storage().nbytes() for one in tensors_in(held.whole)) == 10 * 4


def test_a_batch_that_is_filled_anew_is_copied() -> None:
    def reusing() -> Iterator[Tensor]:
        buffer = torch.empty(4, 1)
        for start in range(0, 40, 4):
            yield buffer.copy_(torch.arange(start, start + 4.0)[:, None])

    assert drawn(reusing(), 40) == list(range(40))
    x = numbers(10)
    gather(IDENTITY, x, 10).zero_()  # type: ignore[union-attr]
    assert x.any()


def test_mappings_and_tuples_keep_their_rows_together() -> None:
    x = numbers(50)
    parts = [{"tokens": part, "mask": part * 2} for part in x.split(8)]
    parts[1] = dict(reversed(parts[1].items()))  # the order of the names does not matter
    for inputs in ({"tokens": x, "mask": x * 2}, parts):
        batch = gather(Named(), inputs, 7)
        assert isinstance(batch, dict)
        assert torch.equal(batch["tokens"] * 2, batch["mask"])
        assert batch["tokens"].flatten().tolist() == drawn(x, 7)
    left, right = gather(Pair(), zip(x.split(8), (x * 2).split(8), strict=True), 7)
    assert torch.equal(left * 2, right)
    assert left.flatten().tolist() == drawn(x, 7)


# how far an iterable is read


def endless(most: int) -> Iterator[Tensor]:
    for start in itertools.count(0, 4):
        assert start < most, "read further than needed"
        yield torch.arange(start, start + 4.0)[:, None]


def test_a_generator_without_end_is_left_after_a_hundred_times_what_is_drawn() -> None:
    most = READ_FOR_ONE * 10
    found = drawn(endless(most), 10)
    assert found == drawn(numbers(most), 10)
    assert max(found) > 0.5 * most


class Streaming(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return iter(numbers(3000))


def test_what_knows_its_length_is_read_to_the_end() -> None:
    x = numbers(3000)
    assert drawn(x.split(100), 2) == drawn(x, 2)
    assert drawn(DataLoader(Streaming(), batch_size=100), 2) == drawn(x[: READ_FOR_ONE * 2], 2)


def test_progress_while_reading() -> None:
    seen: list[Progress] = []
    gather(IDENTITY, numbers(20).split(6), 5, on_progress=seen.append)
    assert [(str(one), one.done, one.total) for one in seen] == [("read", done, 4) for done in (1, 2, 3, 4)]
    seen.clear()
    gather(IDENTITY, iter(numbers(20).split(6)), 5, on_progress=seen.append)
    assert [(one.done, one.total) for one in seen] == [(done, 500) for done in (6, 12, 18, 20)]
    seen.clear()
    gather(IDENTITY, numbers(20), 5, on_progress=seen.append)
    assert seen == []


# forms of inputs

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(20)

FORMS: dict[str, tuple[nn.Module, Any, Any]] = {  # name: (network, what is passed, the batch)
    "tensor": (IDENTITY, X, X),
    "tensor that wants gradients": (IDENTITY, X.clone().requires_grad_(), X),
    "array": (IDENTITY, X.numpy(), X),
    "array backwards in memory": (IDENTITY, X.flip(0).numpy()[::-1], X),
    "array of the other byte order": (IDENTITY, X.numpy().astype(">f4"), X),
    "array of float64": (nn.Linear(3, 2), X.double().numpy(), X),
    "tensor of float64": (nn.Linear(3, 2), X.double(), X),
    "tensor of float32 for float64": (nn.Linear(3, 2).double(), X, X.double()),
    "whole numbers": (nn.Linear(3, 2), LABELS, LABELS),
    "arrays": (IDENTITY, list(X.numpy().reshape(4, 5, 3)), X),
    "tensors of different precision": (nn.Linear(3, 2), [X[:9], X[9:].double()], X),
    "loader": (IDENTITY, DataLoader(TensorDataset(X), batch_size=6), X),
    "loader with labels": (IDENTITY, DataLoader(TensorDataset(X, LABELS), batch_size=6), X),
    "loader of pairs": (Pair(), DataLoader(TensorDataset(X, Y), batch_size=6), (X, Y)),
    "loader of pairs with labels": (Pair(), DataLoader(TensorDataset(X, Y, LABELS), batch_size=6), (X, Y)),
    "nested pairs with labels": (Pair(), [((X[:9], Y[:9]), LABELS[:9]), ((X[9:], Y[9:]), LABELS[9:])], (X, Y)),
    "one pair": (Pair(), (X, Y), (X, Y)),
    "one pair of arrays": (Pair(), (X.numpy(), Y.numpy()), (X, Y)),
    "a tuple of batches": (IDENTITY, (X[:9], X[9:]), X),
    "pairs by name": (Pair(), {"right": Y, "left": X}, {"left": X, "right": Y}),
    "arrays by name": (Named(), {"tokens": X.numpy()}, {"tokens": X}),
    "labels by name": (Named(), [{"tokens": X, "labels": LABELS}], {"tokens": X}),
    "other labels by name": (Named(), {"tokens": X, "target": "cat"}, {"tokens": X}),
    "labels that are taken": (Supervised(), {"x": X, "labels": LABELS}, {"x": X, "labels": LABELS}),
    "mappings with labels beside": (Named(), [({"tokens": X}, LABELS)], {"tokens": X}),
    "any name": (Anything(), {"labels": X, "b": Y}, {"labels": X, "b": Y}),
}


def named_parts(batch: Any) -> dict[Any, Tensor]:
    named = (
        batch.items() if isinstance(batch, dict) else enumerate(batch) if isinstance(batch, tuple) else [("", batch)]
    )
    return dict(named)


@pytest.mark.parametrize(("model", "inputs", "expected"), FORMS.values(), ids=FORMS)
def test_forms_of_inputs(model: nn.Module, inputs: Any, expected: Any) -> None:
    found = gather(model, inputs, 100)
    assert type(found) is type(expected)
    torch.testing.assert_close(named_parts(found), named_parts(expected), rtol=0, atol=0)
    assert not any(one.requires_grad for one in named_parts(found).values())


def test_a_file_that_is_mapped_is_read_without_a_warning(tmp_path: Any, recwarn: pytest.WarningsRecorder) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    assert torch.equal(gather(IDENTITY, np.load(tmp_path / "x.npy", mmap_mode="r"), 100), X)  # type: ignore[arg-type]
    assert not recwarn.list


def test_networks_whose_arguments_are_not_known() -> None:
    class Compiled(nn.Module):
        forward = staticmethod(torch.relu)

    assert torch.equal(gather(Compiled(), [(X, LABELS)], 100), X)  # type: ignore[arg-type]


def exhausted() -> Iterator[Tensor]:
    batches = iter([torch.ones(4, 2)])
    next(batches)
    return batches


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], ValueError, "expected at least 2 examples, got 0: pass more inputs"),
        (torch.ones(0, 3), ValueError, "expected at least 2 examples, got 0: pass more inputs"),
        (exhausted(), ValueError, "a generator that was read before is empty"),
        (torch.ones(1, 3), ValueError, "expected at least 2 examples, got 1"),
        (torch.tensor(3.0), ValueError, "first dimension counts the examples"),
        ("images/", TypeError, "expected a tensor or an iterable of batches of tensors, got 'images/': load"),
        (3, TypeError, "expected a tensor or an iterable of batches of tensors, got 3"),
        (np.array(["a", "b"]), TypeError, "expected the inputs to be numbers that torch knows, got an array of <U1"),
        ([["a", "b"]], TypeError, "expected batch 0 to be a tensor.* got 'a'"),
        ([()], TypeError, "expected batch 0 to be a tensor"),
        ([{}], TypeError, "expected batch 0 to be a tensor"),
        (TensorDataset(torch.ones(4, 2)), TypeError, r"pass torch.utils.data.DataLoader\(dataset"),
        ({"input": [1, 2]}, TypeError, "expected the inputs to be a tensor"),
        ({"inputs": torch.ones(3)}, ValueError, r"Identity has no argument 'inputs'; did you mean 'input'\?: leave it"),
        ({3: torch.ones(3)}, ValueError, "Identity has no argument 3"),
        ([torch.ones(3, 2), torch.ones(3)], ValueError, r"float32 \(3, 2\) in batch 0 and float32 \(3,\) in batch 1"),
        ([torch.ones(3, 2), torch.ones(3, 2).double()], ValueError, "expected examples of one shape and dtype"),
        ([torch.ones(3, 2), torch.full((3, 2), torch.nan)], ValueError, "batch 1 must be finite"),
        (torch.tensor([[0.0], [torch.inf]]), ValueError, r"the inputs must be finite, but 1 of 2 .* at \[1, 0\]"),
        ((X, LABELS), ValueError, r"may be one batch with labels or 2 batches: pass \[\(inputs, labels\)\]"),
        ((X, X), ValueError, "or a list for several batches"),
        ((X.numpy(), X.numpy()), ValueError, "or a list for several batches"),
        (np.array([[0.0], [np.nan]]), ValueError, r"the inputs must be finite, but 1 of 2 .* at \[1, 0\]"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_inputs_that_are_refused(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gather(IDENTITY, inputs, 100)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Pair(), X, r"hold 2 tensors, since Pair takes \(left, right\), got float32 \(20, 3\): pass a tuple of them"),
        (Pair(), [X], "expected batch 0 to hold 2 tensors"),
        (Pair(), [(X,)], "expected batch 0 to hold 2 tensors"),
        (Named(), {"tokens": X, "mask": torch.ones(3, 3)}, "dimension counts the examples in the inputs"),
        (Named(), {"tokens": X, "index": LABELS}, "Named has no argument 'index'.*: leave it out"),
        (Pair(), [(X, Y), {"left": X, "right": Y}], "expected examples of one shape and dtype"),
        (Anything(), [{"x": torch.ones(3)}, {"y": torch.ones(3)}], "expected examples of one shape and dtype"),
    ],
)
def test_inputs_that_a_network_does_not_take(model: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather(model, inputs, 100)


@pytest.mark.parametrize(("samples", "seed"), [(1, 0), (2.5, 0), (10, -1), (True, 0)])
def test_numbers_that_are_refused(samples: Any, seed: int) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least"):
        gather(IDENTITY, torch.ones(5, 2), samples, seed)


def test_batches_come_as_they_are_read() -> None:
    """What is judged, or only looked at, is not read as a whole first."""
    first = next(read(IDENTITY, endless(8), 1000))
    assert torch.equal(first, numbers(4))  # type: ignore[arg-type]
    batches: Iterable[Any] = read(IDENTITY, endless(16), 10)
    assert [len(one) for one in batches] == [4, 4, 2]


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (nn.Conv2d(1, 2, 3), torch.ones(2, 1, 5, 5, dtype=torch.uint8), r"for images .* such as x\.float\(\) / 255"),
        (nn.Linear(3, 2), LABELS[:3][None], r"int64 \(1, 3\): .* convert measurements with \.float\(\)"),
        (nn.Linear(3, 2), torch.ones(2, 3, dtype=torch.bool), r"convert measurements with \.float\(\)"),
        (nn.Embedding(9, 2), torch.ones(2, 3, dtype=torch.int16), r"numbers of tokens or categories with \.long\(\)"),
    ],
    ids=["uint8", "int64", "bool", "int16"],
)
def test_whole_numbers_that_a_network_does_not_take(model: nn.Module, batch: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, batch)


def test_other_failures_are_told_as_they_are() -> None:
    for model, batch in ((nn.Embedding(2, 2), LABELS), (nn.Linear(4, 2), X)):
        with pytest.raises(ValueError, match="fails on the input") as failure:
            run(model, batch)
        assert "whole numbers" not in str(failure.value)
