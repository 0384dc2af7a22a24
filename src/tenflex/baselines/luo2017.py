"""Dropping hidden nodes of linear layers, what reads the others being fitted anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.linear import linear_layers, put_, require_unshared
from tenflex.baselines.moments import listening
from tenflex.checks import require_eval, require_finite, require_whole
from tenflex.evaluate.fidelity import predict
from tenflex.kept.choose import Moments, eliminated
from tenflex.kept.recognise import TRIED, Passage, layer_before, passages
from tenflex.nn.low_rank import make_linear
from tenflex.surgery.twin import duplicate

PART = 256
"""How many inputs run at a time."""


@dataclass(frozen=True)
class Hidden:
    """Nodes between linear layers.

    Args:
        before: The layers that make them: one, or the two of a gated layer.
        after: The layer that reads them, and nothing else does.
    """

    before: tuple[str, ...]
    after: str


def node_dropping(
    model: nn.Module, inputs: Tensor, parameters: int, *, layers: Sequence[str] | None = None
) -> nn.Module:
    r"""Drop hidden nodes between linear layers and fit what reads them anew, within a budget of stored numbers.

    Of every hidden layer the same share of the nodes stays. They are chosen greedily: the one goes without which the
    outputs of the next layer are met best by the others,

    .. math:: \min_{T, W} \sum_s \| y_s - W x_s^T - b \|^2, \qquad |T| = k,

    and W, b are then the least-squares fit with a small ridge towards the layer as it is. Layers follow from front to
    back, each fitted to the original outputs y from what arrives in the compressed network. Without labels, nothing
    random. Gates lose their nodes with what they gate.

    References:
        Luo, Wu, Lin, "ThiNet: a filter level pruning method for deep neural network compression", 2017,
        https://arxiv.org/abs/1707.06342
        He, Zhang, Sun, "Channel pruning for accelerating very deep neural networks", 2017,
        https://arxiv.org/abs/1707.06168 (what arrives in the compressed network, fitted to the original outputs)

    Args:
        model: Any module of one tensor, in eval mode; it is left as it is.
        inputs: Calibration inputs, `(S, ...)`, unlabelled.
        parameters: The most numbers that the named layers may store together, biases included.
        layers: Names of `nn.Linear` modules; None for all of them.

    Returns:
        A new model in eval mode.

    Raises:
        TypeError: if inputs or outputs are not one tensor, or `layers` is a single string.
        ValueError: if the model is in train mode; a name is unknown or its layer shares its numbers with another one;
            no two of the layers have a known activation function between them alone; or the budget is below one node
            everywhere or above what the layers store now.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
        >>> smaller = node_dropping(model, torch.randn(100, 20), parameters=400)
        >>> sum(one.numel() for one in smaller.parameters()) <= 400
        True
    """
    require_eval("model", model)
    require_unshared(model, linear_layers(model, layers))
    original, smaller = duplicate(model), duplicate(model)
    chosen = {name: one for name, one in linear_layers(original, layers).items() if isinstance(one, nn.Linear)}
    require_finite("the outputs of the model", predict(original, inputs))
    hidden = hidden_layers(original, chosen, inputs[:TRIED])
    counts = counts_within(parameters, chosen, hidden)
    for one in hidden:
        x, y = arriving((original, smaller), one.after, inputs)
        after = smaller.get_submodule(one.after)
        moments = Moments.of(lambda rows: rows, lambda rows: rows, x, y)
        now = weight_of(after).mT.double()
        kept = eliminated(moments, now, counts[one])
        W, bias = moments.of_nodes(kept).solve(now[kept])
        names = (*one.before, one.after)
        like = [weight_of(smaller.get_submodule(name)) for name in names]
        narrow = [some_outputs(smaller.get_submodule(name), kept) for name in one.before]
        smaller = put_(smaller, dict(zip(names, (*narrow, make_linear(W.mT, bias, like[-1])), strict=True)))
    return smaller


def hidden_layers(model: nn.Module, layers: Mapping[str, nn.Linear], few: Tensor) -> list[Hidden]:
    """The nodes between layers that are linear maps and a known activation function apart, in the order of calls."""
    names: dict[nn.Module, str] = {module: name for name, module in layers.items()}
    calls = [one for one in passages(model, few)[0] if one.module in names]
    once = [one for one in calls if sum(other.module is one.module for other in calls) == 1]
    found = [(count, at) for at in range(1, len(once)) if (count := layer_before(once[:at], once[at]))]
    if not found:
        raise ValueError(
            f"expected linear layers with a known activation function between them, got none among {sorted(layers)}"
        )
    return [Hidden(tuple(names_of(names, once[at - count : at])), names[once[at].module]) for count, at in found]


def names_of(names: Mapping[nn.Module, str], calls: Sequence[Passage]) -> list[str]:
    """The names of layers that were called."""
    return [names[one.module] for one in calls]


def counts_within(parameters: int, layers: Mapping[str, nn.Linear], hidden: Sequence[Hidden]) -> dict[Hidden, int]:
    """How many nodes stay of each hidden layer: the largest common share that the budget allows."""
    require_whole("parameters", parameters, at_least=1)
    widths = {one: layers[one.after].in_features for one in hidden}

    def counts(share: float) -> dict[Hidden, int]:
        return {one: max(1, int(share * width)) for one, width in widths.items()}

    least, most = size_of(layers, counts(0.0)), size_of(layers, counts(1.0))
    if not least <= parameters <= most:
        raise ValueError(
            f"parameters must be from {least}, which one node in each of {len(hidden)} hidden layers stores, to "
            f"{most}, which the layers store now, got {parameters}: allow more, or name fewer layers"
        )
    shares = sorted({k / width for width in widths.values() for k in range(1, width + 1)})
    fitting = [share for share in shares if size_of(layers, counts(share + 1e-12)) <= parameters]
    return counts(max(fitting, default=0.0) + 1e-12)


def size_of(layers: Mapping[str, nn.Linear], counts: Mapping[Hidden, int]) -> int:
    """The numbers that the layers store with so many nodes."""
    inputs = {one.after: count for one, count in counts.items()}
    outputs = {name: count for one, count in counts.items() for name in one.before}
    total = 0
    for name, linear in layers.items():
        n, m = outputs.get(name, linear.out_features), inputs.get(name, linear.in_features)
        has_bias = name in inputs or any(one == "bias" for one, _ in linear.named_parameters())
        total += n * m + n * has_bias
    return total


def arriving(
    models: tuple[nn.Module, nn.Module], name: str, inputs: Tensor
) -> tuple[Float[Tensor, "rows m"], Float[Tensor, "rows n"]]:
    """What arrives at a layer in the compressed network, and what leaves it in the original one."""
    heard: list[list[Tensor]] = [[], []]
    for model, rows in zip(models, heard, strict=True):
        with listening({name: model.get_submodule(name)}, partial(_keep, rows)):
            for part in inputs.split(PART):
                predict(model, part)
    before, now = (torch.cat([one.reshape(-1, one.shape[-1]) for one in rows]) for rows in heard)
    with torch.no_grad():
        return now, models[0].get_submodule(name)(before)


def _keep(rows: list[Tensor], name: str, one: Tensor) -> None:
    rows.append(one.detach())


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer."""
    return module.get_parameter("weight").detach()


def some_outputs(module: nn.Module, kept: Tensor) -> nn.Linear:
    """A linear layer with some of its outputs."""
    weight = module.get_parameter("weight")
    bias = getattr(module, "bias", None)
    return make_linear(weight.detach()[kept], None if bias is None else bias.detach()[kept], weight)
