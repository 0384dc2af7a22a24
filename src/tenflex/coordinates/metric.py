"""How errors of a block's outputs count: by what the rest of the network makes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.checks import require_number
from tenflex.families import Families, by_name


@dataclass(frozen=True)
class OutputMetric(ABC):
    r"""A rule by which errors of a block's outputs count as much as they change what comes out of the network.

    .. math:: \|e\|_M^2 = e^\top M e, \quad M = \mathrm{mean}(J^\top F J) + \rho \, \mathrm{mean}(\mathrm{diag}) I

    with J the Jacobian of what follows the block, and F what matters of the network's outputs. The mean is taken over
    examples, positions and random draws.

    Args:
        ridge: rho: what nothing seems to use still counts so much.

    Raises:
        ValueError: if `ridge` is not a number above 0.

    Example:
        >>> from tenflex.coordinates import *
        >>> result = compress(model, inputs, {"0:1": Block(rank=3, basis=Monomial(3))}, metric=Fisher())
        >>> result.report.fidelity.agreement > 0.5
        True
    """

    ridge: float = 1e-2

    def __post_init__(self) -> None:
        require_number("ridge", self.ridge, above=0)

    @property
    def alike(self) -> bool:
        """Whether F is the identity, so that what leaves the network itself needs no metric."""
        return False

    @abstractmethod
    def score(self, outputs: Float[Tensor, "S *n"], generator: torch.Generator) -> Float[Tensor, ""]:
        """A random number made of the network's outputs whose gradients g have `E[g g^T] = F`, sample by sample."""


@dataclass(frozen=True)
class Downstream(OutputMetric):
    """All outputs of the network count the same: F is the identity.

    Example:
        >>> from tenflex.coordinates import *
        >>> result = compress(model, inputs, {"0:1": Block(rank=3, basis=Monomial(3))}, metric=Downstream())
        >>> result.report.fidelity.agreement > 0.5
        True
    """

    @property
    def alike(self) -> bool:
        return True

    def score(self, outputs: Float[Tensor, "S *n"], generator: torch.Generator) -> Float[Tensor, ""]:
        drawn = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu")
        return (outputs * drawn.to(outputs)).sum()


@dataclass(frozen=True)
class Fisher(OutputMetric):
    r"""What changes the answers of a classifier counts: F is `diag(p) - p p^T`, p being the softened answers.

    References:
        Amari, "Natural gradient works efficiently in learning", 1998, https://doi.org/10.1162/089976698300017746
        Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015, https://arxiv.org/abs/1503.02531
        (softened answers)

    Args:
        ridge: What counts besides, as a share of the mean.
        temperature: The outputs, logits with the classes last, are divided by it first.

    Raises:
        ValueError: if a number is not above 0.

    Example:
        >>> from tenflex.coordinates import *
        >>> result = compress(model, inputs, {"0:1": Block(rank=3, basis=Monomial(3))}, metric=Fisher(temperature=1.0))
        >>> result.report.fidelity.agreement > 0.5
        True
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("temperature", self.temperature, above=0)

    def score(self, outputs: Float[Tensor, "S *n"], generator: torch.Generator) -> Float[Tensor, ""]:
        logs = torch.log_softmax(outputs.double() / self.temperature, -1)
        p = logs.detach().exp().reshape(-1, logs.shape[-1]).cpu()
        drawn = torch.multinomial(p, 1, generator=generator).to(logs.device)
        return logs.reshape(-1, logs.shape[-1]).gather(1, drawn).sum()


METRICS = Families("metric", '{"family": "Fisher", "temperature": 2.0}', by_name(Downstream, Fisher))
