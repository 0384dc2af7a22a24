r"""Products with Jacobians in place of whole ones: what they cost is S k (n + m), not S n m."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tenflex.checks import require_finite, require_share, require_whole
from tenflex.coordinates.active import ENOUGH, UNRELIABLE, by_energy, needed
from tenflex.coordinates.base import WIDEST_OUTPUTS, Coordinates, require_varying
from tenflex.coordinates.sensitivity import WIDEST, Sensitivity, typical_shrinkage
from tenflex.coordinates.whiten import principal_axes
from tenflex.reduction import Reduction, matrix_of, mirrored, times
from tenflex.samples import Samples
from tenflex.sampling.jacobian import LOST_ENERGY, MOST_TOLD, Backward, BatchMap, evenly, some_jacobians
from tenflex.sampling.memory import Budget
from tenflex.scratch import room
from tenflex.split import Split, groups_of_rows, split_samples
from tenflex.sums import (
    any_of,
    at_once,
    centred,
    chunks,
    divided,
    gram_matrix,
    mean_of,
    over_samples,
    own_number,
    total_of,
)

PILOT_OUTPUTS, FEWEST_PILOT_OUTPUTS = 64, 16
"""The leading combinations of the outputs whose whole Jacobians a pilot has, and how many of wide inputs at least."""

PILOT = 2**24
"""Numbers of a pilot's Jacobians, 128 MiB in float64."""

FEWEST_TOGETHER = 64
"""Samples that pass a network together, however large they are: one at a time they would take six times as long."""

ROWS = 2 * ENOUGH
"""Views for every direction of the inputs that tell the sensitivity of a map."""

MOST_ROWS = 2**25
"""Numbers of these views: 256 MiB in float64."""


WHOLE, QUICK = 2**25, 2**20
"""Numbers of whole Jacobians, 256 MiB, that are taken where they tell more than views, and without a thought."""

MOST_SEEN, FEWEST_SEEN = 2**16, 2**12
"""So many samples tell the coordinates as well as more do, and so many do even where inputs are large."""

SEEN = 2**24
"""Numbers of the inputs that tell the coordinates, 128 MiB in float64."""

PLENTY = 16
"""So many equations of outputs for every unknown of V and W leave nothing that Jacobians could add."""

MOST_VIEWS = 16
"""More views of a Jacobian tell little more."""

FEW_VIEWS = 4
"""So many tell what whole Jacobians do beside plenty of outputs, and there are not so many samples that it matters."""

Views = int | Literal["whole"]
"""How many products with each Jacobian are kept, or whole ones."""


def require_views(value: object) -> None:
    """Raise ValueError unless `value` says how much of the Jacobians is kept."""
    if value != "whole":
        try:
            require_whole("views", value, at_least=0)
        except ValueError:
            raise ValueError(
                f"views must be 'whole' (whole Jacobians), a number of at least 0 of products with each, or None to "
                f"choose by the samples, got {value!r}"
            ) from None


def views_for(fitted: int, n: int, m: int, rank: int, budget: int, layers: int = 1) -> int | None:
    """How many products with each Jacobian are worth their price, for a layer with so many nodes; None for whole ones.

    Whole ones where they are few numbers, for which views would save little time; for several layers, whose recipe goes
    further with them, where they are not very many. Where the outputs alone are `PLENTY`
    equations for every unknown of V and W, none, or `FEW_VIEWS` as long as whole ones are not very many numbers; and
    where they are not plenty, whole ones as long as these are not very many, and else `MOST_VIEWS`, or as many as fit;
    but whole ones again of so few outputs that views would be no fewer numbers, if they fit.

    Args:
        fitted: The samples that are fitted.
        n: The number of outputs.
        m: The number of inputs.
        rank: The number of nodes.
        budget: The bytes that may be taken at the peak.
        layers: How many layers of nodes.
    """
    numbers, thin = fitted * n * m, 2 * FEW_VIEWS * (n + m) <= n * m and layers == 1
    plenty = fitted * n >= PLENTY * rank * (m + n)
    if numbers <= (QUICK if plenty and thin else WHOLE):
        return None
    if plenty:
        return FEW_VIEWS if numbers <= WHOLE else 0
    active = min(m, WIDEST)
    if n <= MOST_VIEWS and Budget(budget, n, m).fitting(active) >= fitted:
        return None
    k = min(MOST_VIEWS, n)
    while k > 0 and Budget(budget, n, m, k).fitting(active) < fitted:
        k -= 1
    return k


def sample_views(
    f: BatchMap,
    inputs: Float[Tensor, "S *m"],
    outputs: Float[Tensor, "S *n"],
    budget: Budget,
    *,
    coordinates: Coordinates | None = None,
    split: Split | None = None,
    lost_energy: float = LOST_ENERGY,
    on_chunk: Callable[[int, int], None] | None = None,
) -> Samples:
    r"""The samples of a network's block in reduced coordinates, with views of the Jacobians in place of whole ones.

    A view is a product :math:`J_s^\top u` with a random combination u of the outputs, one backward pass for many
    samples; those of a sample are orthogonal to each other. The coordinates, the active axes among them, are chosen
    from views of some samples. A pilot has whole Jacobians of the leading principal outputs at some samples.

    With no number of views whole Jacobians are kept, in reduced coordinates from the first: for blocks so wide that
    even those of a few samples are large.

    Args:
        f: The block, as a map of a batch.
        inputs: What arrives at it.
        outputs: What should leave it (the original network's, when earlier blocks were replaced).
        budget: How many views of every sample are kept, and the memory that may be taken.
        coordinates: The rule of reduction; `Sensitivity()` when left out.
        split: Which samples will be fitted and which not; some 15 % are held out when left out.
        lost_energy: The share of the Jacobians' energy that may be dropped.
        on_chunk: Told how many samples of how many are done.

    Raises:
        ValueError: if something is not finite, or so many samples do not fit: the message has the number that would.
    """
    budget.require(len(inputs))
    require_share("lost_energy", lost_energy, below=1)
    split = split or split_samples(groups_of_rows((inputs,)))
    order, count = torch.cat(split), len(inputs)
    tell = on_chunk or (lambda done, total: None)
    tell(0, count)
    some = telling(split.fitted, inputs[0].numel())
    x, y = inputs[some], outputs[some].flatten(1)
    require_varying(x)
    rule = shrunk_for(coordinates or Sensitivity(), len(x), len(split.fitted))
    reduction = _reduction(f, x, y, rule, lost_energy)
    pilot, reduction = _piloted(f, x, y, reduction)
    active, n, whole = reduction.up.shape[1], y.shape[1], budget.views is None
    budget.require(count, active)
    aim = Aim(f, reduction, torch.Generator().manual_seed(1 + own_number()))
    k = n if budget.views is None else min(budget.views, n)
    like = reduction.up
    u, rows = room((count, 0 if whole else k, n), like), room((count, k, active), like)
    z, targets = room((count, active), like), room((count, n), like)
    for part in together(count, inputs[0].numel() + n):
        some = inputs[order[part]]
        z[part], targets[part] = reduction.inputs(some.flatten(1)), reduction.outputs(outputs[order[part]].flatten(1))
        if whole:
            rows[part] = aim.along(some, torch.eye(n, dtype=rows.dtype, device=rows.device))
        else:
            u[part], rows[part] = aim.drawn(some, k)
        tell(part.stop, count)
    aside = len(split.validation), len(split.test)
    found = Samples(z, targets, rows, reduction, aside=aside, directions=None if whole else u)
    return found if whole else replace(found, pilot=pilot)


def telling(fitted: Int[Tensor, " fitted"], m: int) -> Int[Tensor, " some"]:
    """As many of the fitted samples, evenly drawn, as tell the coordinates of m inputs."""
    most = min(MOST_SEEN, max(FEWEST_SEEN, SEEN // m))
    return fitted[:: max(1, -(-len(fitted) // most))]


def shrunk_for(rule: Coordinates, seen: int, count: int) -> Coordinates:
    """The rule, with the shrinkage that is typical for so many samples where it sees fewer."""
    if isinstance(rule, Sensitivity) and rule.shrinkage is None and any_of(seen < count):
        return Sensitivity(typical_shrinkage(total_of(count)))
    return rule


@dataclass(frozen=True, eq=False)
class Aim:
    """A block that is looked at in the coordinates of a reduction.

    Args:
        f: The block, as a map of a batch.
        reduction: The coordinates.
        generator: Where directions come from.
    """

    f: BatchMap
    reduction: Reduction
    generator: torch.Generator

    def drawn(self, x: Float[Tensor, "s *m"], k: int) -> tuple[Float[Tensor, "s k n"], Float[Tensor, "s k p"]]:
        """Random directions and the views along them."""
        mean = self.reduction.output_mean
        u = directions_like(mean, len(x), k, self.generator)
        return u, self.along(x, u)

    def along(self, x: Float[Tensor, "s *m"], u: Float[Tensor, "*s k n"]) -> Float[Tensor, "s k p"]:
        """The views along combinations u of the reduced outputs, of each sample or of all."""
        return products(self.f, x, times(u, mirrored(self.reduction.output_down)), self.reduction.up)


def directions_like(like: Float[Tensor, " n"], count: int, k: int, generator: torch.Generator) -> Tensor:
    """Random orthogonal directions of length sqrt(n), `(count, k, n)`: the mean of `u u^T` is the identity."""
    n = len(like)
    drawn = torch.randn(count, n, k, generator=generator, dtype=like.dtype, device="cpu").to(like)
    if k > 1:
        frames = torch.linalg.qr(drawn)[0]
        drawn = frames * torch.sign((frames * drawn).sum(1, keepdim=True))
    else:
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
    return math.sqrt(n) * drawn.mT


def products(
    f: BatchMap, x: Float[Tensor, "s *m"], u: Float[Tensor, "*s k n"], up: Float[Tensor, "m p"] | None = None
) -> Float[Tensor, "s k p"]:
    """`J_s^T u`, or these times `up`: one backward pass of the whole batch for each u of a sample, or of all."""
    own, k = u.ndim == 3, u.shape[-2]
    rows = (x if up is None else up).new_empty(len(x), k, x[0].numel() if up is None else up.shape[1])
    if k == 0:
        return rows
    back = Backward(f, x)
    for j in range(k):
        row = back.times(u[:, j] if own else u[j].expand(len(x), -1), again=j < k - 1)
        rows[:, j] = row if up is None else row.to(up) @ up
    back.require_path()
    require_finite("the Jacobians of some samples", rows)
    return rows


def together(count: int, width: int) -> Iterator[slice]:
    """Ranges of samples that pass a network together, of `width` inputs and outputs each."""
    step = min(512, max(FEWEST_TOGETHER, at_once(2 * width)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _reduction(
    f: BatchMap, inputs: Float[Tensor, "S *m"], y: Float[Tensor, "S n"], rule: Coordinates, lost_energy: float
) -> Reduction:
    """The coordinates that a rule chooses, along the active axes that are needed, all from views of some samples."""
    x = inputs.flatten(1)
    rows = some_views(f, inputs, y.shape[1])
    told = rows
    if rule.from_jacobians and not rule.from_views:
        told = some_jacobians(f, inputs, y.shape[1])
    reduction = rule.choose(x, y, told)
    energies, axes = by_energy(_gram(rows.flatten(0, 1), reduction.up))
    if total_of(rows.shape[0] * rows.shape[1]) > ENOUGH * len(axes):
        axes = axes[:, : needed(energies, max(lost_energy, UNRELIABLE))]
    return replace(reduction, down=reduction.down @ axes, up=reduction.up @ axes)


def _gram(rows: Float[Tensor, "rows m"], up: Float[Tensor, "m p"]) -> Float[Tensor, "p p"]:
    """The sum of the squares of rows in reduced coordinates."""
    gram = up.new_zeros(up.shape[1], up.shape[1])
    for part in chunks(len(rows), up.shape[1]):
        reduced = rows[part].to(up) @ up
        gram += reduced.mT @ reduced
    return over_samples(gram)  # once: processes may have other numbers of parts


def some_views(f: BatchMap, inputs: Float[Tensor, "S *m"], n: int) -> Float[Tensor, "some k m"]:
    """Views of as many samples, evenly drawn, as tell what the map does with each input; bounded in memory."""
    m = inputs[0].numel()
    some = evenly(inputs, 4 * MOST_TOLD)
    wanted = min(ROWS * min(m, WIDEST), max(len(some), MOST_ROWS // m))
    k = min(n, max(1, -(-wanted // len(some))))
    generator = torch.Generator().manual_seed(own_number())
    like = torch.empty(n, dtype=torch.float64, device=inputs.device)
    parts = together(len(some), m + n)
    return torch.cat([products(f, some[part], directions_like(like, len(some[part]), k, generator)) for part in parts])


def pilot_outputs(samples: int, active: int) -> int:
    """The leading combinations of the outputs whose Jacobians a pilot of so many samples and active inputs has."""
    return min(PILOT_OUTPUTS, max(FEWEST_PILOT_OUTPUTS, PILOT // (samples * active)))


def _piloted(
    f: BatchMap, inputs: Float[Tensor, "S *m"], y: Float[Tensor, "S n"], reduction: Reduction
) -> tuple[Samples, Reduction]:
    """Whole Jacobians of the leading outputs of some samples, and the reduction with outputs along principal axes.

    Of very many outputs only the leading axes are found, and the reduction stays as it is.
    """
    some, target = evenly(inputs, MOST_TOLD), reduction.outputs(evenly(y, 8 * MOST_TOLD))
    if y.shape[1] <= WIDEST_OUTPUTS:
        axes = by_energy(gram_matrix(centred(target)))[1]
        down, up = matrix_of(reduction.output_down) @ axes, matrix_of(reduction.output_up) @ axes
        reduction = replace(reduction, output_down=down, output_up=up)
        lead = torch.eye(len(axes), dtype=axes.dtype, device=axes.device)
    else:
        if divided():
            raise ValueError(f"more than {WIDEST_OUTPUTS} outputs are not divided over processes: use one")
        few = evenly(target, MOST_TOLD)
        lead = principal_axes(few - mean_of(few), 0.0)[0]
    lead = lead[:, : pilot_outputs(len(some), reduction.up.shape[1])]
    aim = Aim(f, reduction, torch.Generator())
    parts = together(len(some), some[0].numel() + len(lead))
    J = torch.cat([aim.along(some[part], lead.mT) for part in parts])
    F = reduction.outputs(evenly(y, MOST_TOLD)) @ lead
    return Samples(reduction.inputs(some.flatten(1)), F, J), reduction
