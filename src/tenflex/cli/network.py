"""A network from Python code and a file of weights."""

from __future__ import annotations

import os

import torch
from torch import nn

from tenflex.cli.console import note
from tenflex.cli.errors import InputError
from tenflex.cli.named import call_factory, find_object
from tenflex.cli.weights import load_weights_
from tenflex.distributed import launched


def load_network(text: str, weights: str | None, device: str | None = None) -> nn.Module:
    """The network that `package.module:name` gives, with weights from a file, in eval mode.

    Args:
        text: Its name.
        weights: The file; None for those that it has.
        device: Where it goes; None for where it is.

    Raises:
        InputError: if there is no such network or device, or the weights are not exactly those that it needs.
    """
    place = None if device is None else device_of(device)
    if text.endswith(".pt2"):
        raise InputError(
            f"{text} is an exported program, a graph without modules that could be replaced: name the Python code of "
            f"the network as package.module:name, with --weights"
        )
    found = find_object(text, "the network")
    made = callable(found) and not isinstance(found, nn.Module)
    model = call_factory(found, text) if made else found
    if not isinstance(model, nn.Module):
        got = f"{text} {'returned' if made else 'is'} {type(model).__name__}"
        raise InputError(f"{got}: expected a torch.nn.Module or a function that returns one")
    if weights is not None:
        for stripped in load_weights_(model, weights):
            note(stripped)
    return model.eval() if place is None else model.eval().to(place)


def device_of(text: str) -> torch.device:
    """The device that a text names, with a card of its own for each of the processes that torchrun started.

    Raises:
        InputError: if there is no such device, or none that computes.
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if text == "cuda" and launched() else text
    try:
        torch.empty(1, device=own).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        usable = "expected cpu, or cuda where there is a card"
        raise InputError(f"--device {text} cannot be used ({why}): {usable}") from None
    return torch.device(own)
