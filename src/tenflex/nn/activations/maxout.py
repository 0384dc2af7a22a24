"""The largest of several linear pieces."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole


class Maxout(nn.Module):
    r"""The maximum of every k neighbours in the last dimension, behind a linear map to k times as many.

    .. math:: g_i(x) = \max_{j = 1, \dots, k} (v_{ij}^\top x + a_{ij})

    It has no parameters itself: the pieces are those of the map before. With pieces v and 0 it is ReLU, with v and -v
    the absolute value.

    References:
        Goodfellow, Warde-Farley, Mirza, Courville, Bengio, "Maxout networks", 2013, https://arxiv.org/abs/1302.4389

    Args:
        pieces: k.

    Raises:
        ValueError: if `pieces` is not a whole number of at least 2, or does not divide the numbers that arrive.

    Example:
        >>> layer = nn.Sequential(nn.Linear(5, 12), Maxout(3))
        >>> layer(torch.zeros(2, 5)).shape
        torch.Size([2, 4])
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        require_whole("pieces", pieces, at_least=2)
        self.pieces = pieces

    def forward(self, t: Float[Tensor, "*batch rk"]) -> Float[Tensor, "*batch r"]:
        if t.shape[-1] % self.pieces:
            raise ValueError(f"expected a multiple of {self.pieces} numbers, {self.pieces} a node, got {t.shape[-1]}")
        return t.unflatten(-1, (-1, self.pieces)).amax(-1)

    def extra_repr(self) -> str:
        """What is printed between the brackets."""
        return f"{self.pieces} pieces"
