"""The samples on which errors of whole layers are told."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from tenflex.split import Split
from tenflex.sums import total_of


def judging(split: Split) -> Int[Tensor, " some"]:
    """Those that choose nothing, or where no process has such those that choose, or else the fitted ones."""
    return next(one for one in (split.test, split.validation, split.fitted) if total_of(len(one)))
