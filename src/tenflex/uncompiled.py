"""What PyTorch wraps to keep its compiler out, without the wrapper, which imports the compiler to do so.

Each process that compresses something would wait seconds for that, and for nothing.
"""

from __future__ import annotations

from inspect import unwrap
from typing import TypeVar

from torch import optim
from torch.utils._python_dispatch import TorchDispatchMode

Mode = TypeVar("Mode", bound=type[TorchDispatchMode])


class LBFGS(optim.LBFGS):
    """PyTorch's, the same bits at every step.

    References:
        Liu, Nocedal, "On the limited memory BFGS method for large scale optimization", 1989,
        https://doi.org/10.1007/BF01589116
    """

    add_param_group = unwrap(optim.Optimizer.add_param_group)
    zero_grad = unwrap(optim.Optimizer.zero_grad)


def uncompiled(mode: Mode) -> Mode:
    """A class that is told of every operator, as it was written."""
    mode.__torch_dispatch__ = unwrap(mode.__torch_dispatch__)  # type: ignore[method-assign]
    return mode
