"""Structured pruning by Torch-Pruning, a library of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tenflex.baselines.linear import is_dense
from tenflex.checks import require_eval, require_whole
from tenflex.evaluate.cost import stored_numbers
from tenflex.surgery.twin import duplicate

RATIOS = 32
"""From none to all: groups of which nothing would be left stay whole, so that larger ratios may prune less."""

HALVINGS = 5
"""Of the step in which the ratio lies."""


class PruningUnavailableError(ImportError):
    """Torch-Pruning is not installed."""

    def __init__(self) -> None:
        super().__init__("this method is that of Torch-Pruning: pip install 'tenflex[rivals]'")


def group_pruning(model: nn.Module, inputs: Tensor, parameters: int) -> nn.Module:
    """Drop the groups of channels and nodes with the smallest weights, all over the network, until it stores so little.

    The last linear layer keeps its outputs. Nothing is refitted: this is where fine-tuning begins.

    References:
        Fang, Ma, Song, Mi, Wang, "DepGraph: towards any structural pruning", 2023, https://arxiv.org/abs/2301.12900

    Args:
        model: Any module of one tensor, in eval mode; it is left as it is.
        inputs: An input or more, `(S, ...)`, by which the network is followed.
        parameters: The most numbers that the whole network may store.

    Returns:
        A new model in eval mode.

    Raises:
        PruningUnavailableError: if Torch-Pruning is not installed.
        ValueError: if the model is in train mode, has no linear layer, or cannot become so small.

    Example:
        >>> from tenflex.baselines import group_pruning
        >>> from tenflex.evaluate.cost import stored_numbers
        >>> stored_numbers(group_pruning(model, inputs, 120)) <= 120
        True
    """
    require_eval("model", model)
    require_whole("parameters", parameters, at_least=1)
    if stored_numbers(model) <= parameters:
        return duplicate(model).eval()
    for step in range(1, RATIOS):
        high, best = step / RATIOS, pruned(model, inputs, step / RATIOS)
        if stored_numbers(best) <= parameters:
            break
    else:
        raise ValueError(f"at no ratio of pruned nodes does it store at most {parameters:,} numbers")
    low = high - 1 / RATIOS
    for _ in range(HALVINGS):
        smaller = pruned(model, inputs, (low + high) / 2)
        if stored_numbers(smaller) <= parameters:
            high, best = (low + high) / 2, smaller
        else:
            low = (low + high) / 2
    return best


def pruned(model: nn.Module, inputs: Tensor, ratio: float) -> nn.Module:
    """A copy with a ratio of its channels and nodes pruned, the same all over the network."""
    try:
        import torch_pruning  # not a dependency: only this needs it
    except ImportError:
        raise PruningUnavailableError from None
    smaller = duplicate(model).eval()
    dense = [one for one in smaller.modules() if is_dense(one)]
    if not dense:
        raise ValueError("expected a network with linear layers or convolutions, got none")
    pruner: Any = torch_pruning.pruner.BasePruner(
        smaller,
        inputs[:1],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=dense[-1:],
    )
    pruner.step()
    return smaller.eval()
