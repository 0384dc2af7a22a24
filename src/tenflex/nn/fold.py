"""From trained layers to the form in which they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.checks import require_number
from tenflex.factors import Factors, LinearMap
from tenflex.nn.convolution import FlexibleConv, channel_map, patch_convolution
from tenflex.nn.curves import CELLS, DEGREES, Curves, exact, smooth, steepest, tabled
from tenflex.nn.folded import PYTORCH, Along, FoldedConv, FoldedLayer, Pace, time_of
from tenflex.nn.layer import FlexibleLayer
from tenflex.nn.polygons import Allowed, Hinges, Seen, hinges
from tenflex.nn.window import Window
from tenflex.surgery.batch import Batch, call, clone, count_samples, each, nearly_equal, take
from tenflex.surgery.hooks import hooks_of
from tenflex.surgery.paths import get_module, set_module_
from tenflex.surgery.reach import reachable
from tenflex.surgery.straight import straightened
from tenflex.surgery.twin import duplicate

Form: TypeAlias = "Curves | Hinges"

LONGER = 1.25
"""Maps along modes, which store least, may take so many times as long as what they are multiplied out to."""

AT_ONCE = 256
"""Inputs with which two forms are tried at a time."""

FASTER = 0.9
"""A form with an error may take so many times as long as the exact one at most, or it is not worth its error."""


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How far a folded layer may be from the trained one.

    Args:
        tolerance: The largest error of any output, of the largest output.
        inputs: What was seen at the layer, on which sizes and ranges are measured.
    """

    tolerance: float
    inputs: Float[Tensor, "S *in"]


def fold_layer(layer: FlexibleLayer, accuracy: Accuracy | None = None, pace: Pace = PYTORCH) -> FoldedLayer:
    """The layer folded: exactly, up to rounding, or within a tolerance in the fastest form that keeps it.

    Coefficients are summed into one table, scales and shifts go into the linear map before; products of maps, and maps
    along modes, are multiplied out where that is faster, modes only if it is much faster: they store less.
    """
    factors = _in_double(layer.factors())
    forms: Sequence[Form] = [exact(one) for one in factors.activations]
    if accuracy is not None:
        forms = _faster(factors, accuracy, pace)
    steps, out = list(_steps(_multiplied(factors), forms)), {"inputs": True, "outputs": True}
    for side, modes in (("inputs", layer.modes), ("outputs", layer.output_modes)):
        if modes is not None:
            less = {**out, side: False}
            along = _along(layer, less, forms)
            if time_of(along, pace) <= LONGER * time_of(steps, pace):
                steps, out = along, less
    return _settled(FoldedLayer(steps, layer.in_shape, layer.out_shape), layer)


def _along(layer: FlexibleLayer, out: Mapping[str, bool], forms: Sequence[Form]) -> list[nn.Module]:
    """What is applied in order, with maps along modes where they are not multiplied out."""
    steps = list(_steps(_multiplied(_in_double(layer.multiplied(**out))), forms))
    if layer.modes is not None and not out["inputs"]:
        steps.insert(0, Along(layer.modes.multilinear))
    if layer.output_modes is not None and not out["outputs"]:
        steps.append(Along(layer.output_modes.multilinear.widening))
    return steps


def fold_convolution(layer: FlexibleConv, accuracy: Accuracy | None = None, pace: Pace = PYTORCH) -> FoldedConv:
    """The convolution folded, always exactly; its modes are multiplied out."""
    whole = _whole(layer) if layer.folded else layer
    factors = _in_double(whole.factors())
    first, *steps = _steps(_multiplied(factors), [exact(one) for one in factors.activations])
    steps = steps[:-1] if layer.folded else steps
    return _settled(FoldedConv(_of_patches(cast(nn.Linear, first), layer.window), steps, layer.window), layer)


def _of_patches(linear: nn.Linear, window: Window) -> nn.Module:
    """A map of flat patches as a convolution, which pads if both sides get as many zeros."""
    none = (0,) * window.dims
    here = window if window.symmetric else replace(window, before=none, after=none)
    channels = linear.in_features // torch.Size(window.kernel).numel()
    bias: Tensor | None = linear.bias
    made = cast(nn.Conv2d, patch_convolution(channels, linear.out_features, here, None, bias=bias is not None)).double()
    with torch.no_grad():
        made.weight.copy_(linear.weight.view(made.weight.shape))
        if made.bias is not None and bias is not None:
            made.bias.copy_(bias)
    return made


def _whole(layer: FlexibleConv) -> FlexibleConv:
    """A convolution without its last map, with one that changes nothing."""
    new = cast(FlexibleConv, duplicate(layer))
    nodes = len(layer.flexible[-1].coefficients)
    last = cast(nn.Conv2d, channel_map(layer.window.dims, nodes, None, nodes)).to(next(layer.parameters()))
    with torch.no_grad():
        last.weight.copy_(torch.eye(nodes, device=last.weight.device).view(last.weight.shape))
        if last.bias is not None:
            last.bias.zero_()
    new.maps[-1] = last
    return new


Folded = TypeVar("Folded", bound=nn.Module)


def _settled(new: Folded, old: nn.Module) -> Folded:
    """For use, in the dtype and on the device of the trained layer."""
    like = next(old.parameters())
    return new.to(like.device, like.dtype).eval().requires_grad_(False)


def _multiplied(factors: Factors) -> Factors:
    """Products of two maps multiplied out where that is cheaper."""
    return replace(factors, maps=tuple(map(_cheaper, factors.maps)))


def _in_double(factors: Factors) -> Factors:
    """The factors in float64, in which everything is summed."""
    double = factors.with_tensors([one.double() for one in factors.tensors()])
    return replace(double, bias=factors.bias.double())


FOLDS: dict[type[nn.Module], Callable[[Any, Accuracy | None, Pace], nn.Module]] = {
    FlexibleLayer: fold_layer,
    FlexibleConv: fold_convolution,
}
"""How each kind of layer is folded; what is not in it is made of standard parts already, and stays."""


def fold(
    model: nn.Module,
    tolerance: float | None = None,
    arriving: Mapping[str, Tensor] | None = None,
    *,
    example: Batch | None = None,
    graph: Batch | None = None,
    pace: Pace = PYTORCH,
) -> nn.Module:
    """A copy of a network that computes the same with its flexible layers folded; it is for use, not for training.

    Args:
        model: Any network; it is not modified.
        tolerance: The largest error of any output of a layer, of its largest output, on the range that was seen; None
            for the same function up to rounding.
        arriving: What was seen at each layer, by its name; layers that are missing are folded exactly.
        example: A few inputs of the network, with which the functions are taken out that stood inside of the blocks.
        graph: Inputs with which the network will be read as one graph, as files are: linear maps are then multiplied
            in all rows if that changes nothing on them, otherwise only in rows that always run as a whole.
        pace: What takes time where it will run, which tells which form is fastest.

    Raises:
        ValueError: if the tolerance is not a positive number.
    """
    if tolerance is not None:
        require_number("tolerance", tolerance, above=0)
    new = duplicate(model).eval()
    done: dict[int, nn.Module] = {}
    for path, module in list(new.named_modules(remove_duplicate=False)):
        make = FOLDS.get(type(module))
        if make is None:
            continue
        seen = None if arriving is None or tolerance is None else arriving.get(path)
        if id(module) not in done:
            accuracy = None if seen is None or tolerance is None else Accuracy(tolerance, seen)
            done[id(module)] = make(module, accuracy, pace)
            _adopt(done[id(module)], module)
        new = set_module_(new, path, done[id(module)])
    merge_(new)
    new = new if graph is None else _merged(new, graph)
    return new if example is None else straightened(new, example)


def arriving_at(model: nn.Module, inputs: Sequence[Any]) -> dict[str, Tensor]:
    """What arrives at each layer that can be folded, by its name."""
    found: dict[str, list[Tensor]] = {path: [] for path, one in model.named_modules() if type(one) in FOLDS}
    handles = [
        get_module(model, path).register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0].detach()))
        for path, kept in found.items()
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: torch.cat(kept) for path, kept in found.items() if kept}


def _adopt(new: nn.Module, old: nn.Module) -> None:
    """Give a module the hooks of the one in whose place it comes, and what these need."""
    for name, value in vars(old).items():
        if "hook" in name or not hasattr(new, name):
            vars(new)[name] = value


def merge_(model: nn.Module, everywhere: bool = False) -> bool:
    """Multiply the last linear map of folded layers into a linear layer that follows, where that stores less.

    Args:
        model: Is changed.
        everywhere: Whether also in rows around which a forward pass may read what a part of them gives, or its weight.

    Returns:
        Whether anything was merged.
    """
    held = Counter(id(one) for module in model.modules() for one in module._modules.values())
    merged = False
    for row in list(model.modules()) if everywhere else _whole_rows(model):
        for name, (first, second) in _neighbours(row) if type(row) is nn.Sequential else ():
            alone = isinstance(first, FoldedLayer) and len(first.out_shape) == 1 and held[id(first)] == 1
            merged |= alone and type(second) is nn.Linear and _merge(row, name, (first, second))
    return merged


def _whole_rows(model: nn.Module) -> list[nn.Module]:
    """The rows that run as a whole or not at all: all that calls them are rows, and nothing else can reach them."""
    others = [one for one in model.modules() if not _is_row(one)]
    within = {id(inner) for one in others for inner in reachable(one)}
    return [one for one in model.modules() if _is_row(one) and id(one) not in within]


def _is_row(module: nn.Module) -> bool:
    """Whether a module does nothing but call others, one after another."""
    return type(module) is nn.Sequential and _untouched(module)


def _untouched(module: nn.Module) -> bool:
    """Whether a module does what its class says, and nobody listens to it or changes what it gives."""
    return "forward" not in vars(module) and not any(hooks_of(module))


def _neighbours(row: nn.Module) -> list[tuple[str, tuple[nn.Module, nn.Module]]]:
    """Modules of which one feeds the other, with the name of the second."""
    idle = {id(one) for one in row.children() if type(one) in (nn.Identity, nn.Dropout) and _untouched(one)}
    named = [(name, one) for name, one in row._modules.items() if id(one) not in idle]
    pairs = pairwise(cast(list[tuple[str, nn.Module]], named))  # some may stand there twice
    return [(name, (first, second)) for (_, first), (name, second) in pairs]


def _merge(row: nn.Module, name: str, pair: tuple[Any, Any]) -> bool:
    """Merge two neighbours, if that can be done and stores less."""
    first, second = pair
    last = first.steps[-1]
    if not all(map(_untouched, pair)) or not isinstance(last, nn.Linear) or last.bias is None:
        return False
    r, n, p = last.in_features, last.out_features, second.out_features
    if p * r > n * (r + p):
        return False
    inner, outer = last.weight.double(), second.weight.double()
    bias = outer @ last.bias.double() + (0 if second.bias is None else second.bias.double())
    first.steps[-1] = _linear(outer @ inner, bias).to(last.weight).requires_grad_(False)
    first.out_shape = (p,)
    setattr(row, name, nn.Identity())
    return True


def _merged(model: nn.Module, inputs: Batch) -> nn.Module:
    """The network with all its rows merged, if that changes nothing on any input; itself if it does.

    The two are compared in double precision, in which no rounding hides what little another reader may take.
    """
    new = duplicate(model)
    if not merge_(new, everywhere=True):
        return model
    before = duplicate(model).double()
    after = duplicate(before)
    merge_(after, everywhere=True)
    parts = (take(inputs, slice(start, start + AT_ONCE)) for start in range(0, count_samples(inputs), AT_ONCE))
    doubled = (each(part, lambda one: one.detach().double() if one.is_floating_point() else one) for part in parts)
    try:
        with torch.no_grad():
            same = all(nearly_equal(call(before, clone(part)), call(after, clone(part))) for part in doubled)
    except ValueError:  # it reads what is no more there, or is for one precision alone
        return model
    return new if same else model


def _linear(weight: Float[Tensor, "n m"], bias: Float[Tensor, " n"] | None = None) -> nn.Linear:
    """A linear layer with these numbers, in their dtype."""
    made = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made.to(weight.device)


def _steps(factors: Factors, forms: Sequence[Form]) -> Iterator[nn.Module]:
    """All linear maps with the activations between."""
    for k, form in enumerate(forms):
        yield from _all_but_last(factors, k)
        if isinstance(form, Hinges):
            wide, places, factors = _hinged(factors, k, form)
            yield from (_linear(wide.mT, places), nn.ReLU(inplace=True))
        else:
            shift = factors.activations[k].shift * form.scale + form.offset
            yield from (_linear((factors.maps[k][-1] * form.scale).mT, shift), form.module)
    yield from (*_all_but_last(factors, -1), _linear(factors.maps[-1][-1].mT, factors.bias))


def _all_but_last(factors: Factors, k: int) -> Iterator[nn.Linear]:
    yield from (_linear(one.mT) for one in factors.maps[k][:-1])


def _hinged(factors: Factors, k: int, form: Hinges) -> tuple[Tensor, Tensor, Factors]:
    """The map and the shift before the hinges of layer k, and the factors with the map behind them."""
    last, shift, (after, *others) = factors.maps[k][-1], factors.activations[k].shift, factors.maps[k + 1]
    lifted = reduce(torch.matmul, factors.maps[k + 1], form.constant)
    if k + 1 < len(factors.activations):
        factors = factors.with_activations(k + 1, shift=factors.activations[k + 1].shift + lifted)
    else:
        factors = replace(factors, bias=factors.bias + lifted)
    factors = factors.with_map(k + 1, form.weights[:, None] * after[form.owner], *others)
    return last[:, form.owner] * form.signs, form.signs * (shift[form.owner] - form.kinks), factors


def _cheaper(maps: LinearMap) -> LinearMap:
    """A product of two, or multiplied out if that takes no more multiply-adds."""
    whole = reduce(torch.matmul, maps)
    return (whole,) if whole.numel() <= sum(one.numel() for one in maps) else maps


@torch.no_grad()
def _faster(factors: Factors, accuracy: Accuracy, pace: Pace) -> list[Form]:
    """The fastest forms that keep a tolerance; exact ones if none is clearly faster."""
    x = accuracy.inputs.reshape(-1, len(factors.map(0))).to(factors.bias)
    seen = [Seen(one.amin(0), one.amax(0)) for one in factors.arguments(x)]
    most = accuracy.tolerance * factors.outputs(x).abs().max()
    slopes = [steepest(one, place) for one, place in zip(factors.activations, seen, strict=True)]
    rows = [_as(partial(smooth, degree=degree), factors, seen) for degree in DEGREES]
    rows += [_as(partial(tabled, cells=cells), factors, seen) for cells in CELLS]
    allowed = _allowed(factors, slopes, most)
    rows.append([hinges(*each) for each in zip(factors.activations, seen, allowed, strict=True)])
    kept = [row for row in rows if bool(bound(factors, row, slopes).max() <= most)]
    same: list[Form] = [exact(one) for one in factors.activations]
    enough = FASTER * time_of(list(_steps(factors, same)), pace)
    times = [time_of(list(_steps(factors, row)), pace) for row in kept]
    return kept[times.index(min(times))] if min(times, default=enough) < enough else same


def _as(make: Callable[..., Curves], factors: Factors, seen: Sequence[Seen]) -> list[Form]:
    """All layers in one form."""
    return [make(one, place) for one, place in zip(factors.activations, seen, strict=True)]


def _allowed(factors: Factors, slopes: Sequence[Float[Tensor, " r"]], most: Tensor) -> list[Allowed]:
    """What the errors of each layer may be, if all have an equal share."""
    count, weight = len(factors.activations), factors.map(-1).abs()
    found = [Allowed(weight, most / count)]
    for k in range(count - 1, 0, -1):
        weight = factors.map(k).abs() @ (slopes[k][:, None] * weight)
        found.insert(0, Allowed(weight, most / count))
    return found


def bound(factors: Factors, forms: Sequence[Form], slopes: Sequence[Float[Tensor, " r"]]) -> Float[Tensor, " n"]:
    r"""The largest error of an output: :math:`|W| e_L`, with :math:`e_l = \epsilon_l + s_l |U_{l-1}|^\top e_{l-1}`."""
    error = forms[0].error
    for k in range(1, len(forms)):
        error = forms[k].error + slopes[k] * (error @ factors.map(k).abs())
    return error @ factors.map(-1).abs()
