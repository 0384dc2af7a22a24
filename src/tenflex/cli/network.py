"""A network from Python code and a file of weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tenflex.checks import near_names
from tenflex.cli.errors import InputError
from tenflex.cli.named import call_factory, find_object
from tenflex.cli.tensors import load_weights


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
        load_weights_(model, load_weights(weights), weights)
    return model.eval()


def load_weights_(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network, in place.

    Raises:
        InputError: if a weight is missing, unknown or of another shape.
    """
    needed = {name: tuple(one.shape) for name, one in model.state_dict().items() if isinstance(one, Tensor)}
    for name in sorted(needed.keys() - state.keys()):
        raise InputError(f"{source} has no weights for {name!r}{near_names(name, state)}")
    for name, one in state.items():
        if name not in needed:
            raise InputError(
                f"{source} has weights for {name!r}, which the network does not have{near_names(name, needed)}"
            )
        if tuple(one.shape) != needed[name]:
            raise InputError(
                f"{source} has weights of shape {tuple(one.shape)} for {name!r}, the network needs {needed[name]}"
            )
    model.load_state_dict(dict(state))
