"""Networks that cannot be used at all, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tenflex.checks import require_ordinary
from tenflex.surgery.paths import title


def require_module(model: object) -> None:
    """Raise TypeError or ValueError unless the network is one whose modules can be run, copied and replaced."""
    for name, tensor in _tensors(require_modules(model)):
        require_ordinary(repr(name), tensor)


def require_modules(model: object) -> nn.Module:
    """The network; TypeError or ValueError unless it is made of Python modules of known sizes, wherever they are."""
    if isinstance(model, torch.export.ExportedProgram):
        raise TypeError("expected a torch.nn.Module, got an ExportedProgram: pass the module that was exported")
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "expected a network of Python modules, got a ScriptModule, whose forward pass is compiled and cannot be "
            "cut: pass the module that it was made from"
        )
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"expected the network itself, got it inside {type(model).__name__}: pass model.module")
    if "_orig_mod" in model._modules:
        raise ValueError("expected the network itself, got the result of torch.compile: pass model._orig_mod")
    for path, module in model.named_modules():
        _require_python(path, module)
    for name, tensor in _tensors(model):
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise ValueError(
                f"expected a trained network, but {name!r} has no shape yet: run the network on a batch, train it"
            )
    return model


def _require_python(path: str, module: nn.Module) -> None:
    """Raise ValueError unless the forward pass of one module is Python code, and that of its class."""
    kinds = [kind.__module__ for kind in type(module).__mro__]
    if any(kind.startswith("torch.export.") for kind in kinds):
        raise ValueError(
            f"expected a network as it was trained, got one that torch.export made, at {title(path)}: pass the module "
            f"that was exported"
        )
    if any(".quantized." in kind for kind in kinds):
        raise ValueError(
            f"expected a network of floating-point numbers, but {title(path)} ({type(module).__name__}) is quantised: "
            f"compress the network first and quantise the result"
        )
    if isinstance(module, torch.jit.ScriptModule):  # as a part it is copied and run as a whole
        return
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        raise ValueError(
            f"expected a network that is not compiled, but {title(path)} is (torch.compile): compress the network as "
            f"it was before, and compile the result"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"expected modules whose forward pass is that of their class, but {title(path)} "
            f"({type(module).__name__}) has a `forward` of its own, which a copy would share with the original: "
            f"remove it (`del module.forward`, or undo what put it there), or write it as a method of a class"
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
