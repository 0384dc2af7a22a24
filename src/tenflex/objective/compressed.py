"""A tensor of derivatives as a small core times orthonormal bases: what sweeps of a decomposition are taken on.

QR decompositions along the samples need all of them at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.objective.cancellation import CANCELLATION
from tenflex.objective.tensor import JacobianTensor
from tenflex.sums import at_once

Shape = tuple[int, int, int]


OVERSAMPLING = 8
"""Along each mode the core has room for this many numbers more than the rank, or for twice the rank."""


PAYBACK = 10
"""A core has to save what it costs within so many sweeps."""


ORDER = (0, 2, 1)
"""The modes as they are cut: samples, inputs, outputs."""


ROUNDS = 1
"""How often a subspace is sought again among the images of the one found: noise is left out of it quadratically."""


LEAST = 1_000_000
"""Multiply-adds of a sweep below which a core saves nothing: calls take the time then, and not numbers."""


ROUNDINGS = 1000.0
"""A core that is off by fewer roundings than this, in norm, holds all of the tensor."""


@dataclass(frozen=True, eq=False)
class Compressed:
    r"""A tensor in orthonormal bases of its leading subspaces, and what lies outside of them.

    .. math:: J \approx [[\mathcal C; \, Q_S, Q_n, Q_m]], \qquad
        \|J - [[H, W, V]]\|^2 = \|J\|^2 - \|\mathcal C\|^2 + \|\mathcal C - [[Q_S^\top H, Q_n^\top W, Q_m^\top V]]\|^2

    for all factors that lie in the bases. So a decomposition of the core is one of the tensor, and no step that lowers
    its error there can raise it here.

    Args:
        core: The tensor in the bases, `(c, a, b)`.
        samples: The basis of the samples, `(S, c)`; None where they are as they were, or summed up.
        outputs: The basis of the outputs, `(n, a)`; None where they are as they were.
        inputs: The basis of the inputs, `(m, b)`; None where they are as they were.
        dropped: The share of the tensor's squared norm outside of the bases.
        summed_up: Whether the core is the triangle of a QR decomposition over the samples: with the same inner products
            over them, and without their basis, which would be as large as the tensor.
    """

    core: JacobianTensor
    samples: Float[Tensor, "S c"] | None
    outputs: Float[Tensor, "n a"] | None
    inputs: Float[Tensor, "m b"] | None
    dropped: float
    summed_up: bool = False

    @property
    def lossless(self) -> bool:
        """Whether the core holds all of the tensor, up to rounding."""
        return self.dropped <= (ROUNDINGS * torch.finfo(self.core.entries.dtype).eps) ** 2

    def inside(
        self, V: Float[Tensor, "m r"], W: Float[Tensor, "n r"], H: Float[Tensor, "S r"]
    ) -> tuple[Float[Tensor, "b r"], Float[Tensor, "a r"], Float[Tensor, "c r"]]:
        """What of the factors lies in the bases."""
        return onto_basis(self.inputs, V), onto_basis(self.outputs, W), onto_basis(self.samples, H)

    def expanded(
        self, V: Float[Tensor, "b r"], W: Float[Tensor, "a r"], H: Float[Tensor, "c r"]
    ) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"], Float[Tensor, "S r"]]:
        """Factors of the core as those of the tensor."""
        return from_basis(self.inputs, V), from_basis(self.outputs, W), from_basis(self.samples, H)

    def error(self, core_error: float) -> float:
        """The relative squared error of a decomposition of the tensor, from that of the core."""
        return self.dropped + (1 - self.dropped) * core_error


def onto_basis(basis: Float[Tensor, "p k"] | None, factor: Float[Tensor, "p r"]) -> Float[Tensor, "k r"]:
    """The coefficients of what of the columns lies in a basis; None is that of all coordinates."""
    return factor if basis is None else basis.mT @ factor


def from_basis(basis: Float[Tensor, "p k"] | None, factor: Float[Tensor, "k r"]) -> Float[Tensor, "p r"]:
    """The columns with these coefficients."""
    return factor if basis is None else basis @ factor


def swept(shape: Sequence[int], rank: int) -> float:
    """Multiply-adds of a sweep: three products with the tensor, two more every third time, and Gram matrices."""
    return 11 / 3 * math.prod(shape) * rank + 3 * sum(shape) * rank**2


def width(rank: int) -> int:
    """The numbers that the core has along a mode that is cut."""
    return rank + max(rank, OVERSAMPLING)


def triangular(shape: Sequence[int], rank: int) -> bool:
    """Whether the samples are replaced by the triangle of a QR decomposition: where that costs no more than a cut."""
    count, entries = shape[0], shape[1] * shape[2]
    return 2 * entries <= count and entries <= 4 * width(rank)


def core_shape(shape: Sequence[int], rank: int) -> Shape:
    """The sizes of the core: what is cut on J becomes a quarter or less, what is cut behind that half or less.

    So what is held on the way, three times the first core, is less than J. The outputs are the middle mode: cutting
    them takes a copy, which is to be one of a core and not of J.
    """
    count, n, m = shape
    if triangular(shape, rank):
        return n * m, n, m
    kept = width(rank)
    samples = kept if 4 * kept <= count else count
    inputs = kept if (2 if samples < count else 4) * kept <= m else m
    outputs = kept if 2 * kept <= n and samples < count else n
    return samples, outputs, inputs


def counted(shape: Sequence[int], rank: int) -> float:
    """Multiply-adds of the compression: of every cut, products of what is left with the columns that it keeps."""
    if triangular(shape, rank):
        return shape[0] * (shape[1] * shape[2]) ** 2
    small, sizes, total = core_shape(shape, rank), list(shape), 0.0
    for mode in ORDER:
        if small[mode] < sizes[mode]:
            total += 2 * (ROUNDS + 1) * math.prod(sizes) * small[mode]
        sizes[mode] = small[mode]
    return total


def pays(shape: Sequence[int], rank: int, sweeps: int) -> bool:
    """Whether sweeps on the core, with the compression, take fewer multiply-adds than on the tensor itself."""
    whole, inside = swept(shape, rank), swept(core_shape(shape, rank), rank)
    return whole >= LEAST and counted(shape, rank) < min(sweeps, PAYBACK) * (whole - inside)


def compressed(tensor: JacobianTensor, rank: int, generator: torch.Generator) -> Compressed:
    r"""The tensor in orthonormal bases of its leading subspaces, for decompositions of a rank.

    The modes are cut one after the other, the samples first, so that each later one sees a smaller tensor. With many
    more samples than entries nothing is cut: the triangle of a QR decomposition takes their place. Nothing larger than
    the core before its inputs are cut, `(c, n, m)`, is formed, besides the basis of the samples, `(S, c)`.

    References:
        Carroll, Pruzansky, Kruskal, "CANDELINC: a general approach to multidimensional analysis of many-way arrays with
        linear constraints on parameters", 1980, https://doi.org/10.1007/BF02293596
        Bro, Andersson, "Improving the speed of multiway algorithms, part II: compression", 1998,
        https://doi.org/10.1016/S0169-7439(98)00011-2
        Vannieuwenhoven, Vandebril, Meerbergen, "A new truncation strategy for the higher-order singular value
        decomposition", 2012, https://doi.org/10.1137/110836067

    Args:
        tensor: J.
        rank: The rank of the decompositions to come.
        generator: Of the random combinations in which subspaces are sought.

    Returns:
        The core with its bases; nothing is lost but rounding where the unfoldings have at most the rank of a core.
    """
    J = tensor.entries
    if triangular(J.shape, rank):
        core = JacobianTensor(triangle(J.flatten(1)).view(-1, *J.shape[1:]))
        return Compressed(core, None, None, None, dropped=0.0, summed_up=True)
    small, dropped = core_shape(J.shape, rank), 0.0
    bases: dict[int, Tensor] = {}
    for mode in ORDER:
        if small[mode] < J.shape[mode]:
            J, bases[mode], lost = cut(J, mode, small[mode], generator)
            dropped += (1 - dropped) * lost
    return Compressed(JacobianTensor(J), bases.get(0), bases.get(1), bases.get(2), dropped)


def triangle(rows: Float[Tensor, "S p"]) -> Float[Tensor, "p p"]:
    """The triangle of a QR decomposition, so that `R^T R` is that of all rows; by some of the rows at a time."""
    size = rows.shape[1]
    found = rows[:0]
    for part in rows.split(max(size, at_once(size))):
        found = torch.linalg.qr(torch.cat([found, part]), mode="r")[1]
    return found


def cut(
    tensor: Float[Tensor, "S n m"], mode: int, kept: int, generator: torch.Generator
) -> tuple[Tensor, Float[Tensor, "p k"], float]:
    """The tensor in a basis of the leading subspace along one mode, the basis, and the share of the energy it leaves.

    By random combinations of the columns of the unfolding, and again by those that the found subspace suggests. Nothing
    is squared, as in a Gram matrix, so small but exact directions are found to the last digit.

    References:
        Halko, Martinsson, Tropp, "Finding structure with randomness: probabilistic algorithms for constructing
        approximate matrix decompositions", 2011, https://doi.org/10.1137/090771806
    """
    unfolded = tensor.movedim(mode, 0).flatten(1)
    # Nothing here has a name that is not needed to the end: each of them is of the size of the core.
    basis = orthonormal(
        unfolded,
        torch.randn(kept, unfolded.shape[1], generator=generator, dtype=tensor.dtype, device="cpu").to(tensor),
    )
    for _ in range(ROUNDS):
        basis = orthonormal(unfolded, torch.linalg.qr((basis.mT @ unfolded).mT)[0].mT)
    core = basis.mT @ unfolded
    sizes = [size for other, size in enumerate(tensor.shape) if other != mode]
    return core.view(kept, *sizes).movedim(0, mode), basis, share_left(unfolded, basis, core)


def orthonormal(unfolded: Float[Tensor, "p q"], rows: Float[Tensor, "k q"]) -> Float[Tensor, "p k"]:
    """An orthonormal basis of the combinations of the columns that `rows` tells."""
    return torch.linalg.qr((rows @ unfolded.mT).mT)[0]


def share_left(unfolded: Float[Tensor, "p q"], basis: Float[Tensor, "p k"], core: Float[Tensor, "k q"]) -> float:
    """The share of the squared norm outside of a basis, by residuals where the difference of norms would cancel."""
    energy = torch.linalg.vector_norm(unfolded).square()
    share = 1 - torch.linalg.vector_norm(core).square() / energy
    if share < CANCELLATION:
        step = at_once(unfolded.shape[1])
        parts = zip(unfolded.split(step), basis.split(step), strict=True)
        share = sum((rows - axes @ core).square().sum() for rows, axes in parts) / energy
    return float(share)
