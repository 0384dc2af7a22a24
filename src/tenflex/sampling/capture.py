"""What arrives at blocks and what leaves them, for many examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole
from tenflex.sampling.inputs import chunks
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch, call, clone, nearly_equal
from tenflex.surgery.paths import get_module
from tenflex.surgery.quiet import undisturbed


def capture(
    model: nn.Module, cuts: Sequence[Cut], batches: Iterable[Batch], *, chunk: int = 256
) -> dict[str, tuple[Float[Tensor, "S *in"], Float[Tensor, "S *out"]]]:
    """Run a network and keep what arrives at blocks and what leaves them.

    Args:
        model: The network, perhaps with other blocks replaced before; nothing of it changes.
        cuts: The blocks.
        batches: Batches of input, as from `gather`.
        chunk: The most examples that are run at a time.

    Returns:
        For the name of each block its inputs and its outputs, samples first: copies, without gradients.

    Raises:
        ValueError: if a forward pass fails, a block is not called exactly once in it, shapes differ between batches, or
            there are no batches.
    """
    ends = {cut.name: (Arriving(cut, model), Leaving(cut, model)) for cut in cuts}
    _listen(model, [end for pair in ends.values() for end in pair], batches, chunk)
    return {name: (first.result(), last.result()) for name, (first, last) in ends.items()}


def arrivals(model: nn.Module, cut: Cut, batches: Iterable[Batch], *, chunk: int = 256) -> Float[Tensor, "S *in"]:
    """What arrives at one block; see `capture`."""
    end = Arriving(cut, model)
    _listen(model, [end], batches, chunk)
    return end.result()


def _listen(model: nn.Module, ends: Sequence[End], batches: Iterable[Batch], chunk: int) -> None:
    """Run a network while its blocks' ends collect."""
    require_whole("chunk", chunk, at_least=1)
    with undisturbed(model), ExitStack() as hooks:
        for end in ends:
            hooks.callback(end.attach().remove)
        for part in chunks(batches, chunk):
            call(model, clone(part))
            for end in ends:
                end.finish_pass()


class End(ABC):
    """Collects what passes at one end of a block.

    Args:
        cut: The block.
        model: The network.
    """

    verb: ClassVar[str]

    def __init__(self, cut: Cut, model: nn.Module) -> None:
        self.cut, self.model = cut, model
        self.parts: list[Tensor] = []
        self.passes = 0

    @abstractmethod
    def attach(self) -> torch.utils.hooks.RemovableHandle:
        """Begin to listen."""

    def keep(self, tensor: Any) -> None:
        """Copy a tensor, before anything changes it in place."""
        if isinstance(tensor, Tensor):
            self.parts.append(tensor.detach().clone())

    def finish_pass(self) -> None:
        """Raise ValueError unless the block was called once since the last pass."""
        self.passes += 1
        if len(self.parts) != self.passes:
            raise ValueError(
                f"expected one tensor to arrive at {self.cut.first!r} and one to leave {self.cut.last!r} in each "
                f"forward pass, but it was another number for this input: find the cut with an example like it"
            )

    def result(self) -> Tensor:
        """All that passed."""
        shapes = {tuple(part.shape[1:]) for part in self.parts}
        if len(shapes) != 1:
            raise ValueError(
                f"expected samples of one shape, but what {self.verb} at {self.cut.name!r} has the shapes "
                f"{sorted(shapes)} without the first dimension: pass "
                f"{'inputs of one shape' if shapes else 'at least one batch'}"
            )
        return torch.cat(self.parts)


class Arriving(End):
    """What a block is given."""

    verb = "arrives"

    def attach(self) -> torch.utils.hooks.RemovableHandle:
        module = get_module(self.model, self.cut.first)
        # Before all other hooks, which are part of the block.
        return module.register_forward_pre_hook(lambda _, args: self.keep(args[0] if args else None), prepend=True)


class Leaving(End):
    """What a block gives."""

    verb = "leaves"

    def attach(self) -> torch.utils.hooks.RemovableHandle:
        return get_module(self.model, self.cut.last).register_forward_hook(lambda _, args, output: self.keep(output))


def positions(function: Callable[[Tensor], Tensor], inputs: Float[Tensor, "S *in"]) -> bool:
    """Whether a block acts on the last dimension alone, so that every position (a token) is a sample of its own.

    Args:
        function: The block, `(S, *in) -> (S, *out)`.
        inputs: Some of its inputs; the first few are tried, with noise of their size, so that zeros hide nothing.

    Returns:
        True if there are positions and the block gives the same for each of them in a batch of rows, up to rounding.
    """
    if inputs.ndim < 3 or not inputs.is_floating_point() or inputs.numel() == 0:
        return False
    few = inputs[:4].detach()
    noise = torch.randn(few.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    few = few + (few.double().std(correction=0) or 1.0) * noise.to(few)
    try:
        with torch.no_grad():
            together, apart = function(few.clone()), function(few.reshape(-1, few.shape[-1]))
            return nearly_equal(together, apart.reshape(*few.shape[:-1], -1))
    except Exception:  # whatever a block may raise when it is given another shape: then it acts on more
        return False
