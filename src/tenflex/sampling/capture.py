"""What arrives at blocks and what leaves them, for many examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole
from tenflex.progress import OnProgress, Progress, silent
from tenflex.sampling.inputs import chunks
from tenflex.scratch import Rows
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch, call, clone, count_samples
from tenflex.surgery.parts import MODULES, Parts
from tenflex.surgery.paths import get_module
from tenflex.surgery.quiet import undisturbed


class Which(Protocol):
    """Which rows of what passes at the ends of a block are kept, of a chunk whose first example is number `start`."""

    def arriving(self, chunk: Tensor, start: int) -> Tensor:
        """Those of what arrives, copied."""
        ...

    def leaving(self, chunk: Tensor, start: int) -> Tensor:
        """Those of what leaves, copied."""
        ...


class Removable(Protocol):
    """Something that listens, until it is removed."""

    def remove(self) -> None:
        """Listen no longer."""
        ...


class All:
    """All that passes."""

    def arriving(self, chunk: Tensor, start: int) -> Tensor:
        """A copy."""
        return chunk.clone()

    leaving = arriving


def capture(
    model: nn.Module,
    cuts: Sequence[Cut],
    batches: Iterable[Batch],
    rows: Mapping[str, Which] | None = None,
    *,
    chunk: int = 256,
    on_progress: OnProgress = silent,
) -> dict[str, tuple[Float[Tensor, "S *in"], Float[Tensor, "S *out"]]]:
    """Run a network and keep what arrives at blocks and what leaves them.

    Args:
        model: The network, perhaps with other blocks replaced before; nothing of it changes.
        cuts: The blocks.
        batches: Batches of input, as from `gather`.
        rows: For the name of a block which rows of it are kept; all of them where it is not named.
        chunk: The most examples that are run at a time.
        on_progress: Called after each chunk.

    Returns:
        For the name of each block its inputs and its outputs, samples first: copies, without gradients. Where a block
        is called several times, what passes for one sample stands together, in the order of the calls.

    Raises:
        ValueError: if a forward pass fails, a block is not called as often in it as when it was found, shapes differ
            between batches or calls, or there are no batches.
    """
    kept = {cut.name: (rows or {}).get(cut.name, All()) for cut in cuts}
    ends = {cut.name: (Arriving(cut, model, kept[cut.name]), Leaving(cut, model, kept[cut.name])) for cut in cuts}
    _listen(model, [end for pair in ends.values() for end in pair], batches, chunk, on_progress)
    return {name: (first.result(), last.result()) for name, (first, last) in ends.items()}


def arrivals(
    model: nn.Module, cut: Cut, batches: Iterable[Batch], rows: Which | None = None, *, chunk: int = 256
) -> Float[Tensor, "S *in"]:
    """What arrives at one block; see `capture`."""
    end = Arriving(cut, model, rows or All())
    _listen(model, [end], batches, chunk)
    return end.result()


def _listen(
    model: nn.Module, ends: Sequence[End], batches: Iterable[Batch], chunk: int, on_progress: OnProgress = silent
) -> None:
    """Run a network while its blocks' ends collect."""
    batches, done = list(batches), 0
    total = sum(map(count_samples, batches))
    require_whole("chunk", chunk, at_least=1)
    with undisturbed(model), ExitStack() as hooks:
        for end in ends:
            hooks.callback(end.attach().remove)
        for part in chunks(batches, chunk):
            call(model, clone(part))
            for end in ends:
                end.finish_pass()
            done += count_samples(part)
            on_progress(Progress("run", done, total))


class End(ABC):
    """Collects what passes at one end of a block.

    Args:
        cut: The block.
        model: The network.
        rows: What is kept.
    """

    verb: ClassVar[str]

    def __init__(self, cut: Cut, model: nn.Module, rows: Which) -> None:
        self.cut, self.model, self.rows = cut, model, rows
        self.kept, self.shapes, self.waiting = Rows(), set[tuple[int, ...]](), list[Tensor]()
        self.passes = self.seen = self.parts = 0

    @abstractmethod
    def taken(self, tensor: Tensor) -> Tensor:
        """What is kept of a chunk, copied before anything changes it in place."""

    @abstractmethod
    def attach(self) -> Removable:
        """Begin to listen."""

    def keep(self, tensor: Any) -> None:
        """Keep what is wanted of a tensor, examples first."""
        if isinstance(tensor, Tensor):
            tensor = tensor.movedim(self.cut.axis, 0)
            self.parts += 1
            if self.cut.calls == 1:
                self._take(tensor.detach())
            else:  # all calls first: what passes for one example stands together
                self.waiting.append(tensor.detach().clone())

    def _take(self, tensor: Tensor) -> None:
        taken = self.taken(tensor)
        self.shapes.add(tuple(taken.shape[1:]))
        if len(self.shapes) == 1:
            self.kept.add(taken)
        self.seen += len(tensor)

    def finish_pass(self) -> None:
        """Raise ValueError unless the block was called as often since the last pass as when it was found."""
        self.passes += 1
        calls = self.cut.calls
        if self.parts != self.passes * calls:
            expected = "one tensor" if calls == 1 else f"{calls} tensors"
            raise ValueError(
                f"expected {expected} to arrive at {self.cut.first!r}, and as many to leave {self.cut.last!r}, in each "
                f"forward pass, but it was another number for this input: find the cut with an example like it"
            )
        if self.waiting:
            self._take(together(self.waiting))
            self.waiting.clear()

    def result(self) -> Tensor:
        """All that passed."""
        if len(self.shapes) != 1:
            raise ValueError(
                f"expected samples of one shape, but what {self.verb} at {self.cut.name!r} has the shapes "
                f"{sorted(self.shapes)} without the first dimension: pass "
                f"{'inputs of one shape' if self.shapes else 'at least one batch'}"
            )
        return self.kept.joined()


def together(calls: Sequence[Float[Tensor, "s *n"]]) -> Float[Tensor, "s*calls *n"]:
    """What passes in several calls of a block, that of one example together.

    Raises:
        ValueError: if shapes differ between the calls.
    """
    shapes = [tuple(one.shape) for one in calls]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"expected tensors of one shape in all calls of a block, got {shapes}: pass inputs of one shape"
        )
    return torch.stack(list(calls), 1).flatten(0, 1)


class Arriving(End):
    """What a block is given."""

    verb = "arrives"

    def taken(self, tensor: Tensor) -> Tensor:
        return self.rows.arriving(tensor, self.seen)

    def attach(self) -> Removable:
        module = get_module(self.model, self.cut.first)
        # Before all other hooks, which are part of the block.
        return module.register_forward_pre_hook(lambda _, args: self.keep(args[0] if args else None), prepend=True)


class Leaving(End):
    """What a block gives."""

    verb = "leaves"

    def taken(self, tensor: Tensor) -> Tensor:
        return self.rows.leaving(tensor, self.seen)

    def attach(self) -> Removable:
        if self.cut.parts is None:
            last = get_module(self.model, self.cut.last)
            return last.register_forward_hook(lambda _, args, output: self.keep(output))
        return Heads(self.model, self.cut, self.cut.parts, self.keep)


class Heads:
    """Listens to what leaves a block of several tensors.

    Args:
        model: The network.
        cut: The block.
        parts: Its tensors.
        keep: Is given all of them, joined, as soon as the last one has left.
    """

    def __init__(self, model: nn.Module, cut: Cut, parts: Parts, keep: Callable[[Tensor], None]) -> None:
        self.parts, self.seen = parts, dict[str, Tensor]()
        self.keep = keep
        self.hooks = ExitStack()
        for path in parts.names if parts.kind == MODULES else (cut.last,):
            self.hooks.callback(get_module(model, path).register_forward_hook(self._hook(path)).remove)

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def left(module: nn.Module, args: Any, output: Any) -> None:
            if self.parts.kind != MODULES:
                self.keep(self.parts.joined(self.parts.listed(output)))
                return
            self.seen[path] = output.detach().clone()  # what follows may change it in place
            if len(self.seen) == len(self.parts.names):
                self.keep(self.parts.joined([self.seen.pop(name) for name in self.parts.names]))

        return left

    def remove(self) -> None:
        """Listen no longer."""
        self.hooks.close()
