"""Whether the derivatives that PyTorch gives of a block are those of what it computes."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.sampling.jacobian import BatchMap, flat_outputs
from tenflex.sampling.views import products

CHECKED, STEPS = 64, (1e-2, 1e-3, 1e-4)
"""So many samples are looked at, and so far on the way from each to another one: steep functions need small steps."""

MISLED, NOISE = 0.5, 0.1
"""The error from which on it is told, and the share of differences that may be rounding."""


def derivative_error(f: BatchMap, x: Float[Tensor, "S *m"], n: int) -> float:
    """How far derivatives are from differences along small steps, relative to these.

    Of one random combination of the outputs of each sample, on the way from each to the next one; of the largest steps
    at which they agree, else of the smallest ones. It is 0 where rounding hides the differences, and where the block
    cannot be run between samples.

    Args:
        f: The block, as a map of a batch.
        x: What arrives at it.
        n: The number of outputs.
    """
    x, error = x[:CHECKED], 0.0
    if torch.finfo(x.dtype).bits < 32 or len(x) < 2:
        return error
    for step in STEPS:
        try:
            error = _error_along(f, x, step * (x.roll(1, 0) - x), n)
        except Exception:  # whatever a block may raise that is asked for numbers which never arrive
            return 0.0
        if error <= MISLED:
            break
    return error


def _error_along(f: BatchMap, x: Float[Tensor, "S *m"], ways: Float[Tensor, "S *m"], n: int) -> float:
    """The error along some ways, which begin beside the samples: what a block does at these alone is no slope."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(len(x), 1, n, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
    behind, ahead = x + ways / 2, x + 1.5 * ways
    with torch.no_grad():
        ends = [flat_outputs(f, one).double() for one in (ahead, behind)]
    true = ((ends[0] - ends[1]) * u[:, 0]).sum(1)
    told = (products(f, x + ways, u.to(x.dtype))[:, 0] * (ahead - behind).flatten(1)).sum(1).double()
    rounding = torch.finfo(x.dtype).eps * (ends[0] * u[:, 0]).norm()
    hidden = rounding > NOISE * torch.maximum(true.norm(), told.norm())
    return 0.0 if hidden else float((told - true).norm() / positive(true.norm()))


def warn_of_derivatives(name: str, f: BatchMap, x: Float[Tensor, "S *m"], n: int) -> None:
    """Warn where the derivatives of PyTorch are not those of what a block computes."""
    error = derivative_error(f, x, n)
    if error > MISLED:
        warnings.warn(
            f"block {name!r}: the derivatives that PyTorch gives differ from what the block computes by "
            f"{100 * error:.0f} % along small steps, and a layer fitted to them is worse than it could be: it detaches "
            f"or rounds something, or changes gradients; take what is for training alone out of the network",
            stacklevel=2,
        )
