"""Blocks that are two convolutions with a known activation function between them, as nodes at places of images."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.kept.descent import Rows
from tenflex.kept.recognise import TRIED, alike
from tenflex.nn.elementwise import recognised
from tenflex.nn.feed_forward import Nodes, Spread, Stage
from tenflex.nn.feed_forward_conv import Sliding
from tenflex.surgery.quiet import undisturbed

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, eq=False)
class Convolved:
    """One call of a convolution, with the normalisation behind it, if there is one.

    Args:
        x: What it was given.
        y: What it gave.
        weight: Its kernels.
        bias: Its bias.
        sliding: How the kernels slide.
    """

    x: Float[Tensor, "S channels *size"]
    y: Float[Tensor, "S n *places"]
    weight: Float[Tensor, "n channels *kernel"]
    bias: Float[Tensor, " n"]
    sliding: Sliding

    @staticmethod
    def of(module: nn.Module, x: Tensor, y: Tensor) -> Convolved | None:
        """That of a plain convolution."""
        sliding = Sliding.of(module)
        if sliding is None or not isinstance(module, (nn.Conv1d, nn.Conv2d)):
            return None
        bias = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias
        return Convolved(x, y, module.weight.detach(), bias.detach(), sliding)

    def normalised(self, module: nn.Module, y: Tensor) -> Convolved | None:
        """The same with a normalisation behind it, which is in eval mode."""
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not isinstance(module, NORMS) or module.training or mean is None or variance is None:
            return None
        scale = (variance + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight.detach()
        shift = -mean * scale if module.bias is None else module.bias.detach() - mean * scale
        weight = self.weight * scale.view(-1, *[1] * (self.weight.ndim - 1))
        return replace(self, y=y, weight=weight, bias=self.bias * scale + shift)

    def matrix(self) -> Float[Tensor, "m n"]:
        """The kernels, acting on patches from the right."""
        return self.weight.flatten(1).mT.contiguous()


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a block of two convolutions, as nodes at places.

    Args:
        nodes: The nodes, with the way in which they are read.
        sliding: How both kernels slide.
    """

    nodes: Nodes
    sliding: tuple[Sliding, Sliding]

    def rows(self, x: Float[Tensor, "S channels *size"], y: Float[Tensor, "S n *places"]) -> Rows:
        """What arrives and leaves, at each place."""
        sizes = {name: _pair(name, one) for name, one in vars(self.sliding[0]).items()}
        image = x[:, :, None] if x.ndim == 3 else x
        patches = F.unfold(image, **sizes)
        return Rows(patches.mT.contiguous(), y.flatten(2).mT.contiguous())


def own_channels(function: nn.Module, x: Float[Tensor, "S *in"]) -> Channels | None:
    """The channels of a block, if it is nothing but two convolutions with a known activation function between them.

    Each may have a normalisation in eval mode behind it, which becomes a part of it. The block runs once; what passes
    through its convolutions tells how they are joined.

    Args:
        function: The block.
        x: Some of its inputs; the first few are tried.
    """
    if not isinstance(function, nn.Module) or x.ndim not in (3, 4):
        return None
    x = x[:TRIED].detach()
    passed, output = convolved(function, x.clone())
    if len(passed) != 2 or not alike(passed[0].x, x) or not alike(passed[1].y, output):
        return None
    first, second = passed
    activation = recognised(first.y.flatten(1), second.x.flatten(1))
    if activation is None or activation.name == "identity":
        return None
    spread = Spread(*(_pair(name, one) for name, one in _sizes(first.y, second.sliding).items()))
    nodes = Nodes((Stage((first.matrix(),), (first.bias,), activation),), second.matrix(), second.bias, spread)
    return Channels(nodes, (first.sliding, second.sliding))


@torch.no_grad()
def convolved(function: nn.Module, x: Float[Tensor, "S *in"]) -> tuple[list[Convolved], Tensor]:
    """The calls of convolutions in a run of a module, in order, and its output; no calls if one is something else."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def heard(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            calls.append((module, args[0].detach().clone(), output.detach().clone()))

    with undisturbed(function), ExitStack() as hooks:
        for module in function.modules():
            if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(heard).remove)
        output = function(x)
    found: list[Convolved] = []
    for module, given, gave in calls:
        behind = found[-1].normalised(module, gave) if found and alike(found[-1].y, given) else None
        one = behind or Convolved.of(module, given, gave)
        if one is None:
            return [], output
        found = [*found[:-1], one] if behind is not None else [*found, one]
    return found, output


def _sizes(between: Tensor, sliding: Sliding) -> dict[str, tuple[int, ...]]:
    names = {"places": tuple(between.shape[2:]), "kernel": sliding.kernel_size, "stride": sliding.stride}
    return {**names, "padding": sliding.padding, "dilation": sliding.dilation}


def _pair(name: str, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Sizes along two axes, a signal having one row."""
    first, second = sizes if len(sizes) == 2 else (0 if name == "padding" else 1, *sizes)
    return first, second
