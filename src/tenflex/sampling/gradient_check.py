"""Whether the derivatives that PyTorch gives of a block are those of what it computes."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from tenflex.bases.base import positive
from tenflex.sampling.jacobian import BatchMap, flat_outputs
from tenflex.sampling.views import products

CHECKED, STEP = 64, 1e-2
"""So many samples are looked at, each so far on the way to another one and away from it."""

MISLED, NOISE = 0.5, 0.1
"""The error from which on it is told, and the share of differences that may be rounding."""


def derivative_error(f: BatchMap, x: Float[Tensor, "S *m"], n: int) -> float:
    """How far derivatives are from differences along small steps, relative to these; 0 where rounding hides it.

    Of one random combination of the outputs of each sample, each step towards the next one.

    Args:
        f: The block, as a map of a batch.
        x: What arrives at it.
        n: The number of outputs.
    """
    x = x[:CHECKED]
    if torch.finfo(x.dtype).bits < 32 or len(x) < 2:
        return 0.0
    steps = STEP * (x.roll(1, 0) - x) / 2
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(len(x), 1, n, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
    ahead, behind = x + steps, x - steps
    with torch.no_grad():
        ends = [flat_outputs(f, one).double() for one in (ahead, behind)]
    true = ((ends[0] - ends[1]) * u[:, 0]).sum(1)
    told = (products(f, x, u.to(x.dtype))[:, 0] * (ahead - behind).flatten(1)).sum(1).double()
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
