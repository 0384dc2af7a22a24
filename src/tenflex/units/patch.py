"""A patch of an image or signal as one sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.checks import require_floating
from tenflex.factors import Factors
from tenflex.nn import FlexibleConv
from tenflex.nn.window import Window
from tenflex.surgery.batch import nearly_equal
from tenflex.units.base import Chosen, Shape, Unit
from tenflex.units.position import noisy
from tenflex.units.reach import Reaches, reaches_of


@dataclass(frozen=True)
class Patch(Unit):
    """The block maps what every output sees of an image or signal, its patch, at all places alike.

    Beyond the input a patch has zeros. Where the block itself pads in its inside, zeros there are something else: at
    the border the layer is given the patch with zeros, and what really leaves the block as its target.

    Args:
        window: Where the patches lie.
        places: How many there are along each axis.
    """

    name: ClassVar[str] = "patch"
    plural: ClassVar[str] = "patches"
    window: Window
    places: Shape

    @classmethod
    def find(cls, block: nn.Module, arriving: Tensor) -> Patch:
        return find_patch(block, arriving)

    def inputs(self, arriving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        padded = self.window.padded(arriving).movedim(1, -1)
        index = [which.view(-1, *[1] * self.window.dims)]
        for axis, place in enumerate(torch.unravel_index(where, self.places)):
            steps = torch.arange(self.window.kernel[axis], device=where.device) * self.window.dilation[axis]
            shape = [1] * axis + [-1] + [1] * (self.window.dims - axis - 1)
            index.append((place * self.window.stride[axis]).view(-1, *[1] * self.window.dims) + steps.view(1, *shape))
        return padded[tuple(index)].movedim(-1, 1)

    def outputs(self, leaving: Tensor, which: Tensor, where: Tensor) -> Tensor:
        return leaving.flatten(2)[which, :, where]

    def function(self, block: nn.Module) -> nn.Module:
        return OfPatches(block, self.window)

    def layer(
        self, factors: Factors, in_shape: Shape, out_shape: Shape, dtype: torch.dtype, modes: Chosen | None = None
    ) -> FlexibleConv:
        return FlexibleConv.from_factors(factors, in_shape[0], self.window, dtype, modes)

    def __str__(self) -> str:
        size, stride = (" x ".join(map(str, one)) for one in (self.window.kernel, self.window.stride))
        return f"a patch of {size}, stride {stride}"


class OfPatches(nn.Module):
    """What a block makes of patches: each is put into a wider input where one place of the outputs sees just it.

    Args:
        block: The block.
        window: Where its patches lie.
    """

    def __init__(self, block: nn.Module, window: Window) -> None:
        super().__init__()
        self.block, self.window = block, window
        self.training = block.training
        pairs = list(zip(window.before, window.stride, strict=True))
        self.at = tuple(max(0, -(-before // stride)) for before, stride in pairs)  # the first that sees no border
        self.left = tuple(at * stride - before for at, (before, stride) in zip(self.at, pairs, strict=True))

    def forward(self, x: Float[Tensor, "S channels *kernel"]) -> Float[Tensor, "S n"]:
        """The outputs of that place."""
        sides: list[int] = []
        for axis, (left, step) in enumerate(zip(self.left, self.window.dilation, strict=True), start=2):
            if step > 1:  # zeros between
                x = torch.stack([x, *[torch.zeros_like(x)] * (step - 1)], axis + 1).flatten(axis, axis + 1)
                x = x.narrow(axis, 0, x.shape[axis] - step + 1)
            sides = [left, 0, *sides]
        y: Tensor = self.block(F.pad(x, sides))
        for at in self.at:
            y = y.select(2, at)
        return y


def find_patch(block: nn.Module, arriving: Float[Tensor, "S *in"], most: int | None = None) -> Patch:
    """The patches that a block maps.

    Worked out from the operators that it is made of, and tried: on random numbers patches must give what the block
    gives at the places that see no border.

    Args:
        block: The block, `(S, channels, *size) -> (S, n, *places)`.
        arriving: Some of its inputs.
        most: The most numbers of a patch; larger ones are not tried.

    Raises:
        ValueError: if its places are not alike, or patches are larger than that, with the reason.
    """
    require_floating("what arrives", arriving)
    if arriving.ndim not in (3, 4, 5):
        raise ValueError(f"its inputs of shape {tuple(arriving.shape[1:])} are no images (channels, height, width)")
    found = patch_of(reaches_of(block, arriving), arriving)
    numbers = arriving.shape[1] * torch.Size(found.window.kernel).numel()
    if most is not None and numbers > most:
        raise ValueError(f"its patches have {numbers:,} numbers, {most:,} at most are asked for")
    try:
        good = _tried(found, block, noisy(arriving))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"it cannot be given patches: {error}") from None
    if not good:
        raise ValueError("it gives something else for patches than for the whole input")
    return found


def patch_of(reaches: Reaches, arriving: Float[Tensor, "S channels *size"]) -> Patch:
    """The patches that reaches describe."""
    window = Window(
        kernel=tuple(one.size for one in reaches),
        stride=tuple(one.stride for one in reaches),
        before=tuple(-one.start for one in reaches),
        after=tuple(one.after(size) for one, size in zip(reaches, arriving.shape[2:], strict=True)),
        dilation=tuple(one.dilation for one in reaches),
    )
    return Patch(window, tuple(one.count for one in reaches))


@torch.no_grad()
def _tried(patch: Patch, block: nn.Module, x: Tensor) -> bool:
    """Whether the block gives the same for patches, on an input so large that some of them see no border."""
    window = patch.window
    sizes = zip(window.before, window.after, window.spans, window.stride, strict=True)
    wider = [max(0, before) + max(0, after) + span + 2 * stride for before, after, span, stride in sizes]
    x = noisy(F.pad(x, [side for one in reversed(wider) for side in (0, one)]))
    y = block(x.clone())
    larger = patch_of(reaches_of(block, x), x)
    if replace(larger.window, after=window.after) != window:
        return False
    where = inner_places(larger, tuple(x.shape[2:]))
    where = where[:: max(1, len(where) // 8)]
    which = torch.arange(len(where), device=x.device) % len(x)
    rows, expected = larger.inputs(x, which, where), larger.outputs(y, which, where)
    return len(where) > 0 and nearly_equal(larger.function(block)(rows), expected)


def inner_places(patch: Patch, size: Shape) -> Tensor:
    """The places whose patches lie inside of an input, counted over all axes."""
    inside = torch.ones(patch.places, dtype=torch.bool, device="cpu")
    for axis, length in enumerate(size):
        first = torch.arange(patch.places[axis], device="cpu") * patch.window.stride[axis] - patch.window.before[axis]
        good = (first >= 0) & (first + patch.window.spans[axis] <= length)
        inside &= good.view([-1] + [1] * (patch.window.dims - axis - 1))
    return inside.flatten().nonzero().squeeze(1)


@torch.no_grad()
def border_error(patch: Patch, block: nn.Module, x: Float[Tensor, "S channels *size"]) -> float:
    """How far patches with zeros outside are from the block itself, over all places, relative to its variation."""
    count = torch.Size(patch.places).numel()
    which, where = (one.flatten() for one in torch.meshgrid(*map(torch.arange, (len(x), count)), indexing="ij"))
    which, where = which.to(x.device), where.to(x.device)
    expected = patch.outputs(block(x.clone()), which, where).double()
    found = patch.function(block)(patch.inputs(x, which, where)).double()
    spread = (expected - expected.mean(0)).norm()
    return float((found - expected).norm() / spread) if spread > 0 else 0.0
