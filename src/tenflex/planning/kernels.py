"""Thin convolutions in the place of one, for what really arrives: the forms of a kernel of low rank."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.kim2016 import orthogonal_factors
from tenflex.baselines.lebedev2015 import along
from tenflex.baselines.linear import Dense, make_convolution, make_pointwise
from tenflex.baselines.moments import Moments
from tenflex.baselines.polyadic import decompose
from tenflex.nn.chained import Chained
from tenflex.uncompiled import LBFGS

Factors: TypeAlias = tuple[Tensor, ...]
Rank: TypeAlias = "int | tuple[int, int]"

QUICK, CAREFUL = (2, 0, 40), (3, 40, 200)
"""Random starts and Gauss-Newton steps of a CPD of the kernel, then steps for what arrives: to compare, and to keep."""

SHRINKAGE = 0.5
"""Where patches are few: the kernel itself counts as so many patches for each number of a patch."""

TINY = 1e-150
"""What is divided by is no less."""

RIDGE = 1e-9
"""Of least-squares steps, relative to the mean of the Gram matrix's diagonal."""


@dataclass(frozen=True, eq=False)
class Passage:
    """A convolution with the second moments of what arrives at its places and of what should leave them.

    Args:
        dense: The convolution.
        arriving: The mean patch, `(m,)`.
        leaving: The mean output, `(n,)`.
        S: The covariance of patches, shrunk.
        M: That of patches with outputs, shrunk towards what the kernel makes of them.
        variance: That of outputs, in all.
    """

    dense: Dense
    arriving: Float[Tensor, " m"]
    leaving: Float[Tensor, " n"]
    S: Float[Tensor, "m m"]
    M: Float[Tensor, "m n"]
    variance: float

    @staticmethod
    def of(dense: Dense, patches: Float[Tensor, "rows c *kernel"], outputs: Float[Tensor, "rows n"]) -> Passage:
        """The moments of rows."""
        weight = dense.weight.detach().double().flatten(1)
        n, m = weight.shape
        moments = Moments(weight.new_zeros(m + n, 1))
        for x, y in zip(patches.split(CHUNK), outputs.split(CHUNK), strict=True):
            moments.add(torch.cat([x.flatten(1), y.flatten(1)], 1).double())
        covariance, mean = moments.covariance, moments.mean
        added = SHRINKAGE * m / moments.count * (covariance[:m].diagonal().mean().item() or 1.0)
        S, M = covariance[:m, :m], covariance[:m, m:] + added * weight.mT
        S.diagonal().add_(added)
        variance = float(covariance[m:, m:].trace()) + added * float(weight.square().sum())
        return Passage(dense, mean[:m], mean[m:], S, M, variance)

    @cached_property
    def best(self) -> Float[Tensor, "m n"]:
        """The map of all ranks that makes most of the patches."""
        return torch.linalg.solve(self.S, self.M)

    @property
    def kernel(self) -> Float[Tensor, "n c *kernel"]:
        """The kernel, in float64."""
        return self.dense.weight.detach().double()

    def outer(self, Z: Float[Tensor, "R m"], penalty: float = 0.0) -> Float[Tensor, "n R"]:
        """The last map that makes most of R maps of patches, at a price on how large each of these becomes."""
        return outer_of(Z @ self.S @ Z.mT, Z @ self.M, penalty)

    def error(self, Z: Float[Tensor, "R m"], penalty: float = 0.0) -> tuple[float, Float[Tensor, "R m"]]:
        r"""The squared error of outputs with the best last map, relative to their variance, and its slope.

        .. math:: L(Z) = \min_A \frac{E |y - A Z x|^2 + \mu \sum_z |a_z|^2 E (Z x)_z^2}{E |y|^2}, \quad
            \nabla L \propto A^\top A Z S - A^\top M^\top + \mu \operatorname{diag}(|a_z|^2) Z S
        """
        ZS, ZM = Z @ self.S, Z @ self.M  # noqa: N806
        A = outer_of(ZS @ Z.mT, ZM, penalty)
        slope = A.mT @ (A @ ZS - self.M.mT) + penalty * A.square().sum(0)[:, None] * ZS
        fitted = float((A * ZM.mT).sum())
        whole = self.variance or 1.0
        return 1 - fitted / whole, 2 * slope / whole


CHUNK = 4096
"""Rows that are summed together."""


def outer_of(gram: Float[Tensor, "R R"], target: Float[Tensor, "R n"], penalty: float = 0.0) -> Float[Tensor, "n R"]:
    """A least-squares step, at a price on the size of each of R terms."""
    sizes = gram.diagonal()
    mean = sizes.mean()
    ridge = RIDGE * torch.where(mean > TINY, mean, 1.0)  # of maps that nothing passes any last map is as good
    return torch.linalg.solve(gram + torch.diag(penalty * sizes + ridge), target).mT


class Form(ABC):
    """One way in which a kernel is of low rank: R maps of patches, of which the outputs are combinations."""

    name: ClassVar[str]
    several: ClassVar[bool] = False
    """Whether a rank is two numbers."""
    least: ClassVar[bool] = False
    """Whether its start has the least error for what arrives already."""
    penalty: ClassVar[float] = 0.0
    """The price of terms that are large, as those are that cancel each other, of the squared outputs."""

    @abstractmethod
    def size(self, kernel: tuple[int, ...], rank: Rank) -> int:
        """The numbers stored at a rank, for a kernel `(n, c, k1, ...)`, with a bias."""

    @abstractmethod
    def largest(self, kernel: tuple[int, ...], numbers: int) -> Rank | None:
        """The largest rank that stores so many numbers at most; None if there is none."""

    def maps(self, rank: Rank) -> int:
        """The number of maps, R."""
        return rank[0] if isinstance(rank, tuple) else rank

    @abstractmethod
    def start(self, passed: Passage, rank: Rank, starts: int, steps: int) -> Factors:
        """The factors of R maps of patches, for the kernel alone or for what arrives."""

    @abstractmethod
    def rows(self, factors: Factors) -> Float[Tensor, "R m"]:
        """The maps."""

    @abstractmethod
    def steps(self, factors: Factors, like: Dense) -> list[nn.Module]:
        """The convolutions that compute them."""

    def scaled(self, factors: Factors, passed: Passage) -> Factors:
        """Factors of the same maps but for their size, which the last map makes up for."""
        return factors


class SVD(Form):
    """One convolution to few channels, and one of single positions: that of the least error for what arrives."""

    name = "svd"
    least = True

    def size(self, kernel: tuple[int, ...], rank: Rank) -> int:
        n, m = kernel[0], math.prod(kernel[1:])
        return one_of(rank) * (m + n) + n

    def largest(self, kernel: tuple[int, ...], numbers: int) -> Rank | None:
        n, m = kernel[0], math.prod(kernel[1:])
        rank = min((numbers - n) // (m + n), m, n)
        return rank if rank >= 1 else None

    def start(self, passed: Passage, rank: Rank, starts: int, steps: int) -> Factors:
        axes = torch.linalg.eigh(passed.M.mT @ passed.best).eigenvectors.flip(1)[:, : one_of(rank)]
        return ((passed.best @ axes).mT.unflatten(1, passed.kernel.shape[1:]),)

    def rows(self, factors: Factors) -> Float[Tensor, "R m"]:
        return factors[0].flatten(1)

    def steps(self, factors: Factors, like: Dense) -> list[nn.Module]:
        return [make_convolution(factors[0], None, like)]


class CPD(Form):
    r"""Single positions, one axis after the other: maps :math:`b_{c z} \, p_{i z} \, q_{j z}`.

    Best approximations of low rank need not exist: terms grow without bound and cancel each other, and whole numbers of
    8 bits hold nothing of what they leave. A small price on their size keeps them apart (Phan and others 2020 hold them
    down with the error of a kernel as a bound; here both are of what arrives), and the descent comes further.

    References:
        Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, "Speeding-up convolutional neural networks using fine-tuned
        CP-decomposition", 2015, https://arxiv.org/abs/1412.6553
        Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavsky, Glukhov, Oseledets, Cichocki, "Stable low-rank tensor
        decomposition for compression of convolutional neural network", 2020, https://arxiv.org/abs/2008.05441
    """

    name = "cpd"
    penalty = 3e-4

    def size(self, kernel: tuple[int, ...], rank: Rank) -> int:
        return one_of(rank) * sum(kernel) + kernel[0]

    def largest(self, kernel: tuple[int, ...], numbers: int) -> Rank | None:
        rank = (numbers - kernel[0]) // sum(kernel)
        return rank if rank >= 1 else None

    def start(self, passed: Passage, rank: Rank, starts: int, steps: int) -> Factors:
        return decompose(passed.kernel, one_of(rank), starts=starts, steps=steps).factors[1:]

    def rows(self, factors: Factors) -> Float[Tensor, "R m"]:
        first, *others = (one.mT for one in factors)
        return reduce(lambda Z, one: (Z[:, :, None] * one[:, None]).flatten(1), others, first)

    def scaled(self, factors: Factors, passed: Passage) -> Factors:
        """Unit columns, and maps of unit size: whole numbers have one step for all of them."""
        *first, last = (one / one.norm(dim=0).clamp_min(TINY) for one in factors)
        Z = self.rows((*first, last))
        return (*first, last / (Z @ passed.S * Z).sum(1).sqrt().clamp_min(TINY))

    def steps(self, factors: Factors, like: Dense) -> list[nn.Module]:
        channels, *axes = factors
        made: list[nn.Module] = [make_pointwise(channels.mT, None, like.weight, len(axes))]
        for axis, columns in enumerate(axes):
            shape = [1] * len(axes)
            shape[axis] = len(columns)
            kernel = columns.mT.reshape(-1, 1, *shape)
            made.append(make_convolution(kernel, None, like, **along(like, axis, len(kernel))))
        return made


class Tucker2(Form):
    r"""To b channels, and a kernel from these to a: maps :math:`\sum_b G_{a b k} V_{c b}`.

    References:
        Kim, Park, Yoo, Choi, Yang, Shin, "Compression of deep convolutional neural networks for fast and low power
        mobile applications", 2016, https://arxiv.org/abs/1511.06530
    """

    name = "tucker2"
    several = True

    def size(self, kernel: tuple[int, ...], rank: Rank) -> int:
        (n, c, *sizes), (a, b) = kernel, two_of(rank)
        return b * c + a * b * math.prod(sizes) + n * a + n

    def largest(self, kernel: tuple[int, ...], numbers: int) -> Rank | None:
        """Both ranks in the same share of the channels."""
        n, c = kernel[:2]
        shares = (step / max(n, c) for step in range(max(n, c), 0, -1))
        ranks = ((max(1, round(share * n)), max(1, round(share * c))) for share in shares)
        return next((rank for rank in ranks if self.size(kernel, rank) <= numbers), None)

    def start(self, passed: Passage, rank: Rank, starts: int, steps: int) -> Factors:
        U, V = orthogonal_factors(passed.kernel, *two_of(rank))
        return torch.einsum("nc...,na,cb->ab...", passed.kernel, U, V), V

    def rows(self, factors: Factors) -> Float[Tensor, "R m"]:
        core, V = factors
        return torch.einsum("ab...,cb->ac...", core, V).flatten(1)

    def steps(self, factors: Factors, like: Dense) -> list[nn.Module]:
        core, V = factors
        return [make_pointwise(V.mT, None, like.weight, core.ndim - 2), make_convolution(core, None, like)]


FORMS: Mapping[str, Form] = {one.name: one for one in (SVD(), CPD(), Tucker2())}
"""Every form by its name. A new one is a class and its place here."""


def one_of(rank: Rank) -> int:
    """A rank that is one number."""
    if isinstance(rank, tuple):
        raise ValueError(f"expected a rank of one number, got {rank}")
    return rank


def two_of(rank: Rank) -> tuple[int, int]:
    """A rank that is two."""
    if not isinstance(rank, tuple):
        raise ValueError(f"expected a rank of two numbers, of outputs and of inputs, got {rank}")
    return rank


def thin_kernel(
    passed: Passage, form: Form, rank: Rank, effort: tuple[int, int, int]
) -> tuple[Chained, Float[Tensor, "n m"]]:
    """Convolutions of a form in the place of one, and the kernel that they stand for.

    The factors of the kernel itself go on to those of the least error for what arrives, the last map being the best one
    for them at every step.

    Args:
        passed: The convolution, and what passes it.
        form: Its form.
        rank: The rank.
        effort: Starts and steps of the kernel's own decomposition, and steps afterwards.
    """
    starts, steps, refined = effort
    factors = form.scaled(descended(passed, form, form.start(passed, rank, starts, steps), refined), passed)
    Z = form.rows(factors)
    A = passed.outer(Z)
    bias = passed.leaving - A @ (Z @ passed.arriving)
    last = make_pointwise(A, bias, passed.dense.weight, passed.kernel.ndim - 2)
    return Chained(form.steps(factors, passed.dense), last), A @ Z


def descended(passed: Passage, form: Form, factors: Factors, steps: int) -> Factors:
    """Factors of less error for what arrives, by L-BFGS."""
    if form.least:
        return factors
    found = [one.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for one in factors]
    descent = LBFGS(
        found,
        max_iter=steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE,
    )

    def loss() -> float:
        with torch.enable_grad():
            Z = form.rows(tuple(found))
        descent.zero_grad()
        error, slope = passed.error(Z.detach(), form.penalty)
        Z.backward(slope)
        return error

    before, _ = passed.error(form.rows(factors), form.penalty)
    descent.step(loss)
    after = tuple(one.detach() for one in found)
    gained = passed.error(form.rows(after), form.penalty)[0] < before
    return after if gained else factors


TOLERANCE = 1e-12
"""Where the descent ends before all its steps."""
