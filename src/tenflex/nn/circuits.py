"""Product-unit networks: convolutional arithmetic circuits, shallow (CP) and deep (hierarchical Tucker)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_whole

GAIN = 6.0
"""How much steeper the functions of patches are at first than linear layers usually: else they hardly vary."""

SPREAD = 1.0
"""The standard deviation of the logarithms of weights at first: few are large, as sums of many alike lose what tells
inputs apart."""

SMALLEST = 1e-30
"""Added to magnitudes before their logarithm."""


class ProductCircuit(nn.Module):
    r"""Sums and products in turn: linear maps at each position, then products over neighbouring positions.

    .. math:: h_y(x_1, \dots, x_N) = \sum_{d_1, \dots, d_N} \mathcal{A}^y_{d_1 \dots d_N} \prod_{i=1}^{N} f_{d_i}(x_i)

    What is given are the values `f` of M representation functions at N positions; the scores h are multilinear in
    them, with a tensor A whose decomposition the weights are. With `pools=(N,)`, one hidden map and one product over
    all positions, it is the CP decomposition; with `pools=(2, 2, ...)` the hierarchical Tucker decomposition whose
    core tensors are diagonal. Every position has weights of its own.

    Products of many numbers leave the range of floating-point numbers, so values are divided by their largest at each
    position after every map, and the logarithms of what they were divided by are added up: nothing vanishes or
    explodes, however many positions there are. `forward` gives logarithms of magnitudes, which are logits where all
    weights and values are positive; `scores` gives the scores themselves. What is trained are the logarithms of the
    weights, so that they keep their signs, which are all positive at first.

    References:
        Cohen, Sharir, Shashua, "On the expressive power of deep learning: a tensor analysis", 2016,
        https://arxiv.org/abs/1509.05009

    Args:
        channels: M, the functions at each position.
        widths: The channels of every hidden map, r_0, r_1, ...
        pools: Over how many neighbouring positions each product goes, as many as widths; N is their product.
        outputs: The number of scores Y.

    Raises:
        ValueError: if a size is not a whole number of at least 1, or there are not as many pools as widths.

    Example:
        >>> circuit = ProductCircuit(channels=3, widths=(4, 2), pools=(2, 2), outputs=5)
        >>> circuit(torch.rand(7, 4, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, channels: int, widths: Sequence[int], pools: Sequence[int], outputs: int) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("outputs", outputs)):
            require_whole(name, value, at_least=1)
        for name, values in (("widths", widths), ("pools", pools)):
            for value in values:
                require_whole(f"each of {name}", value, at_least=1)
        if not widths or len(widths) != len(pools):
            raise ValueError(f"expected as many pools as widths, got {tuple(pools)} and {tuple(widths)}")
        self.pools = tuple(pools)
        self.positions = math.prod(pools)
        counts = [self.positions // math.prod(self.pools[:level]) for level in range(len(self.pools) + 1)]
        sizes = pairwise((channels, *widths, outputs))
        shapes = [(count, after, before) for count, (before, after) in zip(counts, sizes, strict=True)]
        self.logs = nn.ParameterList(nn.Parameter(SPREAD * torch.randn(one)) for one in shapes)
        for level, one in enumerate(shapes):
            self.register_buffer(f"signs{level}", torch.ones(one, dtype=torch.int8))

    @property
    def weights(self) -> list[Float[Tensor, "P o i"]]:
        """The weights of every map, `(positions, outputs, inputs)`."""
        return [self.get_buffer(f"signs{level}") * one.exp() for level, one in enumerate(self.logs)]

    def forward(self, f: Float[Tensor, "S N M"]) -> Float[Tensor, "S Y"]:
        """The logarithms of the magnitudes of the scores."""
        values, scale = self.scaled(f)
        return (values.abs() + SMALLEST).log() + scale[:, None]

    def scores(self, f: Float[Tensor, "S N M"]) -> Float[Tensor, "S Y"]:
        """The scores; they may leave the range of numbers where there are many positions."""
        values, scale = self.scaled(f)
        return values * scale.exp()[:, None]

    def scaled(self, f: Float[Tensor, "S N M"]) -> tuple[Float[Tensor, "S Y"], Float[Tensor, " S"]]:
        """Scores of moderate size, and the logarithm of what they are to be multiplied with."""
        weights = self.weights
        if f.shape[1:] != (self.positions, weights[0].shape[2]):
            form = f"(S, {self.positions}, {weights[0].shape[2]})"
            raise ValueError(f"expected values of functions at positions, {form}, got {tuple(f.shape)}")
        values, scale = normalized(f)
        for weight, pool in zip(weights, self.pools, strict=False):
            values, divided = normalized(torch.einsum("npi,poi->npo", values, weight))
            values, again = normalized(values.unflatten(1, (-1, pool)).prod(2))
            scale = scale + divided + again
        return values[:, 0] @ weights[-1][0].mT, scale

    def tensor(self) -> Float[Tensor, "Y *modes"]:
        """The tensor of every score, `(Y, M, ..., M)` with N modes: only for few positions."""
        first = self.weights[0]
        eye = torch.eye(first.shape[2], dtype=first.dtype, device=first.device)
        parts = [eye] * self.positions  # for each channel a tensor
        for weight, pool in zip(self.weights, self.pools, strict=False):
            mapped = [torch.einsum("oi,i...->o...", one, part) for one, part in zip(weight, parts, strict=True)]
            parts = [outer(mapped[start : start + pool]) for start in range(0, len(mapped), pool)]
        return torch.einsum("oi,i...->o...", self.weights[-1][0], parts[0])

    @classmethod
    def from_components(
        cls, components: Sequence[Float[Tensor, "Z M"]], weights: Float[Tensor, "Y Z"]
    ) -> ProductCircuit:
        """The shallow circuit of CP decompositions `sum_z w_yz a_z o b_z o ...` with shared components.

        Args:
            components: For each position a row for each component.
            weights: For each score the weights of the components.
        """
        Z, M = components[0].shape
        circuit = cls(M, (Z,), (len(components),), len(weights)).to(weights)
        return circuit.filled_([torch.stack(list(components)), weights[None]])

    @classmethod
    def from_tensor(cls, tensor: Float[Tensor, "Y *modes"]) -> ProductCircuit:
        """A deep circuit of pools of two that has this tensor, by singular values of its halves, their halves, ...

        Args:
            tensor: `(Y, M, ..., M)` with 2, 4, 8, ... modes of one size.

        Raises:
            ValueError: if it has another form.
        """
        N, M = tensor.ndim - 1, tensor.shape[-1]
        if N < 2 or N & (N - 1) or set(tensor.shape[1:]) != {M}:
            raise ValueError(f"expected a tensor (Y, M, ..., M) with 2, 4, 8, ... modes, got {tuple(tensor.shape)}")
        levels = split_in_halves(tensor)
        widths = [max(len(one) for one in level) for level in levels[:-1]]
        sizes = pairwise((M, *widths, len(tensor)))
        weights = [stacked(level, after, before) for level, (before, after) in zip(levels, sizes, strict=True)]
        return cls(M, widths, (2,) * (len(levels) - 1), len(tensor)).to(tensor).filled_(weights)

    def filled_(self, weights: Sequence[Tensor]) -> ProductCircuit:
        """The circuit with these weights, in place."""
        with torch.no_grad():
            for level, (one, values) in enumerate(zip(self.logs, weights, strict=True)):
                one.copy_(values.abs().log())
                self.get_buffer(f"signs{level}").copy_(torch.where(values < 0, -1, 1))
        return self


def normalized(values: Float[Tensor, "S P r"]) -> tuple[Float[Tensor, "S P r"], Float[Tensor, " S"]]:
    """Values over their largest magnitude at each position, and the sum of the logarithms of these.

    What divides here multiplies elsewhere, so that it needs no gradient of its own.
    """
    largest = values.detach().abs().amax(2).clamp_min(SMALLEST)
    return values / largest[..., None], largest.log().sum(1)


def outer(parts: Sequence[Tensor]) -> Tensor:
    """For each channel the outer product of its tensors."""
    found, *others = parts
    for one in others:
        behind, before = [1] * (one.ndim - 1), [1] * (found.ndim - 1)
        found = found.reshape(*found.shape, *behind) * one.reshape(len(one), *before, *one.shape[1:])
    return found


def split_in_halves(tensor: Float[Tensor, "k *modes"]) -> list[list[Float[Tensor, "after before"]]]:
    """For each level, from single positions on, the map at every position; the last one is that of the outputs.

    Tensors of a position are combinations of products of a basis of its left and one of its right half. As products go
    channel by channel, every pair of the two bases is a channel.
    """
    if tensor.ndim == 2:
        return [[tensor]]
    half, M = (tensor.ndim - 1) // 2, tensor.shape[-1]
    matrices = tensor.reshape(len(tensor), M**half, M**half)
    left, right = basis_of(matrices.movedim(1, 0).flatten(1)), basis_of(matrices.movedim(2, 0).flatten(1))
    cores = torch.einsum("kab,ai,bj->kij", matrices, left, right)
    a, b = left.shape[1], right.shape[1]
    lefts = left.mT.repeat_interleave(b, 0).reshape(a * b, *[M] * half)
    rights = right.mT.repeat(a, 1).reshape(a * b, *[M] * half)
    below = [one + two for one, two in zip(split_in_halves(lefts), split_in_halves(rights), strict=True)]
    return [*below, [cores.flatten(1)]]


def basis_of(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows rank"]:
    """An orthonormal basis of the columns, up to rounding."""
    U, S, _ = torch.linalg.svd(matrix, full_matrices=False)
    least = S[0] * max(matrix.shape) * torch.finfo(S.dtype).eps
    rank = max(1, int((least < S).sum()))
    return U[:, :rank]


def stacked(maps: Sequence[Float[Tensor, "after before"]], outputs: int, inputs: int) -> Float[Tensor, "P o i"]:
    """Maps of one level side by side, with zeros where they are smaller."""
    found = maps[0].new_zeros(len(maps), outputs, inputs)
    for place, one in enumerate(maps):
        found[place, : one.shape[0], : one.shape[1]] = one
    return found


class PatchFunctions(nn.Module):
    r"""Positive functions of the patches of an image, :math:`f_d(x_i) = \sigma(v_d^\top x_i + a_d)`.

    The image is padded to `patch * grid` on either side and cut into `grid x grid` patches, which come in the order
    of a quad-tree: four that follow each other are a square, sixteen a larger one. So products over pools of four, or
    of two, are those over neighbours.

    Args:
        shape: Channels, height and width of an image; it may come flat.
        grid: Patches along either axis, a power of two.
        channels: The number of functions M.

    Raises:
        ValueError: if `grid` is not a power of two.

    Example:
        >>> layer = PatchFunctions((1, 28, 28), grid=8, channels=16)
        >>> layer(torch.zeros(5, 784)).shape
        torch.Size([5, 64, 16])
    """

    def __init__(self, shape: tuple[int, int, int], grid: int, channels: int) -> None:
        super().__init__()
        require_whole("grid", grid, at_least=1)
        if grid & (grid - 1):
            raise ValueError(f"grid must be a power of two, got {grid}")
        self.shape, self.grid = shape, grid
        self.patch = -(-max(shape[1:]) // grid)
        self.map = nn.Linear(shape[0] * self.patch**2, channels)
        with torch.no_grad():
            self.map.weight *= GAIN
        self.register_buffer("order", quad_order(grid), persistent=False)

    def forward(self, images: Float[Tensor, "S *pixels"]) -> Float[Tensor, "S N M"]:
        """The values of the functions, position by position."""
        images = images.reshape(len(images), *self.shape)
        free = [self.patch * self.grid - size for size in self.shape[1:]]
        images = nn.functional.pad(images, (free[1] // 2, -(-free[1] // 2), free[0] // 2, -(-free[0] // 2)))
        patches = nn.functional.unfold(images, self.patch, stride=self.patch).mT
        return torch.sigmoid(self.map(patches[:, self.get_buffer("order")]))


def quad_order(grid: int) -> Tensor:
    """The places of a grid, row by row, in the order of a quad-tree."""
    order, quarter = torch.zeros(1, 1, dtype=torch.long), torch.tensor([[0, 1], [2, 3]])
    while len(order) < grid:
        order = torch.kron(4 * order, torch.ones_like(quarter)) + quarter.repeat(len(order), len(order))
    return order.flatten().argsort()
