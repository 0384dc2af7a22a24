"""Blocks that cannot be cut, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tenflex.surgery.batch import count_samples, describe, tensors_in
from tenflex.surgery.carry import Carried
from tenflex.surgery.parts import Parts
from tenflex.surgery.paths import encloses, get_module, has_forward, title
from tenflex.surgery.record import Call, Tape


def only_call(model: nn.Module, tape: Tape, path: str) -> Call:
    """The call of the module at `path`; ValueError unless it was called exactly once."""
    module = get_module(model, path)
    calls = tape.of(module)
    if len(calls) == 1:
        return calls[0]
    if calls:
        raise several_calls(path, len(calls))
    if isinstance(module, torch.jit.ScriptModule):
        why = "it is a ScriptModule"
    else:
        why = "its parent reads its parameters instead" if has_forward(module) else "it only holds others"
    raise ValueError(
        f"{path!r} ({type(module).__name__}) is never called in the forward pass of the "
        f"{count_samples(tape.inputs)} inputs that were looked at, so that nothing can be put in its place (perhaps "
        f"{why}, or these inputs go another way): name a module around it or inside it"
    )


def several_calls(path: str, count: int) -> ValueError:
    """What to say of a module that is called several times where it must not be."""
    return ValueError(
        f"expected a module that is called once in a forward pass, or a row of modules that are called one after the "
        f"other as often, but {path!r} was called {count} times: name a module around all the calls, or one that each "
        f"call runs through, or give each call a module of its own"
    )


def require_alike(block: str, calls: Sequence[tuple[Call, Call]]) -> None:
    """Raise ValueError unless tensors of one shape arrive in all calls of a block, and one of another one leaves."""
    shapes = [tuple(one.shape) for call, _ in calls for one in (call.arrived,) if one is not None]
    left = [tuple(one.shape) for _, call in calls for one in call.left]
    if len(set(shapes)) > 1 or len(set(left)) > 1 or len(left) != len(calls):
        raise ValueError(
            f"expected a block that is given tensors of one shape in each of its {len(calls)} calls and gives one, but "
            f"{block!r} is given {shapes} and gives {left}: give each call a module of its own"
        )


def require_order(block: str, first: Call, last: Call) -> None:
    """Raise ValueError if the last module of a span runs before the first."""
    if last.start < first.start:
        raise ValueError(
            f"expected a span in the order of the forward pass, but in {block!r} {last.path!r} runs before "
            f"{first.path!r}: write '{last.path}:{first.path}'"
        )


def require_plain(first: Call, last: Call) -> None:
    """Raise ValueError unless one tensor arrives, and one or several leave, of real numbers."""
    if len(first.args) != 1 or first.kwargs or not isinstance(first.args[0], Tensor):
        given = [*map(describe, first.args), *(f"{name}={describe(one)}" for name, one in first.kwargs.items())]
        named = not first.args and len(first.kwargs) == 1
        raise ValueError(
            f"expected a block that is called with one tensor{', without a name' if named else ''}, as in block(x), "
            f"but {title(first.path)} is called with ({', '.join(given)}): name modules inside it, or change the call"
        )
    for call, end in ((first, first.args[0]), (last, last.output)):
        for one in tensors_in(end, Carried):
            if one.passage is None:
                continue
            raise ValueError(
                f"expected a block of modules that are still there, but {call.path!r} is in the block "
                f"{one.passage.way.block!r}, which was replaced: name modules outside of it, or around it"
            )
    if not isinstance(last.output, Tensor) and Parts.of(last.output) is None:
        kinds = (tuple, list, dict)
        other = isinstance(last.output, kinds) and type(last.output) not in kinds  # such as a named tuple
        raise ValueError(
            f"expected a block that returns one tensor, or a tuple, a list or a dict of them, but {title(last.path)} "
            f"returns {describe(last.output)}{', which is a class of its own' if other else ''}: name modules inside it"
            f"{', or return a plain one' if other else ''}"
        )
    passing = [(first, first.arrived, "arrives at"), *((last, one, "leaves") for one in last.left)]
    for call, tensor, verb in passing:
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(
                f"expected a block that maps real numbers, but what {verb} {title(call.path)} is "
                f"{describe(tensor)}: begin after the embedding, end before the decision"
            )
    if first.arrived is not None and first.arrived.ndim == 1:
        raise ValueError(
            f"expected a block that is given a row of numbers for each sample, but what arrives at {title(first.path)} "
            f"is {describe(first.arrived)}: begin where numbers have become rows, as by x[:, None]"
        )


def require_parameters(block: str, own: dict[str, nn.Parameter]) -> None:
    """Raise ValueError if a block has no parameters."""
    if not any(one.numel() for one in own.values()):
        raise ValueError(
            f"expected a block with parameters, but {block!r} has none and there is nothing to compress: widen it"
        )


def require_untied(model: nn.Module, block: str, own: Iterable[str]) -> None:
    """Raise ValueError if a parameter of the block is stored outside of it as well."""
    names = set(own)
    inside = {_storage(one): name for name, one in _parameters(model) if name in names}
    for name, parameter in _parameters(model):
        if name not in names and _storage(parameter) in inside:
            raise ValueError(
                f"expected a block with parameters of its own, but {inside[_storage(parameter)]!r} of {block!r} is "
                f"also {name!r}, so that nothing would be saved: give one of them a clone, or widen the block to hold "
                f"both"
            )


def parameters_below(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of the modules at `paths`, by their names in the network."""
    paths = tuple(paths)
    return {
        name: one for name, one in _parameters(model) if any(encloses(path, name.rpartition(".")[0]) for path in paths)
    }


def parameters_named(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters with these names; names of buffers are passed over."""
    names = set(names)
    return {name: one for name, one in _parameters(model) if name in names}


def _parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _storage(parameter: nn.Parameter) -> tuple[str, int]:
    """The same for parameters that share their numbers, whether or not they are one object."""
    pointer = parameter.data_ptr() if parameter.numel() else 0
    return (str(parameter.device), pointer) if pointer else ("", id(parameter))
