"""What goes around a block: the other part of the sum that its output becomes part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tenflex.sampling.capture import All, Which
from tenflex.surgery import Cut
from tenflex.surgery.paths import get_module
from tenflex.surgery.record import name_of

SUMS = {"add", "__add__", "__radd__", "add_", "__iadd__"}


class Skips(TorchFunctionMode):
    """Watches forward passes, as of `capture`, for what is added to the outputs of blocks.

    Example:
        >>> with Skips(model, cuts) as skips:
        ...     passed = capture(model, cuts, batches)
        >>> skips.of("mlp")  # what was added to the output of "mlp", all passes one after another; or None

    Args:
        model: The network.
        cuts: The blocks.
        rows: For the name of a block which rows of what leaves it are wanted; all of them where it is not named.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[Cut], rows: Mapping[str, Which] | None = None) -> None:
        super().__init__()
        self.model, self.cuts, self.rows = model, cuts, rows or {}
        self.axes = {cut.name: cut.axis for cut in cuts}
        self.seen = {cut.name: 0 for cut in cuts}
        self.waiting: dict[str, Tensor] = {}
        self.passes = {cut.name: 0 for cut in cuts}
        self.parts: dict[str, list[Tensor]] = {cut.name: [] for cut in cuts}
        self.hooks = ExitStack()

    def __enter__(self) -> Skips:
        for cut in self.cuts:
            module = get_module(self.model, cut.last)
            self.hooks.callback(module.register_forward_hook(self._hook(cut.name)).remove)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.hooks.close()
        self.waiting.clear()

    def _hook(self, name: str) -> Any:
        def left(module: nn.Module, args: Any, output: Any) -> None:
            self.passes[name] += 1
            if isinstance(output, Tensor):
                self.waiting[name] = output

        return left

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.waiting and name_of(func) in SUMS and len(args) == 2 and not kwargs:
            self._added(*args)
        return func(*args, **(kwargs or {}))

    def _added(self, one: Any, other: Any) -> None:
        """Keep what is added to the output of a block, before the sum is perhaps written over it."""
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
            return
        for name, output in list(self.waiting.items()):
            for own, beside in ((one, other), (other, one)):
                if same_memory(own, output):
                    examples = beside.detach().movedim(self.axes[name], 0)
                    self.parts[name].append(self.rows.get(name, All()).leaving(examples, self.seen[name]))
                    self.seen[name] += len(examples)
                    del self.waiting[name]
                    break

    def of(self, name: str) -> Float[Tensor, "S *out"] | None:
        """What was added to the output of a block, once in every pass; None if that is not so."""
        parts = self.parts[name]
        return torch.cat(parts) if parts and len(parts) == self.passes[name] else None


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, perhaps as two objects."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
