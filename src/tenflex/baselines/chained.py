"""A convolution as several, the last of single positions, and that one refitted to what arrives."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.linear import Dense, rows_of
from tenflex.baselines.moments import Moments, listening
from tenflex.evaluate.fidelity import predict
from tenflex.nn.chained import Chained
from tenflex.nn.low_rank import parameter

RIDGE = 1e-6
"""How much of the mean variance holds a refitted map back to the one before."""


@torch.no_grad()
def refit_(smaller: nn.Module, original: nn.Module, layers: Mapping[str, Dense], inputs: Tensor) -> None:
    """Give the last maps of chains the weights and biases with the least error on what arrives in the original.

    Args:
        smaller: The model in which chains stand.
        original: A copy of the original, which is run.
        layers: Its layers, by name; those in whose place no chain stands are passed over.
        inputs: Calibration inputs.
    """
    placed = {name: smaller.get_submodule(name) for name in layers}
    chains = {name: one for name, one in placed.items() if isinstance(one, Chained)}
    moments = {name: Moments(_widths(chain)) for name, chain in chains.items()}

    def heard(name: str, arriving: Tensor) -> None:
        layer, arriving = layers[name], arriving.detach()
        rows = [rows_of(layer, one).double() for one in (chains[name].inner(arriving), layer.forward(arriving))]
        moments[name].add(torch.cat(rows, 1))

    with listening({name: layers[name] for name in chains}, heard):
        predict(original, inputs)
    for name, chain in chains.items():
        _fit_outer_(chain, moments[name])


def _widths(chain: Chained) -> Float[Tensor, "k 1"]:
    """A row for every channel between and every output."""
    outer = chain.outer.get_parameter("weight")
    n, width = outer.shape[:2]
    return outer.new_zeros(width + n, 1, dtype=torch.float64)


def _fit_outer_(chain: Chained, moments: Moments) -> None:
    """Set the last map by ridge regression towards the one before."""
    weight, bias = (chain.outer.get_parameter(name) for name in ("weight", "bias"))
    before, width = weight.detach().double().flatten(1), weight.shape[1]
    covariance, mean = moments.covariance, moments.mean
    now = covariance[:width, :width]
    ridge = RIDGE * (now.diagonal().mean().item() or 1.0)
    eye = torch.eye(width, dtype=now.dtype, device=now.device)
    lacking = covariance[width:, :width] - before @ now
    found = before + torch.linalg.solve(now + ridge * eye, lacking.mT).mT
    chain.outer.weight = parameter(found.view_as(weight), weight)
    chain.outer.bias = parameter(mean[width:] - found @ mean[:width], bias)
