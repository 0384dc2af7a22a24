"""What a format of files must give: how it is written, and how its real runtime computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.nn.folded import PYTORCH, Pace
from tenflex.sampling.inputs import precision, whereabouts
from tenflex.surgery.twin import duplicate

Inputs = tuple[Tensor, ...]

SEEN = 256
"""So many samples run at once where ranges are seen."""


class UnavailableError(ImportError):
    """A package or a program that a format needs is not there."""


def on_processor(network: nn.Module) -> nn.Module:
    """The network, or a copy of it if it is elsewhere: files are written and run by the processor."""
    device = whereabouts(network)
    return network if device is None or device.type == "cpu" else duplicate(network).cpu()


def in_single(given: tuple[nn.Module, Inputs], format: Format) -> tuple[nn.Module, Inputs]:
    """A network with inputs of it, in single precision where the format holds nothing else; the network is a copy then.

    Args:
        given: The two.
        format: The format.
    """
    network, inputs = given
    if not format.single or precision(network) in (None, torch.float32):
        return given
    return duplicate(network).float(), tuple(one.float() if one.is_floating_point() else one for one in inputs)


def in_batches(inputs: Inputs, most: int) -> list[Inputs]:
    """All samples, at most so many at once; what they share is part of each batch, whole.

    Args:
        inputs: Samples first; what has another length is shared by them.
        most: The size of a batch.
    """
    size = len(inputs[0])
    return [
        tuple(one[start : start + most] if len(one) == size else one for one in inputs)
        for start in range(0, size, most)
    ]


@dataclass(frozen=True, eq=False)
class Session:
    """A file that is loaded and runs.

    Args:
        prepare: Inputs of a network in the form that the runtime takes: not part of what is timed.
        call: Computes.
        read: What `call` gave, as a tensor of one row a sample.
        clock: The seconds of one of so many calls, where the runtime measures them itself; None for Python's clock.
    """

    prepare: Callable[[Inputs], Any]
    call: Callable[[Any], Any]
    read: Callable[[Any], Tensor]
    clock: Callable[[Any, int], float] | None = None

    def outputs(self, inputs: Inputs) -> Tensor:
        """The outputs for a batch."""
        return self.read(self.call(self.prepare(inputs)))


@dataclass(frozen=True)
class Settings:
    """What is asked of an export.

    Args:
        int8: Whether weights are whole numbers of 8 bits.
        options: Those of the format.
    """

    int8: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        runtime: What runs the files.
        write: Writes a folded network to a path, whose folder is its own, and returns all files that belong to it.
        load: Loads a file.
        options: The names of its settings.
        pace: What takes time there, which tells the fastest form of a layer.
        single: Whether its files hold single precision alone.
    """

    runtime: str
    write: Callable[[nn.Module, Inputs, Path, Settings], tuple[Path, ...]]
    load: Callable[[Path], Session]
    options: tuple[str, ...] = ()
    pace: Pace = PYTORCH
    single: bool = True
