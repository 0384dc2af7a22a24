"""A network from Python code and a file of weights."""

from __future__ import annotations

from torch import nn

from tenflex.cli.console import note
from tenflex.cli.errors import InputError
from tenflex.cli.named import call_factory, find_object
from tenflex.cli.weights import load_weights_


def load_network(text: str, weights: str | None) -> nn.Module:
    """The network that `package.module:name` gives, with weights from a file, in eval mode.

    Raises:
        InputError: if there is no such network, or the weights are not exactly those that it needs.
    """
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
    return model.eval()
