"""Which rows of a block are sampled, and whether they are enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tenflex.blocks.outputs import require_output_modes
from tenflex.checks import require_finite, require_floating
from tenflex.distributed import own_examples
from tenflex.evaluate.report import Sampled
from tenflex.kept import Own
from tenflex.kept.fit import require_own
from tenflex.planning.low_rank import dense_in, is_for_kernel, require_low_rank
from tenflex.planning.plan import Block, LowRank, Plan
from tenflex.problem import require_scale, require_sizes
from tenflex.sampling.capture import capture
from tenflex.sampling.memory import Budget
from tenflex.sampling.order import require_rows_in_order, require_rows_of_all
from tenflex.sampling.queries import joined
from tenflex.sampling.views import views_for
from tenflex.split import Split, groups_of_rows, keeps_groups, split_samples
from tenflex.sums import divided, total_of
from tenflex.surgery import Cut
from tenflex.surgery.batch import Batch, backwards, count_samples, few, rows_of, take
from tenflex.units import Drawn, Image, Patch, draw, find_mask, find_unit, patches_of_kernel
from tenflex.units.mask import mask_for
from tenflex.units.patch import border_error


def groups_in(batches: list[Batch]) -> Int[Tensor, " S"]:
    """The group of every example: equal ones, and changed copies with their origins, are together."""
    groups = groups_of_rows(*map(rows_of, batches))
    return groups if len(batches) == 1 else joined(groups, count_samples(batches[0]))


def never_fitted(batches: list[Batch], drawn: Iterable[Drawn], share: float) -> Bool[Tensor, " S"]:
    """The inputs of which no row is fitted, nor one of a changed copy, when such a share is held out."""
    groups = groups_in(batches)[: count_samples(batches[0])]
    held = torch.ones(len(groups), dtype=torch.bool, device=groups.device)
    for rows in drawn:
        held &= ~torch.isin(groups, rows.groups[rows.split(share).fitted])
    return held


def sampled_units(rows: Drawn, border: float, share: float) -> Sampled:
    """What was sampled, as reports tell it, such a share being held out."""
    mixed = not divided() and not keeps_groups(rows.groups, rows.split(share))
    return Sampled(str(rows.unit), rows.unit.plural, total_of(len(rows)), rows.total, rows.left_out, border, mixed)


def require_block(cut: Cut, arriving: Tensor, leaving: Tensor) -> None:
    """Raise unless a block's own inputs and outputs can be used."""
    require_finite(f"what arrives at block {cut.name!r}", arriving)
    require_finite(f"what leaves block {cut.name!r}", leaving)
    require_scale(f"what leaves block {cut.name!r}", leaving)


def drawn_rows(
    model: nn.Module, cuts: list[Cut], batches: list[Batch], plan: Plan, places: int | None = None
) -> tuple[dict[str, Drawn], dict[str, Tensor]]:
    """The rows that are sampled of each block, and what arrives at it for a few examples.

    Images of which channels are fitted have so many places together, to be compared with others that are fitted to the
    same examples; as many as usual if left out.
    """
    some = few(batches[0])
    groups, seen = groups_in(batches), capture(model, cuts, [some])
    turned = capture(model, cuts, [backwards(some)])
    masks = [find_mask(model, batch, plan.mask) for batch in batches]
    known = [one for one in masks if one is not None]
    mask = torch.cat(known) if len(known) == len(masks) else None
    drawn: dict[str, Drawn] = {}
    for cut in cuts:
        arriving, leaving = seen[cut.name]
        require_floating(f"the input of block {cut.name!r}", arriving)
        try:
            asked = plan.blocks.get(cut.name)
            named = asked if isinstance(asked, Block) else None
            function, most = cut.function(model), plan.most_rows
            kernel = is_for_kernel(asked, function)
            if kernel:
                most, unit = most_patches(function, plan.memory), patches_of_kernel(function, arriving)
            else:
                unit = find_unit(function, arriving, None if named is None else named.unit)
            whole = named is not None and isinstance(named.basis, Own) and isinstance(unit, Patch)
            if whole:
                most, unit = whole_images(most, places or MOST_PLACES, arriving, leaving), Image()
            require_rows_of_all(arriving, count_samples(some))
            require_rows_in_order(arriving, turned[cut.name][0], count_samples(some))
            each = len(arriving) // count_samples(some)
            shown = mask_for(unit, each, mask, plan.mask, cut.calls)
            rows = draw(unit, each, groups, most, plan.seed, shown)
            drawn[cut.name] = rows
            if kernel or (whole and places is not None):
                drawn[cut.name] = used_by_example(rows, each, groups, plan.held_out)
        except ValueError as error:
            raise ValueError(f"block {cut.name!r}: {error}") from None
    return drawn, {name: arriving for name, (arriving, _) in seen.items()}


MOST_PLACES = 240_000
"""The most places of images at which channels are fitted."""


def whole_images(most: int, together: int, arriving: Float[Tensor, "S *in"], leaving: Float[Tensor, "S *out"]) -> int:
    """How many images are drawn where channels stand at all of their places."""
    places = max(one[0, 0].numel() for one in (arriving, leaving))
    return min(most, max(FEWEST_IMAGES, together // places))


def used_by_example(rows: Drawn, each: int, groups: Int[Tensor, " S"], share: float) -> Drawn:
    """Rows that are fitted where their example is when examples are held out: the same ones for all blocks."""
    split = split_samples(groups, share)
    uses = torch.empty(len(groups), dtype=torch.int64, device="cpu")
    for number, one in enumerate(split):
        uses[one.cpu()] = number
    own = uses[rows.examples // each].to(groups.device)
    return replace(rows, uses=Split(*((own == number).nonzero().squeeze(1) for number in range(3))))


def most_patches(convolution: nn.Module, most_memory: int) -> int:
    """How many patches tell the second moments of what passes a convolution.

    Raises:
        ValueError: if these moments take more than so many bytes.
    """
    dense = dense_in(convolution)
    n, m = (1, 1) if dense is None else dense.weight.flatten(1).shape
    needed = 3 * 8 * (m + n) ** 2  # their sum, themselves, and what is made of them
    if needed > most_memory:
        raise ValueError(
            f"the second moments of patches of {m:,} numbers take {needed / 2**30:.1f} GiB at the peak, more than the "
            f"{most_memory / 2**30:.1f} GiB that are allowed: allow more memory"
        )
    return max(1, min(max(FEWEST_PATCHES * m, NUMBERS // (n + m)), WORK // (m * (n + m))))


NUMBERS = 16_000_000
"""Of patches and outputs of a convolution, in all."""

FEWEST_PATCHES = 4
"""Of wide convolutions, for each number of a patch."""

WORK = 2 * 10**11
"""Multiply-adds that go into the second moments of patches at most: some ten seconds."""

FEWEST_IMAGES = 64
"""Of large images too."""


def own_part(
    drawn: Mapping[str, Drawn], tried: Mapping[str, Tensor], batches: list[Batch], plan: Plan
) -> tuple[dict[str, Drawn], list[Batch]]:
    """The rows and the examples that belong to this process, of those of all.

    Raises:
        ValueError: if the plan asks for what is not divided.
    """
    require_divisible(plan)
    own, start, parts = own_examples(groups_in(batches).cpu()), 0, []
    for batch in batches:
        inside = own[(own >= start) & (own < start + count_samples(batch))] - start
        parts.append(take(batch, inside))
        start += count_samples(batch)
    some = count_samples(few(batches[0]))
    rows = {name: one.among(own, len(tried[name]) // some, plan.held_out) for name, one in drawn.items()}
    return rows, parts


def require_divisible(plan: Plan) -> None:
    """Raise ValueError if a plan asks for what one process does alone."""
    asked = plan.blocks.items()
    alone = [name for name, one in asked if isinstance(one, LowRank) or isinstance(one.basis, Own) or has_modes(one)]
    what = "metric" if plan.metric is not None else f"block {alone[0]!r}, which is no plain layer," if alone else None
    if what is not None:
        raise ValueError(f"{what} is not divided over processes: leave it out, or use one process")


def has_modes(asked: Block) -> bool:
    """Whether a layer sees its inputs, or gives its outputs, through modes."""
    return asked.modes is not None or asked.output_modes is not None


def border_error_of(rows: Drawn, function: nn.Module, inputs: Tensor) -> float:
    """What zeros outside of patches cost, on a few inputs; nothing of other units."""
    return border_error(rows.unit, function, inputs[:FEW_BORDERS]) if isinstance(rows.unit, Patch) else 0.0


FEW_BORDERS = 4
"""So many inputs tell what zeros at borders cost."""


def require_layers(
    model: nn.Module,
    cuts: list[Cut],
    originals: Mapping[str, tuple[Tensor, Tensor]],
    drawn: Mapping[str, Drawn],
    plan: Plan,
) -> None:
    """Raise unless the samples of every block are enough for its layers, and few enough for memory, before any work."""
    kept = 0
    for cut in cuts:
        asked = plan.blocks[cut.name]
        if isinstance(asked, LowRank):
            require_low_rank(cut.name, cut.function(model), asked)
            continue
        x, y = originals[cut.name]
        require_output_modes(cut, plan, drawn[cut.name], tuple(y.shape[1:]))
        if isinstance(asked.basis, Own):
            require_own(cut.name, drawn[cut.name].unit.function(cut.function(model)), x, asked.ranks)
            continue
        asked, count, n = plan.seen(asked, tuple(x.shape[1:])), len(x), y[0].numel()
        n = n if asked.output_modes is None else asked.output_modes.core_size(tuple(y.shape[1:]))
        fitted = total_of(len(drawn[cut.name].split(plan.held_out).fitted))
        try:
            m = x[0].numel() if asked.modes is None else asked.modes.core_size(tuple(x.shape[1:]))
            views = views_of(plan, asked, (fitted, n, m), plan.memory - kept)
            require_sizes(asked.ranks, asked.factor, asked.output_factor, (fitted, n, m), views)
            Budget(plan.memory - kept, n, m, views).require(count)
        except ValueError as error:
            unit = drawn[cut.name].unit
            raise ValueError(f"block {cut.name!r}: {error} (one sample is {unit})") from None
        kept += 8 * count * (n if views is None else views * (1 + n))  # along one direction at least


def views_of(plan: Plan, asked: Block, sizes: tuple[int, int, int], most_memory: int) -> int | None:
    """The views of each Jacobian that are sampled, from fitted samples, outputs and inputs; None for whole ones.

    An algorithm that was named may need whole ones, and through modes they are small.
    """
    if plan.views is not None or plan.solver is not None or asked.modes is not None:
        return plan.views if isinstance(plan.views, int) else None
    return views_for(*sizes, max(asked.ranks), most_memory, len(asked.ranks))
