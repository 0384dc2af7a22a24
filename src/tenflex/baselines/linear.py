"""The linear layers and convolutions of a model: which there are, what they store, putting others in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tenflex.checks import near_names, require_whole
from tenflex.nn.low_rank import ThinLinear, parameter
from tenflex.surgery.batch import nearly_equal
from tenflex.surgery.hooks import hooks_of
from tenflex.surgery.quiet import undisturbed

CONVOLUTIONS: tuple[type[Any], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Dense = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""A layer that maps rows of m numbers to n: inputs, or patches of them."""


class ThinConvolution(nn.Module):
    """A convolution stored as two: one to q channels without a bias, then one of single positions with a bias.

    Args:
        inner: `(q, m)`, m the numbers of a patch.
        outer: `(n, q)`.
        bias: `(n,)`.
        like: The convolution in whose place it stands.
    """

    def __init__(
        self, inner: Float[Tensor, "q m"], outer: Float[Tensor, "n q"], bias: Float[Tensor, " n"], like: Dense
    ) -> None:
        super().__init__()
        kernel = like.weight.shape[2:]
        self.inner = make_convolution(inner.unflatten(1, tuple(like.weight.shape[1:])), None, like)
        self.outer = make_pointwise(outer, bias, like.weight, len(kernel))
        self.eval()

    @property
    def rank(self) -> int:
        """The channels between the two, q."""
        return int(self.inner.out_channels)

    def forward(self, input: Float[Tensor, "S c *positions"]) -> Float[Tensor, "S n *others"]:
        """The outputs, by way of q channels."""
        outputs: Tensor = self.outer(self.inner(input))
        return outputs


Thin = ThinLinear | ThinConvolution


def thin(inner: Float[Tensor, "q m"], outer: Float[Tensor, "n q"], bias: Float[Tensor, " n"], like: Dense) -> Thin:
    """Two thin layers for the place of one."""
    if isinstance(like, nn.Linear):
        return ThinLinear(inner, outer, bias, like.weight)
    return ThinConvolution(inner, outer, bias, like)


def matrix_of(layer: Dense) -> Float[Tensor, "n m"]:
    """The weight as a matrix on inputs, or on patches, in float64."""
    return layer.weight.detach().double().flatten(1)


def rows_of(layer: Dense, outputs: Float[Tensor, "*batch n *positions"]) -> Float[Tensor, "rows n"]:
    """The outputs of a layer, or of one of its kind, one position a row."""
    if not isinstance(layer, nn.Linear):
        outputs = outputs.movedim(-1 - len(layer.kernel_size), -1)
    return outputs.reshape(-1, outputs.shape[-1])


def apply_weight(layer: Dense, weight: Float[Tensor, "k *m"], inputs: Tensor) -> Float[Tensor, "rows k"]:
    """What another weight without a bias gives in a layer's place, one position a row, in the weight's precision."""
    inputs = inputs.detach().to(weight.dtype)
    if isinstance(layer, nn.Linear):
        return rows_of(layer, inputs @ weight.mT)
    kernel = weight.reshape(len(weight), *layer.weight.shape[1:])
    return rows_of(layer, layer._conv_forward(inputs, kernel, None))


def make_convolution(weight: Float[Tensor, "n c *kernel"], bias: Tensor | None, like: Dense, **changed: Any) -> Any:
    """A convolution in eval mode with the settings of `like`, but for those that are changed; draws no numbers."""
    names = ("stride", "padding", "dilation", "padding_mode")
    settings = {name: getattr(like, name) for name in names} | changed
    channels = weight.shape[1] * settings.get("groups", 1)
    kind: Any = type(like)
    layer = kind(channels, len(weight), tuple(weight.shape[2:]), bias=bias is not None, device="meta", **settings)
    layer.weight = parameter(weight, like.weight)
    if bias is not None:
        layer.bias = parameter(bias, like.weight)
    return layer.eval()


def make_pointwise(weight: Float[Tensor, "n m"], bias: Tensor | None, like: Tensor, dimensions: int) -> Any:
    """A convolution of single positions, in eval mode and of the kind of a parameter."""
    n, m = weight.shape
    layer = CONVOLUTIONS[dimensions - 1](m, n, 1, bias=bias is not None, device="meta")
    layer.weight = parameter(weight.reshape(n, m, *[1] * dimensions), like)
    if bias is not None:
        layer.bias = parameter(bias, like)
    return layer.eval()


def put_(root: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Put modules at their names in `root`, and return the root, a new one if its own name "" is among them."""
    if "" in modules:
        return modules[""]
    for name, module in modules.items():
        root.set_submodule(name, module)
    return root


def stored(linear: Dense, rank: int | None) -> int:
    """The numbers that a layer stores at a rank, or as it is."""
    n, m = len(linear.weight), linear.weight[0].numel()
    if rank is None:
        return n * m + (n if linear.bias is not None else 0)
    return rank * (m + n) + n


def is_dense(module: nn.Module) -> bool:
    """Whether it is a linear layer or a convolution of all channels, no subclass, which may compute something else."""
    return type(module) is nn.Linear or (type(module) in CONVOLUTIONS and getattr(module, "groups", 1) == 1)


def linear_of(module: nn.Module) -> nn.Linear | None:
    """A module as `nn.Linear`: itself, or one of the same numbers if it is such a map by another name.

    A subclass of it may compute something else.
    """
    if type(module) is nn.Linear:
        return module
    weight = weight_of(module)
    if weight is None:
        return None
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    made = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta")
    made.weight = parameter(weight, weight)
    if bias is not None:
        made.bias = parameter(bias, bias)
    return made.eval()


def weight_of(module: nn.Module) -> Float[Tensor, "n m"] | None:
    """The matrix of another module than `nn.Linear` that is an affine map of vectors; None if it is something else.

    What counts is what it does: GPT-2, say, keeps its weights the other way round. Whether a module with a matrix for
    its weight is such a map is found out by running it on a few numbers.
    """
    named = dict(module.named_parameters(recurse=False))
    weight, bias = named.pop("weight", None), named.pop("bias", None)
    others = named or [*module.children(), *module.buffers(recurse=False), *hooks_of(module)]
    if others or weight is None or is_lazy(weight) or isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return None
    if weight.ndim != 2 or weight.is_meta or not weight.is_floating_point():
        return None
    return next((one for one in (weight, weight.mT) if _is_map(module, one, bias)), None)


@torch.no_grad()
def _is_map(module: nn.Module, weight: Float[Tensor, "n m"], bias: Tensor | None) -> bool:
    """Whether a module gives what a map with this weight does."""
    n, m = weight.shape
    if bias is not None and bias.shape != (n,):
        return False
    x = torch.randn(3, m, generator=torch.Generator().manual_seed(0), device="cpu").to(weight)
    try:
        with undisturbed(module):
            gave = module(x)
        return isinstance(gave, Tensor) and nearly_equal(gave, nn.functional.linear(x, weight, bias))
    except Exception:  # whatever a forward pass may raise that is for other inputs, or a weight that is sparse
        return False


def linear_layers(model: nn.Module, layers: Sequence[str] | None) -> dict[str, Dense]:
    """The linear layers and convolutions of these names, all of them for None; see `is_dense`.

    Raises:
        TypeError: if `layers` is a single string.
        ValueError: if there are no linear layers, or a name is none of theirs.
    """
    known: dict[str, Any] = {name: module for name, module in model.named_modules() if is_dense(module)}
    if not known:
        raise ValueError(
            f"expected a model with nn.Linear layers or convolutions to factor, got none in this {type(model).__name__}"
        )
    if layers is None:
        return known
    if isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of names, got the string {layers!r}: write [{layers!r}]")
    if not layers:
        raise ValueError("layers must name at least one layer, got none: leave it out for all of them")
    for name in layers:
        if name not in known:
            near = near_names(name, known)
            raise ValueError(f"there is no nn.Linear or convolution named {name!r} in the model{near}")
    return {name: linear for name, linear in known.items() if name in layers}


def require_unshared(model: nn.Module, layers: Mapping[str, Dense]) -> None:
    """Raise ValueError if a parameter of the layers has a second name: factoring splits what is stored once."""
    uses = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    for name, linear in layers.items():
        if any(uses[id(one)] > 1 for one in linear.parameters()):
            raise ValueError(
                f"the layer {name!r} shares its parameters with another module, so factoring it would store more, not "
                "less: name the other layers in `layers`"
            )


def require_budget(parameters: int, layers: Mapping[str, Dense]) -> None:
    """Raise ValueError unless the budget is between rank 1 everywhere and the layers as they are."""
    require_whole("parameters", parameters, at_least=1)
    now = sum(stored(linear, None) for linear in layers.values())
    least = sum(min(stored(linear, 1), stored(linear, None)) for linear in layers.values())
    if parameters < least:
        raise ValueError(
            f"parameters must be at least {least}, which rank 1 stores in the {len(layers)} layers, got {parameters}: "
            "allow more, or name fewer layers"
        )
    if parameters > now:
        raise ValueError(
            f"parameters must be at most {now}, which the {len(layers)} layers store now, got {parameters}: "
            "there is nothing to compress"
        )
