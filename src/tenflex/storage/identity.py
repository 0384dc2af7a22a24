"""What a network is besides its state: modules, tensors outside of the state, and what it does with made-up inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from tenflex.storage.fingerprint import distance, fingerprint, read_fingerprint, rounding, slack
from tenflex.storage.probe import Probe, dtype_called
from tenflex.storage.state import OWN, hidden_tensors
from tenflex.surgery.batch import call, tensors_in
from tenflex.surgery.facts import is_plain, require_form
from tenflex.surgery.quiet import passing
from tenflex.surgery.reach import Numberless
from tenflex.surgery.twin import twin

OF_TRAINING = {"training", "inplace", "p", "dropout", "momentum", "device", "dtype"}
"""Settings of torch's modules that change nothing in eval mode, or follow the weights."""


def identity_of(model: nn.Module, probe: Probe | None) -> dict[str, Any]:
    """What `differences` compares, in plain values: nothing of it depends on the machine, or on names in the code."""
    before, tried = hidden_prints(model), model if probe is None else twin(model).eval()
    answers = None if probe is None else responses(tried, probe)
    steady = before if answers is None else hidden_prints(tried)  # what a pass leaves behind is not of the network
    return {
        "modules": modules_of(model),
        "hidden": {name: one for name, one in before.items() if steady.get(name) == one},
        "probe": None if probe is None or answers is None else probe.to_dict(),
        "responses": answers,
        "tolerance": None if answers is None else tolerance(model),
        "device": device_of(model).type,
    }


def device_of(model: nn.Module) -> torch.device:
    """That of the first parameter."""
    return next((one.device for one in model.parameters()), torch.device("cpu"))


def tolerance(model: nn.Module) -> float:
    """How far the responses of another machine may be from those of this one."""
    kinds = [one.dtype for one in model.parameters() if one.is_floating_point()]
    exact = max([1e-4, *map(rounding, kinds)])
    return exact if device_of(model).type == "cpu" else 10 * exact  # accelerators round products further


def modules_of(model: nn.Module) -> dict[str, Any]:
    """The class of every module, and its settings."""
    return {path: [class_name(one), settings(one)] for path, one in model.named_modules()}


def class_name(module: nn.Module) -> str:
    """The class, where torch's own have a prefix."""
    kind = type(module)
    return f"nn.{kind.__name__}" if is_of_torch(module) else kind.__name__


def is_of_torch(module: nn.Module) -> bool:
    """Whether the module is one of torch's own."""
    return type(module).__module__.startswith("torch.nn.")


def settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module; of modules that are not torch's own, only numbers."""
    known = (lambda one: is_plain(one) or is_listed(one)) if is_of_torch(module) else is_number
    chosen = {name: one for name, one in vars(module).items() if name not in OWN | OF_TRAINING and name[0] != "_"}
    return {name: list(one) if isinstance(one, tuple) else one for name, one in chosen.items() if known(one)}


def is_listed(value: object) -> bool:
    """Whether a value is a tuple of plain ones."""
    return isinstance(value, tuple) and all(map(is_plain, value))


def is_number(value: object) -> bool:
    """Whether a value is a number or a truth value."""
    return type(value) in (bool, int, float)


def hidden_prints(model: nn.Module) -> dict[str, Any]:
    """The dtype and the fingerprint of every tensor that is in no state_dict."""
    return {
        name: [str(one.dtype).removeprefix("torch."), fingerprint(one)]
        for name, one in hidden_tensors(model).items()
        if not one.is_meta
    }


def responses(model: nn.Module, probe: Probe) -> list[Any] | None:
    """What `run` gives, in plain values; None if the network fails on inputs that were made up."""
    try:
        return [[path, one] for path, one in run(model, probe).items()]
    except Exception:  # whatever a network may raise on inputs that it was not made for
        return None


def run(model: nn.Module, probe: Probe) -> dict[str, list[float]]:
    """The fingerprints of what every module returns first for made-up inputs, in order, the network's own last.

    Modules inside of a block that was replaced return no numbers; only the last one does.
    """
    found: dict[str, list[float]] = {}

    def see(path: str, module: nn.Module, args: Any, output: Any) -> None:
        tensors = list(tensors_in(output))
        if path not in found and not any(isinstance(one, Numberless) for one in tensors):
            found[path] = fingerprint(*tensors)

    with passing(model), ExitStack() as hooks:
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(partial(see, path)).remove)
        output = call(model, probe.batch(device_of(model)))
        found[""] = fingerprint(*tensors_in(output))
    return found


def differences(saved: Any, model: nn.Module) -> Iterator[str]:
    """How a network differs from the one of which `identity_of` was saved: nothing if it is the same.

    Raises:
        ValueError: if what was saved has another form.
    """
    read = _read(saved)
    probe, found, failure = read["probe"], {}, None
    tried = model if probe is None else twin(model).eval()
    try:
        found = {} if probe is None else run(tried, probe)
    except Exception as error:  # whatever a network may raise on inputs that it was not made for
        failure = str(error)
    changed = list(_changed_modules(read["modules"], modules_of(model)))
    yield from (text for text, certain in changed if certain or probe is None)
    yield from _changed_tensors(read["hidden"], hidden_prints(tried), probe is None)  # some are made by a forward pass
    if failure is not None and read["device"] == "cpu":
        yield f"it fails on inputs that it was compressed with: {failure}"
    if found:
        told = "".join(f"; {text}" for text, certain in changed if not certain)
        yield from (one + told for one in _changed_responses(read, found, model))


def _read(saved: Any) -> dict[str, Any]:
    """What `identity_of` gave, if it has the form."""
    known = {"modules", "hidden", "probe", "responses", "tolerance", "device"}
    require_form("what the network was", saved, isinstance(saved, Mapping) and saved.keys() == known, str(known))
    for name in ("modules", "hidden"):
        pairs = isinstance(saved[name], Mapping) and all(
            isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) for one in saved[name].values()
        )
        require_form(name, saved[name], pairs, "pairs by name")
    for one in saved["modules"].values():
        require_form("settings", one[1], isinstance(one[1], Mapping), "values by name")
    if saved["probe"] is None:
        return dict(saved)
    answers = saved["responses"]
    good = isinstance(answers, list) and all(isinstance(one, list) and len(one) == 2 for one in answers)
    require_form("responses", answers, good and bool(answers), "pairs")
    require_form("tolerance", saved["tolerance"], is_number(saved["tolerance"]), "a number")
    return {**saved, "probe": Probe.from_dict(saved["probe"])}


def _changed_modules(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Modules with another class or other settings; certain are those of torch's own, whose meaning is known."""
    for path, (kind, values) in saved.items():
        title = repr(path) if path else "the network"
        if path not in now:
            yield f"{title} ({kind}) is missing", False
            continue
        other, found = now[path]
        certain = kind.startswith("nn.") and other.startswith("nn.")
        if other != kind:
            yield f"{title} is {other}, was {kind}", certain
            continue
        for name in values.keys() & found.keys():
            if repr(values[name]) != repr(found[name]):  # of which NaN is equal to NaN
                yield f"{title} ({kind}) has {name}={found[name]!r}, had {values[name]!r}", certain


def _changed_tensors(saved: Mapping[str, Any], now: Mapping[str, Any], strict: bool) -> Iterator[str]:
    """Tensors outside of the state with other numbers; those that are missing may be made by a forward pass."""
    for name, (kind, numbers) in saved.items():
        numbers = read_fingerprint(name, numbers)
        if name not in now:
            if strict:
                yield f"{name!r}, which is in no state_dict, is missing"
            continue
        other, found = now[name]
        if kind != other:
            yield f"{name!r}, which is in no state_dict, is {other}, was {kind}"
        elif distance(numbers, found) > slack(dtype_called(kind)):
            yield f"{name!r}, which is in no state_dict and so not in the file, has other numbers"


def _changed_responses(saved: Mapping[str, Any], found: Mapping[str, list[float]], model: nn.Module) -> Iterator[str]:
    """Whether the network gives other outputs on made-up inputs, and where that begins."""
    far = {path: distance(read_fingerprint(path, one), found.get(path, [-1.0] * 6)) for path, one in saved["responses"]}
    if far.get("", 0.0) > saved["tolerance"]:
        path = next(path for path, one in far.items() if one > saved["tolerance"])
        where = f"{path!r} ({type(model.get_submodule(path)).__name__})" if path in found and path else "the network"
        apart = f", by {far['']:.2g} of their size" if math.isfinite(far[""]) else ""
        yield (
            f"its outputs for the same inputs are others{apart}: the first module whose output differs is {where}, "
            f"whose forward pass, or a value in it, has changed"
        )
