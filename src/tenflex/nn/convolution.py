"""Flexible layers of patches, in place of several convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.bases import BASES, Basis, basis_from_dict
from tenflex.checks import require_rank, require_whole
from tenflex.factors import Activations, Factors
from tenflex.modes import MODES, Modes, Multilinear
from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.maps import require_width
from tenflex.nn.mode_convolution import ModeConv
from tenflex.nn.multilinear import ModeProduct
from tenflex.nn.window import Window

SETTINGS = {"in_channels", "out_channels", "window", "rank", "basis", "factor", "output_factor"}
"""What is saved of a layer besides its numbers, and `modes` where it has some."""

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | ModeConv

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class FlexibleConv(nn.Module):
    r"""Flexible layers :math:`f(x) = W g_L(\cdots g_1(V^\top x + a_1) \cdots) + b` of every patch of an image.

    The first of `maps` is a convolution (or one to `factor` channels and a 1 x 1 convolution), with the shifts of the
    activations that follow as its bias; all others are 1 x 1 convolutions. Every channel has its own activation.

    With modes the kernels of the first are :math:`V = (P_1 \otimes P_2 \otimes \cdots) V'`, with a matrix for each axis
    of a patch, `(channels, *kernel)`, and V' is what is stored.

    Args:
        in_channels: The channels of the input.
        out_channels: The channels of the output; None to leave out W and b, which are part of a layer that follows.
        window: Where the patches lie.
        rank: The number of channels between, r; or those of each layer, `(r1, ..., rL)`.
        basis: The functions that every activation combines; or those of each layer.
        factor: The width q of `V = B A`, or None.
        output_factor: The width p of `W = D E`, or None.
        modes: The directions along each axis of a patch, `(channels, *kernel)`, that V sees; None for all.

    Raises:
        TypeError: if a basis is not a basis, or `window` is not a `Window`.
        ValueError: if a size is not a whole number of at least 1, or there are not as many bases as layers.

    Example:
        >>> window = Window(kernel=(16, 16), stride=(4, 4), before=(0, 0), after=(0, 0), dilation=(1, 1))
        >>> layer = FlexibleConv(1, 50, window, rank=20, basis=BSpline(10), factor=8)
        >>> layer(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 50, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None,
        window: Window,
        rank: int | tuple[int, ...],
        basis: Basis | tuple[Basis, ...],
        factor: int | None = None,
        output_factor: int | None = None,
        modes: Modes | None = None,
    ) -> None:
        super().__init__()
        require_rank(rank)
        require_whole("in_channels", in_channels, at_least=1)
        for name, width in (("out_channels", out_channels), ("factor", factor), ("output_factor", output_factor)):
            require_width(name, width)
        if not isinstance(window, Window):
            raise TypeError(f"window must be a Window of sizes, got {window!r}")
        ranks = rank if isinstance(rank, tuple) else (rank,)
        bases = basis if isinstance(basis, tuple) else (basis,) * len(ranks)
        if len(bases) != len(ranks):
            raise ValueError(f"expected one basis or {len(ranks)}, one for each layer, got {len(bases)}")
        self.window = window
        first = patch_map(in_channels, window, factor, ranks[0], modes)
        inner = [channel_map(window.dims, m, None, n) for m, n in pairwise(ranks)]
        last = (
            nn.Identity() if out_channels is None else channel_map(window.dims, ranks[-1], output_factor, out_channels)
        )
        self.maps = nn.ModuleList([first, *inner, last])
        self.activations = nn.ModuleList(FlexibleActivation(r, one) for r, one in zip(ranks, bases, strict=True))

    @property
    def folded(self) -> bool:
        """Whether W and b are part of a layer that follows."""
        return isinstance(self.maps[-1], nn.Identity)

    @property
    def modes(self) -> ModeProduct | None:
        """The map from a patch to what its modes tell of it."""
        first = convolutions(self.maps[0])[0]
        return first.modes if isinstance(first, ModeConv) else None

    @property
    def flexible(self) -> list[FlexibleActivation]:
        """The layers of activations, as what they are."""
        return [one for one in self.activations if isinstance(one, FlexibleActivation)]

    def forward(self, x: Float[Tensor, "*batch channels *size"]) -> Float[Tensor, "*batch n *places"]:
        """The outputs at every patch."""
        channels = -self.window.dims - 1
        first, *others = self.maps
        x = first(x if self.window.symmetric else self.window.padded(x))
        for activation, linear in zip(self.activations, others, strict=True):
            x = linear(activation(x.movedim(channels, -1)).movedim(-1, channels))
        return x

    @classmethod
    def from_factors(
        cls,
        factors: Factors,
        in_channels: int,
        window: Window,
        dtype: torch.dtype | None = None,
        modes: tuple[Modes, Multilinear] | None = None,
    ) -> FlexibleConv:
        """The layers of a solution for one patch, flattened from `(channels, *kernel)`.

        With modes, and the directions that they chose, the factors are those of what these tell of a patch.

        Raises:
            ValueError: if the factors have another number of inputs than a patch, or than its modes tell.
        """
        m, n, patch = len(factors.maps[0][0]), len(factors.bias), (in_channels, *window.kernel)
        if m != (torch.Size(patch).numel() if modes is None else modes[0].core_size(patch)):
            seen = "" if modes is None else f" seen through {modes[0]!r}"
            raise ValueError(
                f"expected factors of patches of {in_channels} x {window.kernel} numbers{seen}, got {m} inputs"
            )
        bases = tuple(one.basis for one in factors.activations)
        factor, *_, output_factor = (one[0].shape[1] if len(one) == 2 else None for one in factors.maps)
        with torch.device("meta"):  # all is overwritten: draw no random numbers for it
            layer = cls(in_channels, n, window, factors.ranks, bases, factor, output_factor, modes and modes[0])
        layer.to(dtype or factors.bias.dtype).to_empty(device=factors.bias.device)
        if modes is not None and layer.modes is not None:
            layer.modes.fill_(modes[1])
        layer._fill_(factors)
        return layer

    @torch.no_grad()
    def _fill_(self, factors: Factors) -> None:
        biases = [*(one.shift for one in factors.activations), factors.bias]
        for linear, maps, bias in zip(self.maps, factors.maps, biases, strict=True):
            modules = convolutions(linear)
            for one, matrix in zip(modules, maps, strict=True):
                one.weight.copy_(matrix.mT.reshape(one.weight.shape))
            if modules[-1].bias is not None:
                modules[-1].bias.copy_(bias)
        for module, activations in zip(self.flexible, factors.activations, strict=True):
            module.coefficients.copy_(activations.coefficients)

    @torch.no_grad()
    def factors(self) -> Factors:
        """The layers of one patch as matrices, in their own dtype; copies. Modes are multiplied out.

        Raises:
            ValueError: if W and b are part of a layer that follows.
        """
        if self.folded:
            raise ValueError("the last map of this convolution is part of the layer that follows it")
        biases = [_bias(linear).clone() for linear in self.maps]
        parts = zip(self.flexible, biases[:-1], strict=True)
        activations = tuple(Activations(one.coefficients.clone(), shift, one.basis) for one, shift in parts)
        return Factors(tuple(map(_matrices, self.maps)), activations, biases[-1])

    def to_dict(self) -> dict[str, Any]:
        """The settings that `from_dict` makes an empty layer of."""
        first, last = convolutions(self.maps[0]), convolutions(self.maps[-1])
        return {
            "in_channels": first[0].in_channels,
            "out_channels": None if self.folded else last[-1].out_channels,
            "window": self.window.to_dict(),
            "rank": [len(one.coefficients) for one in self.flexible],
            "basis": [BASES.described(one.basis) for one in self.flexible],
            "factor": first[0].out_channels if len(first) == 2 else None,
            "output_factor": last[0].out_channels if len(last) == 2 else None,
            **({} if self.modes is None else {"modes": MODES.described(self.modes.modes)}),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FlexibleConv:
        """An empty layer with saved settings; modes may be left out.

        Raises:
            ValueError: if a setting is missing, unknown or out of its range.
        """
        if not isinstance(saved, Mapping) or set(saved) - {"modes"} != SETTINGS:
            raise ValueError(f"a flexible convolution has the settings {sorted(SETTINGS)}, got {saved!r}")
        ranks, bases = saved["rank"], saved["basis"]
        if not all(isinstance(one, (list, tuple)) for one in (ranks, bases)) or not ranks or len(ranks) != len(bases):
            raise ValueError(f"rank and basis must be lists of one a layer, got {ranks!r} and {bases!r}")
        modes = saved.get("modes")
        settings = {
            **saved,
            "window": Window.from_dict(saved["window"]),
            "rank": tuple(ranks),
            "modes": None if modes is None else MODES.from_dict(modes),
        }
        with torch.random.fork_rng(devices=[]):  # what is drawn here will be overwritten
            return cls(**{**settings, "basis": tuple(map(basis_from_dict, bases))})


def patch_map(
    channels: int, window: Window, width: int | None, nodes: int, modes: Modes | None = None
) -> Convolution | nn.Sequential:
    """V as a convolution with bias, or as one to `width` channels without and a 1 x 1 convolution with bias."""
    if width is None:
        return patch_convolution(channels, nodes, window, modes, bias=True)
    first = patch_convolution(channels, width, window, modes, bias=False)
    return nn.Sequential(first, CONVOLUTIONS[window.dims](width, nodes, 1))


def patch_convolution(channels: int, outputs: int, window: Window, modes: Modes | None, *, bias: bool) -> Convolution:
    """A convolution of patches, all of whose numbers are stored, or those that modes tell."""
    if modes is not None:
        return ModeConv(channels, outputs, window, modes, bias)
    sizes = {"kernel_size": window.kernel, "stride": window.stride, "dilation": window.dilation, "bias": bias}
    whole: Convolution = CONVOLUTIONS[window.dims](
        channels, outputs, padding=window.before if window.symmetric else 0, **sizes
    )
    return whole


def channel_map(dims: int, inputs: int, width: int | None, outputs: int) -> nn.Module:
    """A linear map of the channels at every place, with bias, full or as a product of two."""
    kind = CONVOLUTIONS[dims]
    if width is None:
        whole: nn.Module = kind(inputs, outputs, 1)
        return whole
    return nn.Sequential(kind(inputs, width, 1, bias=False), kind(width, outputs, 1))


def convolutions(linear: nn.Module) -> list[Convolution]:
    """The one or two convolutions, in the order in which they are applied."""
    return [one for one in linear.modules() if isinstance(one, (nn.Conv1d, nn.Conv2d, nn.Conv3d, ModeConv))]


def _matrices(linear: nn.Module) -> tuple[Tensor, ...]:
    """The one or two matrices of one patch, acting from the right, copied."""
    kernels = (one.kernels() if isinstance(one, ModeConv) else one.weight for one in convolutions(linear))
    return tuple(one.flatten(1).mT.clone() for one in kernels)


def _bias(linear: nn.Module) -> Tensor:
    bias = convolutions(linear)[-1].bias
    if bias is None:
        raise ValueError("expected the last map to have a bias")
    return bias
