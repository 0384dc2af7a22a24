"""What is known of a block before anything is solved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.linear import CONVOLUTIONS
from tenflex.bases import Basis
from tenflex.kept.channels import own_channels
from tenflex.kept.recognise import own_nodes
from tenflex.planning.low_rank import dense_in
from tenflex.sums import flattened
from tenflex.surgery.batch import Batch, tensors_in
from tenflex.units import Example, Patch, find_unit, sample_of

HALVED, LARGER = (1, 2, 4), 1.4
"""Further sizes: such parts of an even share, where they are so many times what would be tried anyway."""


@dataclass(frozen=True)
class OwnSizes:
    """The sizes of a block's own layers of nodes.

    Args:
        inputs: The numbers that a node of the first layer reads.
        widths: The nodes of each layer.
        gates: The directions of a node of each layer: 2 where it is gated.
        outputs: The numbers that come out.
        reads: How many numbers what follows stores for one node: 1, or those of a kernel.
    """

    inputs: int
    widths: tuple[int, ...]
    gates: tuple[int, ...]
    outputs: int
    reads: int = 1

    def numbers(self, ranks: Sequence[int]) -> int:
        """What layers of so many nodes store."""
        total, arriving = 0, self.inputs
        for rank, gates in zip(ranks, self.gates, strict=True):
            total += rank * gates * (arriving + 1)
            arriving = rank * self.reads
        return total + (arriving + 1) * self.outputs


@dataclass(frozen=True)
class Form:
    """What a few inputs tell of a block.

    Args:
        inputs: The numbers of one sample that go in, m.
        outputs: The numbers that come out, n.
        shape: The axes of a sample; one if they are not known.
        own: The sizes of its own layers of nodes; None if it is not made of such.
        kernel: The shape of its kernel, where it is a single convolution.
        patches: Whether samples are patches.
        output_shape: The axes of an output; one if they are not known.
    """

    inputs: int
    outputs: int
    shape: tuple[int, ...]
    own: OwnSizes | None
    kernel: tuple[int, ...] = ()
    patches: bool = False
    output_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of a block before anything is solved.

    Args:
        name: The block.
        inputs: The numbers that go in, m.
        outputs: The numbers that come out, n.
        parameters: What it stores.
        layers: The linear layers in it.
        most: The most numbers that the budget leaves for it, if all other blocks were gone.
        share: The share of the parameters of all blocks that the budget leaves.
        alone: Whether there is no other block.
        basis: The functions of activations.
        steps: The most flexible layers to solve for.
        shape: The axes of an input, where it is an image, a signal or a patch of one.
        own: The sizes of its own layers of nodes; None if it is not made of such.
        kernel: The shape of its kernel, `(n, c, k1, ...)`, where it is a single convolution.
        patches: Whether one sample is a patch, as of rows of convolutions.
        channels: Whether it is two convolutions whose channels can be kept, with kernels behind the function between,
            or has such in it.
        even: The numbers that the budget leaves for each block, were they divided evenly.
        leads: Whether its outputs alone arrive at another block, whose layer may take in the last map of one for it.
        channels_before: The channels of the images or signals that such a block gives it, flat; 0 of none.
        output_shape: The axes of an output, where it is an image or a signal.
        each: How many samples one input of the network becomes at least.
    """

    name: str
    inputs: int
    outputs: int
    parameters: int
    layers: int
    most: int
    share: float
    alone: bool
    basis: Basis
    steps: int
    shape: tuple[int, ...] = ()
    own: OwnSizes | None = None
    kernel: tuple[int, ...] = ()
    patches: bool = False
    channels: bool = False
    even: int = 0
    leads: bool = False
    channels_before: int = 0
    output_shape: tuple[int, ...] = ()
    each: int = 1

    @property
    def largest(self) -> int:
        """The most numbers that are worth trying."""
        return min(self.most, int(0.9 * self.parameters))

    def smaller(self, share: float) -> Facts:
        """The same where the budget leaves such a share of what it does."""
        most, even = (round(share * one) for one in (self.most, self.even))
        return replace(self, most=most, share=share * self.share, even=even)

    def sizes(self, shares: Sequence[float]) -> list[int]:
        """Sizes to try: shares of the largest if there is no other block, else of what is left for each.

        Beside blocks that store much more a block's share is small, though it may do as much as they do: of such larger
        sizes are tried, too, up to what would be its own if all blocks were given the same.
        """
        whole = self.largest if self.alone else self.share * self.parameters
        found = [min(int(one * whole), self.largest) for one in shares]
        even, top = min(self.even, self.largest), max(found, default=0)
        more = [even // part for part in HALVED if even // part > LARGER * top]
        return found if self.alone else [*more[: max(0, self.steps - len(found))], *found]


def form_of(
    function: nn.Module,
    arriving: Float[Tensor, "S *in"],
    leaving: Tensor,
    batch: Batch,
    shape: tuple[int, ...] | None,
    answers: Sequence[Tensor] = (),
) -> Form:
    """What a few inputs tell of a block.

    Args:
        function: The block.
        arriving: What arrives at it.
        leaving: What leaves it.
        batch: The inputs of the network.
        shape: The axes of flat inputs, as far as users tell them.
        answers: The outputs of the network for these inputs.
    """
    dense = dense_in(function)
    if isinstance(dense, CONVOLUTIONS):
        kernel = tuple(dense.weight.shape)
        return Form(math.prod(kernel[1:]), kernel[0], (), None, kernel, patches=True)
    unit = find_unit(function, arriving)
    seen, outputs = sample_of(unit, arriving, leaving)
    inputs = math.prod(seen)
    if isinstance(unit, Patch):
        return Form(inputs, outputs, seen, channels_of(function, arriving), patches=True)
    if not isinstance(unit, Example):
        axes = seen if len(seen) > 1 else ()
        return Form(inputs, outputs, axes, sizes_of(unit.function(function), unit.arrived(arriving)))
    about = axes_of(arriving, batch, shape), sizes_of(function, arriving)
    return Form(inputs, outputs, *about, output_shape=output_axes(leaving, answers, shape))


def require_flat_input(shape: tuple[int, ...] | None, arriving: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if no block is given flat inputs that could have such axes."""
    if shape is not None and not any(one == (math.prod(shape),) for one in arriving.values()):
        sizes = ", ".join(f"{name or 'the network'} is given {one}" for name, one in arriving.items())
        raise ValueError(
            f"expected shape= to be the axes of flat inputs of a block, got {shape}, {math.prod(shape)} numbers; "
            f"{sizes}: give the axes that the inputs had before they were flattened, or leave shape out"
        )


def axes_of(arriving: Float[Tensor, "S *in"], batch: Batch, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes of what arrives: its own, those that users tell, or those of the network's inputs that it is, flat."""
    own = tuple(arriving.shape[1:])
    if len(own) != 1 or (shape is not None and math.prod(shape) == own[0]):
        return own if len(own) != 1 else shape or own
    for one in tensors_in(batch):
        same = one.ndim > 2 and one.shape[0] == len(arriving) and one[0].numel() == own[0]
        if same and bool((one.flatten(1) == arriving).all()):
            return tuple(one.shape[1:])
    return own


def output_axes(
    leaving: Float[Tensor, "S *out"], answers: Sequence[Tensor], shape: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The axes of what leaves a block: its own, or those that flat outputs of the network have or are said to have."""
    own = tuple(leaving.shape[1:])
    for one in answers if len(own) == 1 else ():
        same = len(one) == len(leaving) and one.numel() == leaving.numel()
        if same and torch.equal(flattened(one), leaving):
            axes = tuple(one.shape[1:])
            return shape if len(axes) == 1 and shape is not None and math.prod(shape) == own[0] else axes
    return own


def sizes_of(function: nn.Module, x: Float[Tensor, "S *m"]) -> OwnSizes | None:
    """The sizes of a block's own layers of nodes."""
    nodes = own_nodes(function, x)
    if nodes is None:
        return None
    gates = tuple(len(one.V) for one in nodes.stages)
    return OwnSizes(len(nodes.stages[0].V[0]), nodes.widths, gates, len(nodes.bias))


def channels_of(function: nn.Module, x: Float[Tensor, "S channels *size"]) -> OwnSizes | None:
    """The sizes of a block's own channels, where it is two convolutions."""
    found = own_channels(function, x)
    if found is None or found.nodes.spread is None:
        return None
    nodes, (stage,) = found.nodes, found.nodes.stages
    return OwnSizes(len(stage.V[0]), nodes.widths, (1,), len(nodes.bias), found.nodes.spread.reads)
