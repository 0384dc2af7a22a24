"""Sums of hinges: piecewise-linear activations, the three families of the 2021 paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.bases.piecewise import PiecewiseBasis
from tenflex.checks import require_whole
from tenflex.sums import largest


@dataclass(frozen=True)
class _Hinges(PiecewiseBasis):
    """`size` hinges with kinks on an even grid; the families differ in the grid's place and in the left side."""

    count: int
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_whole("count", self.count, at_least=self.least)
        super().__post_init__()

    @property
    def size(self) -> int:
        return self.count

    @property
    def interval(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def kinks(self) -> Float[Tensor, " kinks"]:
        """Where the slopes change."""
        return torch.arange(self.count, dtype=torch.float64, device="cpu") / self.count

    def breaks(self) -> Float[Tensor, "1 K"]:
        kinks = self.kinks()
        end = kinks[-1:] + 1 / len(kinks)  # a second break for the step when there is one kink
        return torch.cat([kinks, end])[None]

    def table(self) -> Float[Tensor, "1 pieces 2 d"]:
        starts = self.breaks()[0]
        starts = torch.cat([starts[:1], starts])
        rise = (starts[:, None] - self.kinks()).clamp(min=0)
        piece, kink = (torch.arange(count, device=rise.device) for count in rise.shape)
        slope = (piece[:, None] > kink).to(rise)
        return torch.stack([rise, slope], 1)[None]

    def roughness(self) -> Float[Tensor, "d d"]:
        """The squared jumps of slope at the kinks inside the range: a hinge's curvature is an impulse there."""
        weight = torch.ones(self.size, dtype=torch.float64, device="cpu")
        weight[0] = 0
        return self.count * torch.diag(weight)

    @property
    def operations(self) -> int:
        return 8  # find the piece (5), local coordinate (1), one multiply-add (2)


@dataclass(frozen=True)
class PositiveHinge(_Hinges):
    r"""Hinges on the positive part of the range.

    .. math:: \phi_j(t) = \max(0, t - t_j), \quad t_j = \frac{j - 1}{d} t_{\max}, \quad j = 1, \dots, d

    The scale of a node brings :math:`t_{\max}` to 1. Left of zero the activation is zero, as for a ReLU.

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542

    Args:
        count: The number of hinges :math:`d`, at least 1.

    Raises:
        ValueError: if `count` is not a whole number of at least 1.

    Example:
        >>> tenflex.bases.PositiveHinge(4).value(torch.tensor([-1.0])).tolist()
        [[0.0, 0.0, 0.0, 0.0]]
    """

    def place(self, t: Float[Tensor, "S r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        return scale_only(t)


@dataclass(frozen=True)
class Hinge(_Hinges):
    r"""Hinges over the whole range.

    .. math:: \phi_j(t) = \max(0, t - t_j), \quad t_j = t_{\min} + \frac{j - 1}{d} (t_{\max} - t_{\min}),
        \quad j = 1, \dots, d

    The scale and shift of a node bring :math:`[t_{\min}, t_{\max}]` to [0, 1]. Left of it the activation is constant.

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542

    Args:
        count: The number of hinges :math:`d`, at least 1.

    Raises:
        ValueError: if `count` is not a whole number of at least 1.

    Example:
        >>> Hinge(3).value(torch.linspace(-1, 1, 5)).shape
        torch.Size([5, 3])
    """


@dataclass(frozen=True)
class TwoSidedHinge(_Hinges):
    r"""One hinge to the left, the others to the right.

    .. math:: \phi_1(t) = \max(0, -t), \quad \phi_j(t) = \max(0, t - t_j), \quad t_j = \frac{j - 2}{d - 1} t_{\max},
        \quad j = 2, \dots, d

    The scale of a node brings :math:`t_{\max}` to 1.

    References:
        Zniyed, Usevich, Miron, Brie, "Tensor-based framework for training flexible neural networks", 2021,
        https://arxiv.org/abs/2106.13542

    Args:
        count: The number of hinges :math:`d`, at least 2.

    Raises:
        ValueError: if `count` is not a whole number of at least 2.

    Example:
        >>> tenflex.bases.TwoSidedHinge(4).size
        4
    """

    least: ClassVar[int] = 2

    @property
    def interval(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def kinks(self) -> Float[Tensor, " kinks"]:
        return torch.arange(self.count - 1, dtype=torch.float64, device="cpu") / (self.count - 1)

    def table(self) -> Float[Tensor, "1 pieces 2 d"]:
        right = super().table()
        left = torch.zeros_like(right[..., :1])
        left[0, 0, 1] = -1.0  # the left tail alone falls with slope -1
        return torch.cat([left, right], -1)

    def roughness(self) -> Float[Tensor, "d d"]:
        """As for the others, but zero is inside the range, where the slope jumps from that of the left side."""
        jumps = torch.eye(self.count, dtype=torch.float64, device="cpu")[1:]
        jumps[0, 0] = 1
        return (self.count - 1) * jumps.mT @ jumps

    def place(self, t: Float[Tensor, "S r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
        return scale_only(t)


def scale_only(t: Float[Tensor, "S r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, " r"]]:
    """Bring the maximum to 1 and leave zero where it is; a node that is never positive is scaled by its size."""
    top = largest(t)
    top = torch.where(top > 0, top, largest(t.abs()))
    return 1 / positive(top), torch.zeros_like(top)
