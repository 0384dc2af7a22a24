"""The inputs that users pass, as batches that a network is called with: read, checked, drawn."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tenflex.checks import near_names, require_finite, require_ordinary, require_whole
from tenflex.progress import OnProgress, Progress, silent
from tenflex.scratch import Rows, ordered
from tenflex.surgery.batch import Batch, call, clone, count_samples, describe, each, take, tensors_in

READ_FOR_ONE = 100
"""Examples that are read for each one that is drawn, of iterables that do not know their length."""

LABELS = ("label", "labels", "target", "targets")
"""What labels are called in mappings; they are left out where a network does not take them."""


def gather(model: nn.Module, inputs: Any, samples: int, seed: int = 0, on_progress: OnProgress = silent) -> Batch:
    """Draw examples at random, each as likely as any other, however they are divided into batches.

    Memory is needed for the examples that are drawn and for one batch. An iterable that knows its length, such as a
    list or a `DataLoader`, is read to its end; to read less of it, pass `itertools.islice(loader, 100)`. Any other,
    such as a generator, may have no end: of that the first `100 * samples` examples are read.

    Args:
        model: The network that is to be called with them; nothing of it changes.
        inputs: One batch, or an iterable of batches. A batch is a tensor or an array, whose first dimension counts the
            examples; a tuple or list of them; or a mapping of them from argument names. Of a tuple the network is given
            as many entries as it has positional arguments without a default, in their order, and at least one: the
            rest are labels. A tuple by itself is one batch only for a network of several such arguments; else it is
            several batches, as `tensor.split` gives them: pass `[(inputs, labels)]`. Of a mapping `label`, `labels`,
            `target` and `targets` are left out if the network does not take them. Floating-point numbers are converted
            to those of the network's parameters, and all go to the device where these are.
        samples: How many examples to draw, at least 2; all are kept if there are no more.
        seed: Of the draw.
        on_progress: Called after every batch of an iterable.

    Returns:
        One batch, a row for each example that was drawn, in the order in which they came.

    Raises:
        TypeError: if the inputs are not tensors or arrays of numbers.
        ValueError: if there are fewer than 2 examples, their shapes disagree, a number is NaN or infinite, or the
            network takes other arguments.
    """
    require_whole("samples", samples, at_least=2)
    require_whole("seed", seed, at_least=0)
    drawn = Reservoir(samples, seed)
    for batch in read(model, inputs, READ_FOR_ONE * samples, on_progress):
        drawn.add(batch)
    batch = drawn.batch()
    if count_samples(batch) < 2:
        raise ValueError("expected at least 2 examples, got 1: pass more inputs (a few hundred are usual)")
    return batch


def read(model: nn.Module, inputs: Any, most: int, on_progress: OnProgress = silent) -> Iterator[Batch]:
    """The batches of what a user passes, one after the other, as a network is called with them; see `gather`.

    Args:
        model: The network.
        inputs: One batch, or an iterable of batches.
        most: The examples after which an iterable that does not know its length is left.
        on_progress: Called after every batch of an iterable.

    Raises:
        TypeError: if the inputs are not tensors or arrays of numbers.
        ValueError: if there are no examples, their shapes disagree, a number is NaN or infinite, or the network takes
            other arguments.
    """
    accepted = Accepted.by(model)
    one = isinstance(inputs, (Tensor, np.ndarray, Mapping)) or accepted.is_batch(inputs)
    if not one:
        _require_clear(inputs)
    length = 1 if one else length_of(inputs)
    total, like = 0, None
    for index, item in enumerate(_slices(inputs) if one else _iterable(inputs)):
        batch = accepted.batch(item, "the inputs" if one else f"batch {index}")
        like = like or (_form(batch), describe(batch))
        _require_alike(batch, index, *like)
        batch = batch if length is not None else take(batch, slice(most - total))
        total += count_samples(batch)
        if not one:
            on_progress(_progress(index + 1, length, total, most))
        yield batch
        if length is None and total >= most:
            break
    if total == 0:
        empty = "; a generator that was read before is empty" if isinstance(inputs, Iterator) else ""
        raise ValueError(f"expected at least 2 examples, got 0: pass more inputs (a few hundred are usual){empty}")


SLICE = 2**24
"""Bytes of one large batch that are converted and checked at a time: it may stand in a file larger than memory."""


def _slices(inputs: Any) -> Iterator[Any]:
    """One batch, in parts if it is large, which are read as they are used."""
    parts = list(inputs.values()) if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else [inputs]
    rows = [one for one in parts if has_rows(one)]
    sizes = {len(one) for one in rows}
    total = sum(one.nbytes for one in rows) if len(rows) == len(parts) and len(sizes) == 1 else 0
    if total <= SLICE:
        yield inputs
        return
    count = sizes.pop()
    step = max(1, count * SLICE // total)
    for start in range(0, count, step):
        yield _sliced(inputs, slice(start, start + step))


def has_rows(value: Any) -> bool:
    """Whether it is an array or a plain tensor with samples, of which parts can be taken."""
    if isinstance(value, Tensor):
        return not value.is_nested and value.layout is torch.strided and value.ndim > 0
    return isinstance(value, np.ndarray) and value.ndim > 0


def _sliced(inputs: Any, part: slice) -> Any:
    if isinstance(inputs, Mapping):
        return {name: one[part] for name, one in inputs.items()}
    return tuple(one[part] for one in inputs) if isinstance(inputs, tuple) else inputs[part]


def _progress(batches: int, length: int | None, total: int, most: int) -> Progress:
    """In batches where their number is known, else in examples."""
    return Progress("read", total, most) if length is None else Progress("read", batches, max(batches, length))


def _iterable(inputs: Any) -> Iterable[Any]:
    """The inputs, if they are an iterable of batches."""
    if isinstance(inputs, Dataset):
        raise TypeError(
            f"expected batches, got the dataset {type(inputs).__name__}, which gives single examples: "
            f"pass torch.utils.data.DataLoader(dataset, batch_size=64)"
        )
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise TypeError(
            f"expected a tensor or an iterable of batches of tensors, got {describe(inputs)}: load the inputs first"
        )
    return inputs


def _require_clear(inputs: Any) -> None:
    """Raise ValueError if a tuple may be inputs with labels as well as several batches; parts of one tensor are clear.

    So are tensors of several lengths: a last batch may be smaller.
    """
    tensors = isinstance(inputs, tuple) and all(isinstance(one, (Tensor, np.ndarray)) and one.ndim for one in inputs)
    dense = tensors and all(one.layout is torch.strided for one in inputs if isinstance(one, Tensor))
    if not dense or len(inputs) < 2 or len({len(one) for one in inputs}) > 1:
        return
    storages = {one.untyped_storage().data_ptr() if isinstance(one, Tensor) else id(one) for one in inputs}
    starts = {one.data_ptr() if isinstance(one, Tensor) else id(one) for one in inputs}
    if len(storages) > 1 or len(starts) < len(inputs):
        raise ValueError(
            f"expected batches, got {describe(inputs)}, which may be one batch with labels or {len(inputs)} batches: "
            f"pass [(inputs, labels)] for one batch with labels, or a list for several batches"
        )


def length_of(inputs: Any) -> int | None:
    """How many batches an iterable says that it has."""
    try:
        return len(inputs)
    except (TypeError, NotImplementedError):  # a loader of an iterable dataset has `__len__` as well, which raises
        return None


@dataclass(frozen=True)
class Accepted:
    """What a network can be called with.

    Args:
        network: The name of its type.
        needed: Its positional arguments without a default, in their order.
        names: All that can be given by name; None if any name can.
        dtype: Of its parameters; None where it has none, or several.
        device: Of them; None where there is none, or several.
    """

    network: str
    needed: tuple[str, ...]
    names: tuple[str, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None

    @classmethod
    def by(cls, model: nn.Module) -> Accepted:
        """What the `forward` of a network takes; of one that cannot be asked, one tensor or any names."""
        try:
            parameters = tuple(signature(model.forward).parameters.values())
        except (TypeError, ValueError):
            return cls(type(model).__name__, (), None, precision(model), whereabouts(model))
        positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        needed = tuple(one.name for one in parameters if one.kind in positional and one.default is one.empty)
        names = tuple(one.name for one in parameters if one.kind in by_name)
        anything = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
        known = None if anything else names
        return cls(type(model).__name__, needed, known, precision(model), whereabouts(model))

    def is_batch(self, inputs: Any) -> bool:
        """Whether a tuple is one batch of several arguments, not several batches of one."""
        several = isinstance(inputs, tuple) and len(inputs) >= len(self.needed) > 1
        return several and all(isinstance(one, (Tensor, np.ndarray)) for one in inputs)

    def batch(self, item: Any, name: str) -> Batch:
        """A batch as the network is called with it, of what a user or a loader gives; `name` is for messages."""
        while isinstance(item, (tuple, list)) and item and isinstance(item[0], (tuple, list)):
            item = item[0]  # ((a, b), labels)
        if isinstance(item, (tuple, list)) and item:
            item = item[0] if len(self.needed) < 2 or isinstance(item[0], Mapping) else tuple(item[: len(self.needed)])
        if isinstance(item, Mapping):
            named = self._by_name(item, name)
            return _checked({key: self.tensor(named[key], name) for key in sorted(named)}, name)
        found = tuple(self.tensor(one, name) for one in item) if isinstance(item, tuple) else self.tensor(item, name)
        batch = _checked(found, name)
        given = len(batch) if isinstance(batch, tuple) else 1
        if given < len(self.needed):
            raise ValueError(
                f"expected {name} to hold {len(self.needed)} tensors, since {self.network} takes "
                f"({', '.join(self.needed)}), got {describe(batch)}: pass a tuple of them, or a mapping by name"
            )
        return batch

    def _by_name(self, item: Mapping[Any, Any], name: str) -> dict[str, Any]:
        """The entries of a mapping that the network takes, labels left out."""
        names = item.keys() if self.names is None else self.names
        kept = {key: value for key, value in item.items() if key in names or key not in LABELS}
        for key in kept:
            if not isinstance(key, str) or key not in names:
                raise ValueError(
                    f"expected {name} to map names of arguments to tensors, but {self.network} has no argument {key!r}"
                    f"{near_names(str(key), names)}: leave it out, or call it as the network does"
                )
        return kept

    def tensor(self, value: Any, name: str) -> Any:
        """A tensor in the network's precision and place, of a tensor or an array; anything else as it is."""
        if isinstance(value, np.ndarray):
            value = from_numpy(value, name)
        if not isinstance(value, Tensor):
            return value
        require_ordinary(name, value)
        dtype = self.dtype if value.is_floating_point() else None
        return value.detach().to(self.device or value.device, dtype or value.dtype)


def precision(model: nn.Module) -> torch.dtype | None:
    """That of the floating-point parameters; None if there are none, or of several."""
    found = {one.dtype for one in model.parameters() if one.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def whereabouts(model: nn.Module) -> torch.device | None:
    """The device of all parameters; None if there are none, or they are on several."""
    found = {one.device for one in model.parameters()}
    return found.pop() if len(found) == 1 else None


def from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """The same numbers as a tensor, copied only where torch knows no such order of them."""
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(array.shape)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and never written to
            return torch.from_numpy(native)
    except TypeError:
        raise TypeError(f"expected {name} to be numbers that torch knows, got an array of {array.dtype}") from None


def _checked(batch: Any, name: str) -> Batch:
    """A batch whose tensors are finite and agree on the number of examples."""
    tensors = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple) else (batch,)
    if not tensors or not all(isinstance(one, Tensor) for one in tensors):
        raise TypeError(
            f"expected {name} to be a tensor or an array, a tuple (input, labels, ...) or a mapping of them, got "
            f"{describe(batch)}: convert what else it holds, or leave it out"
        )
    sizes = {len(one) if one.ndim else None for one in tensors}
    if len(sizes) > 1 or None in sizes:
        raise ValueError(
            f"expected tensors whose first dimension counts the examples in {name}, got {describe(batch)}: "
            f"add that dimension, or leave out what is not per example"
        )
    for one in tensors:
        require_finite(name, one)
    return batch


def _form(batch: Batch) -> Any:
    """The shape and the dtype of one example."""
    named = batch.items() if isinstance(batch, Mapping) else enumerate(tensors_in(batch))
    return {name: (tuple(one.shape[1:]), one.dtype) for name, one in named}


def _require_alike(batch: Batch, index: int, form: Any, first: str) -> None:
    """Raise ValueError if shapes or dtypes are not those of the first batch."""
    if _form(batch) != form:
        raise ValueError(
            f"expected examples of one shape and dtype, got {first} in batch 0 and {describe(batch)} in batch {index}: "
            f"bring them to one shape (if the second holds labels, leave it out)"
        )


class Reservoir:
    """A draw from a stream of examples, each as likely as any other; only those drawn are held.

    Every example is given a random number as it comes, and those with the smallest numbers stay. So the draw does not
    depend on how the examples are divided into batches.

    References:
        Vitter, "Random sampling with a reservoir", 1985, https://doi.org/10.1145/3147.3165

    Args:
        samples: How many to hold.
        seed: Of the random numbers.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self.samples = samples
        self.generator = torch.Generator().manual_seed(seed)
        self.numbers = torch.empty(0, dtype=torch.float64, device="cpu")
        self.places = torch.empty(0, dtype=torch.int64, device="cpu")
        self.columns: list[Rows] = []
        self.whole: Batch | None = None
        self.seen = 0

    def add(self, batch: Batch) -> None:
        """Go on with the next examples; those that are kept are copied."""
        size, free = count_samples(batch), self.samples - len(self.numbers)
        numbers = torch.rand(size, generator=self.generator, dtype=torch.float64, device="cpu")
        places = torch.arange(self.seen, self.seen + size, device="cpu")
        self.seen += size
        if free > 0:
            self._append(take(batch, torch.arange(min(free, size), device="cpu")))
            self.numbers = torch.cat([self.numbers, numbers[:free]])
            self.places = torch.cat([self.places, places[:free]])
        if size > free:
            self._replace(take(batch, slice(free, None)), numbers[free:], places[free:])

    def _append(self, batch: Batch) -> None:
        """Hold more examples."""
        self.form = batch
        self.columns = self.columns or [Rows() for _ in tensors_in(batch)]
        for rows, tensor in zip(self.columns, tensors_in(batch), strict=True):
            rows.add(tensor)

    def _replace(self, batch: Batch, numbers: Tensor, places: Tensor) -> None:
        """Let examples with smaller numbers take the places of those with the largest."""
        staying = torch.zeros(self.samples + len(numbers), dtype=torch.bool, device="cpu")
        staying[torch.cat([self.numbers, numbers]).argsort()[: self.samples]] = True
        leaving, coming = ~staying[: self.samples], staying[self.samples :]
        self.numbers[leaving], self.places[leaving] = numbers[coming], places[coming]
        old, new = leaving.nonzero()[:, 0], coming.nonzero()[:, 0]
        for held, tensor in zip(tensors_in(self._joined()), tensors_in(batch), strict=True):
            held[old] = tensor[new]

    def _joined(self) -> Batch:
        """All that is held, as one batch; in files where it is large."""
        if self.whole is None:
            joined = iter([rows.joined() for rows in self.columns])
            self.whole, self.columns = each(self.form, lambda _: next(joined)), []
        return self.whole

    def batch(self) -> Batch:
        """The examples that were drawn, in the order in which they came."""
        order = self.places.argsort()
        if torch.equal(order, torch.arange(len(order), device="cpu")):
            return self._joined()
        return each(self._joined(), lambda one: ordered(one, order) if one.ndim and len(one) == len(order) else one)


def chunks(batches: Iterable[Batch], chunk: int) -> Iterator[Batch]:
    """The batches, in parts of at most `chunk` examples."""
    for batch in batches:
        for start in range(0, count_samples(batch), chunk):
            yield take(batch, slice(start, start + chunk))


def run(model: nn.Module, batch: Batch) -> Any:
    """The network's output for a copy of a batch.

    Raises:
        ValueError: if the forward pass fails; where whole numbers may be the reason, with what to do about them.
    """
    try:
        return call(model, clone(batch))
    except ValueError as error:
        dtypes = {one.dtype for one in tensors_in(batch) if not one.is_floating_point() and not one.is_complex()}
        if not dtypes or (dtypes == {torch.int64} and not re.search("float|half", str(error), re.IGNORECASE)):
            raise  # such as for a token that an embedding does not have
        scaled = ", for images as in training, such as x.float() / 255" if torch.uint8 in dtypes else " with .float()"
        raise ValueError(
            f"{error}: whole numbers are passed on as they are; convert measurements{scaled}, and numbers of tokens or "
            f"categories with .long()"
        ) from None
