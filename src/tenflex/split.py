"""Which samples are fitted, which choose among what was fitted, and which only tell the error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from tenflex.result import Judged
from tenflex.sums import total_of

FEWEST = 8
"""Of fewer samples none is held out."""


SHARE = 0.15
"""The share of the samples that is held out unless told otherwise."""


LARGEST = 2**24
"""Numbers of groups beyond this, such as times, are counted anew."""


class Split(NamedTuple):
    """Samples by their use, as indices in ascending order; no group of samples is used in two ways.

    Args:
        fitted: Those that coordinates, knots, starts and steps see.
        validation: Those on which steps and ranks are chosen, and starts together with the fitted ones.
        test: Those that choose nothing: the reported error is theirs.
    """

    fitted: Int[Tensor, " fitted"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]

    @property
    def judging(self) -> tuple[Judged, Int[Tensor, " some"]]:
        """The samples of which an error is told, and what they are: those that chose the least, of all processes."""
        uses = (Judged.TEST, self.test), (Judged.VALIDATION, self.validation), (Judged.FITTED, self.fitted)
        return next((kind, one) for kind, one in uses if total_of(len(one)))


def split_samples(groups: Int[Tensor, " S"], share: float = SHARE) -> Split:
    """Hold out a share of the samples in whole groups, half for validation and half for the test.

    Always the same ones for the same groups. Groups that are large beside the share are fitted. Where there are too few
    groups to hold one out for each use, samples are split one by one: they have nothing else in common, then.

    Args:
        groups: The group of each sample, whole numbers from 0.
        share: The share to hold out: at least 2 samples of 8 or more, and nothing of fewer or for 0. Fewer than 4 are
            all for validation.
    """
    count = len(groups)
    if share == 0 or count < FEWEST:
        nothing = groups.new_zeros(0, dtype=torch.int64)
        return Split(torch.arange(count, device=groups.device), nothing, nothing)
    wanted = min(max(round(share * count), 2), count - 2)
    test = wanted // 2 if wanted >= 4 else 0
    rooms = wanted - test, test
    numbers = groups.cpu().long()
    if int(numbers.max()) >= LARGEST:  # there is to be no table up to the largest
        numbers = numbers.unique(return_inverse=True)[1]
    uses = _dealt(numbers, rooms)
    if uses is None:
        uses = cast(Tensor, _dealt(torch.arange(count, device="cpu"), rooms))  # one by one they always fit
    return Split(*((uses.to(groups.device) == one).nonzero().squeeze(1) for one in range(3)))


def keeps_groups(groups: Int[Tensor, " S"], split: Split) -> bool:
    """Whether no group has samples of two uses."""
    each = [groups[one].unique() for one in split]
    return sum(map(len, each)) == len(groups.unique())


def _dealt(groups: Int[Tensor, " S"], rooms: tuple[int, int]) -> Int[Tensor, " S"] | None:
    """The use of each sample, groups being dealt out in a random order; None if a use gets too few samples.

    The order is that of as many groups, so that what is held out of positions is of the examples that are held out of
    examples, but for few where sizes do not divide. Groups fill the validation and then the test samples as far as they
    fit in, with a quarter to spare.
    """
    sizes = torch.bincount(groups)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(len(sizes)), device="cpu")
    use, left = torch.zeros(len(sizes), dtype=torch.int8, device="cpu"), list(rooms)
    for group, size in zip(order.numpy(), sizes[order].numpy(), strict=True):
        if max(left) <= 0:  # of many samples most are fitted
            break
        for which, room in enumerate(left):
            if 0 < size <= max(1.25 * room, 1) and room > 0:
                use[group] = which + 1
                left[which] -= int(size)
                break
    filled = all(wanted - open_ >= min(wanted, 2) for wanted, open_ in zip(rooms, left, strict=True))
    return use[groups] if filled and bool((use == 0).any()) else None


def groups_of_rows(*batches: Sequence[Shaped[Tensor, "S *shape"]]) -> Int[Tensor, " S"]:
    """Equal rows are one group: of two copies of a sample, the one tells nothing new about the other.

    Args:
        batches: One after another, each of tensors whose first dimension counts the rows.
    """
    rows = (row for batch in batches for row in zip(*map(_bits, batch), strict=True))
    prints = (int.from_bytes(hashlib.blake2b(b"".join(row), digest_size=8).digest(), "little") for row in rows)
    _, first, place = np.unique(np.fromiter(prints, np.uint64), return_index=True, return_inverse=True)
    number = np.empty_like(first)
    number[first.argsort()] = np.arange(len(first))  # in the order in which they come
    return torch.from_numpy(number[place.reshape(-1)]).to(batches[0][0].device)


def _bits(rows: Shaped[Tensor, "S *shape"]) -> Iterator[bytes]:
    """The bits of every row, a zero having no sign."""
    for part in rows.detach().split(1024):
        plain = (part + 0 if part.is_floating_point() else part).cpu().contiguous()
        yield from (row.tobytes() for row in plain.view(len(plain), -1).view(torch.uint8).numpy())
