"""Copies of networks: what they share with the original, and that they use nothing else of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from tenflex.surgery.batch import Batch, call, clone, few, tensors_in
from tenflex.surgery.hooks import hooks_of, is_part
from tenflex.surgery.paths import title
from tenflex.surgery.quiet import undisturbed
from tenflex.surgery.reach import reachable


def twin(model: nn.Module) -> nn.Module:
    """A copy to be run in the network's place: it shares the parameters, and all else that a pass changes is its own.

    Backward hooks are left out: they may change gradients, and derivatives are to be those of the forward pass.
    """
    new = duplicate(model, [one for one in model.parameters() if not one.is_inference()])
    for module in new.modules():
        for name in ("_backward_hooks", "_backward_pre_hooks"):
            vars(module).get(name, {}).clear()
    return new


def copied(model: nn.Module, example: Batch) -> nn.Module:
    """A copy that shares nothing with the network.

    Args:
        model: The network, which is not run.
        example: One batch of input, on whose first few samples the copy is tried.

    Raises:
        ValueError: if the network cannot be copied, or its copy would still use modules or tensors of the original, as
            functions that are kept as attributes may do.
    """
    new = duplicate(model)
    used = _used(model, new, few(example))
    if used is not None:
        raise ValueError(
            f"expected a network whose copy stands alone, but {used} of the original is still used by its copy: "
            f"perhaps a function (a lambda, a closure) or a weak reference that is kept as an attribute or a hook "
            f"holds on to it; make it a method or a submodule"
        )
    return new


def duplicate(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """`copy.deepcopy`, for networks that keep results of forward passes too.

    Args:
        model: The network.
        shared: Tensors of it that are not copied.

    Raises:
        ValueError: if an attribute cannot be copied.
    """
    memo: dict[int, Any] = {id(one): one for one in shared}
    with torch.inference_mode(False), torch.no_grad():
        for one in reachable(model):
            if isinstance(one, Tensor) and id(one) not in memo and (one.is_inference() or not one.is_leaf):
                memo[id(one)] = _constant(one, memo)
        memo.update({id(hook): hook for hook in _observers(model)})
        try:
            return copy.deepcopy(model, memo)
        except Exception as error:  # whatever an attribute of a module may raise
            raise ValueError(
                f"expected a network that copy.deepcopy can copy, got {type(error).__name__}: {error}; the copy is "
                f"what blocks are replaced in: remove {_culprit(model)}"
            ) from None


def _constant(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """The numbers of a tensor that was made in inference mode or with gradients, which deepcopy does not copy."""
    if not tensor.is_inference():
        return copy.deepcopy(tensor.detach(), memo)
    numbers = tensor.detach().clone()
    return nn.Parameter(numbers, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else numbers


def _observers(model: nn.Module) -> Iterator[object]:
    """Hooks that hold nothing of the network: copies call the very same ones, so that who watches goes on watching."""
    for module in model.modules():
        for hook in hooks_of(module):
            if not is_part(hook) and not any(isinstance(one, (nn.Module, nn.Parameter)) for one in reachable(hook)):
                yield hook


def _culprit(model: nn.Module) -> str:
    """The attribute that cannot be copied, by its name."""
    known = {id(one): one for one in (*model.modules(), *model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(known))
            except Exception:
                return f"the attribute {name!r} of {title(path)}"
    return "what cannot be copied"


def _used(model: nn.Module, new: nn.Module, example: Batch) -> str | None:
    """What of a network is used when a copy of it runs; None if nothing is."""
    watch = _Watch(model)
    handle = register_module_forward_pre_hook(watch.enter)  # leaves the original alone, which others may be running
    try:
        with undisturbed(new), watch:
            call(new, clone(example))
    finally:
        handle.remove()
    return watch.found


class _Watch(TorchFunctionMode):
    """Looks out, in this thread, for modules and tensors of a network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.thread = get_ident()
        self.known = {id(one): repr(name) for name, one in (*model.named_parameters(), *model.named_buffers())}
        self.known |= {id(one): title(path) for path, one in model.named_modules()}
        self.found: str | None = None

    def enter(self, module: nn.Module, args: Any) -> None:
        """The forward pre-hook of all modules there are."""
        if get_ident() == self.thread:
            self.found = self.found or self.known.get(id(module))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tensors_in((args, kwargs)):
            self.found = self.found or self.known.get(id(one))
        return func(*args, **(kwargs or {}))
