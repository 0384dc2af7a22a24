"""A network as a list of steps on one sample: what is written as C."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from tenflex.export.pt2 import one_graph
from tenflex.nn.activation import FlexibleActivation
from tenflex.nn.folded import Pieces, Polynomial
from tenflex.surgery.paths import set_module_
from tenflex.surgery.twin import duplicate

Shape = tuple[int, ...]

AS_A_WHOLE = (Pieces, Polynomial)
"""Modules that are one step, whatever they are made of."""

OUTSIDE = "the C exporter writes {known}, got {name}: export the part of the network before it, or another format"


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on values, which are numbered; the network's input is number 0.

    Args:
        operation: Its name, as in `OPERATIONS`.
        inputs: The values it reads.
        output: The value it makes.
        shapes: Those of the inputs, for one sample.
        shape: That of the output.
        tensors: Weights and tables.
        settings: All else: sizes, strides.
    """

    operation: str
    inputs: tuple[int, ...]
    output: int
    shapes: tuple[Shape, ...]
    shape: Shape
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """The steps of a network, for one sample.

    Args:
        steps: In order.
        in_shape: Of one input.
        out_shape: Of one output.
    """

    steps: tuple[Step, ...]
    in_shape: Shape
    out_shape: Shape

    @property
    def output(self) -> int:
        """The value that is the network's output."""
        return self.steps[-1].output

    def values(self, inputs: Tensor) -> dict[int, Tensor]:
        """All values for a batch, by PyTorch: what C is compared with and calibrated on."""
        found = {0: inputs}
        with torch.no_grad():
            for step in self.steps:
                arrived = [found[k].reshape(-1, *shape) for k, shape in zip(step.inputs, step.shapes, strict=True)]
                found[step.output] = REFERENCE[step.operation](step, *arrived)
        return found


def program_of(network: nn.Module, sample: Tensor) -> Program:
    """The steps of a network whose layers are folded.

    Args:
        network: In eval mode.
        sample: A batch of one.

    Raises:
        ValueError: if it does something that has no step.
    """
    _require_polynomials(network)
    marked, modules = _marked(network)
    with one_graph():
        exported = torch.export.export(marked, (sample.clone(),), strict=False)
    reader = Reader(_constants(exported), modules)
    for node in exported.graph.nodes:
        reader.read(node)
    return Program(_needed(reader.steps, reader.output), tuple(sample.shape[1:]), reader.out)


def _needed(steps: list[Step], output: int) -> tuple[Step, ...]:
    """The steps that a value is computed by, which is the output of the last of them."""
    wanted, found = {output}, list[Step]()
    for step in reversed(steps):
        if step.output in wanted:
            found.insert(0, step)
            wanted.update(step.inputs)
    if not found:
        raise ValueError("expected a network that computes something, got one that gives its input back")
    return tuple(found)


def _require_polynomials(network: nn.Module) -> None:
    """Raise ValueError if an activation is left that could not be folded to polynomials."""
    for module in network.modules():
        if isinstance(module, FlexibleActivation):
            raise ValueError(
                f"the C exporter writes activations that are polynomials, whole or in pieces, got {module.basis!r}: "
                f"export with a tolerance, such as tolerance=0.01, or another format"
            )


@torch.library.custom_op("tenflex::activation", mutates_args=())
def _activation(u: Tensor, number: int) -> Tensor:
    """Stands for a module that is one step, while a network is traced."""
    return u.clone()


@_activation.register_fake
def _(u: Tensor, number: int) -> Tensor:
    return torch.empty_like(u)


class Marked(nn.Module):
    """In the place of a module that is one step.

    Args:
        number: Which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, u: Tensor) -> Tensor:
        marked: Tensor = torch.ops.tenflex.activation(u, self.number)
        return marked


def _marked(network: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    new, modules = duplicate(network), list[nn.Module]()
    for path, module in list(new.named_modules(remove_duplicate=False)):
        if isinstance(module, AS_A_WHOLE):
            new = set_module_(new, path, Marked(len(modules)))
            modules.append(module)
    return new.eval(), modules


def _constants(exported: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """The parameters, buffers and constants by the names of their placeholders."""
    signature = exported.graph_signature
    stored = {**exported.state_dict, **exported.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {name: stored[target].detach() for name, target in names.items()}


class Reader:
    """Reads nodes of an exported graph, one after another.

    Args:
        constants: Stored tensors by the names of their nodes.
        modules: Those that are one step.
    """

    def __init__(self, constants: Mapping[str, Tensor], modules: list[nn.Module]) -> None:
        self.constants: dict[str, Any] = dict(constants)
        self.modules = modules
        self.known: dict[fx.Node, int] = {}
        self.owners: dict[fx.Node, fx.Node] = {}
        self.steps: list[Step] = []
        self.output, self.out = 0, Shape()

    def read(self, node: fx.Node) -> None:
        """Take in one node."""
        if node.op == "placeholder":
            if node.name not in self.constants:
                if self.known:
                    raise ValueError("the C exporter writes networks of one input, got one of several")
                self.known[node] = 0
        elif node.op == "output":
            self.leave(*node.args)
        elif node.op == "call_function":
            self.change(node)
            if node.users:
                self.call(node)

    def leave(self, results: Any) -> None:
        """Take in what the network gives."""
        if not isinstance(results, (tuple, list)) or len(results) != 1:
            raise ValueError(f"the C exporter writes networks of one output, got {results}")
        if results[0] not in self.known:
            raise ValueError("the C exporter writes networks whose outputs depend on the input, got stored numbers")
        self.output, self.out = self.known[results[0]], shape_of(results[0])

    def change(self, node: fx.Node) -> None:
        """Take in what shares its numbers with others.

        Raises:
            ValueError: if it changes them in place, and others are read afterwards.
        """
        name, source = name_of(node), next(iter(node.args), None)
        idle = name in ("dropout", "feature_dropout")  # which change nothing in eval mode
        written = [one for one in _written(node) if isinstance(one, fx.Node) and not idle]
        if isinstance(source, fx.Node) and (source in written or name in VIEWS):
            self.owners[node] = self.owners.get(source, source)
        for owner in {self.owners.get(one, one) for one in written}:
            same = [one for one, other in self.owners.items() if other is owner and one is not node]
            if any(user > node for one in (owner, *same) for user in one.users if user is not node):
                raise ValueError(
                    f"the C exporter writes changes in place of what is read no more, got {node.target}, behind which "
                    f"what it changes is read again: let the network go on with what it gives"
                )

    def call(self, node: fx.Node) -> None:
        """Take in one operation of PyTorch."""
        name = name_of(node)
        if name != "activation" and not self.values(node):
            self.constants[node.name] = self.computed(node)
            return
        if name not in LOWER and name not in SAME:
            raise ValueError(OUTSIDE.format(known=", ".join(sorted({*LOWER})), name=f"{name!r}"))
        if node.meta["val"].shape[:1] != (1,):
            raise ValueError(
                f"the C exporter writes one sample at a time, got {name!r} to {tuple(node.meta['val'].shape)} of one "
                f"sample: keep the samples an axis of their own, as in x.flatten(1) or x.unflatten(1, sizes)"
            )
        if name in SAME:
            self.known[node] = self.known[node.args[0]]  # type: ignore[index]
        else:
            LOWER[name](self, node)

    def values(self, node: fx.Node) -> list[fx.Node]:
        """The values among the arguments of a node, as often as they are given."""
        found: list[fx.Node] = []
        map_arg((node.args, node.kwargs), found.append)
        return [one for one in found if one in self.known]

    def computed(self, node: fx.Node) -> Any:
        """What an operation on stored tensors alone gives: it is the same for all inputs."""
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise ValueError(f"the C exporter writes what is the same each time, got random numbers of {target}")
        args, kwargs = map_arg((node.args, node.kwargs), self.stored)
        with torch.no_grad():
            return target(*args, **kwargs)

    def stored(self, node: fx.Node) -> Any:
        """What is stored, or computed from that."""
        if node.name not in self.constants:
            raise ValueError(f"the C exporter writes layers whose numbers are stored, got {node.name!r} in their place")
        return self.constants[node.name]

    def tensor(self, argument: Any) -> Tensor | None:
        """A stored tensor."""
        return None if argument is None else cast(Tensor, self.stored(argument)).float()

    def add(
        self, node: fx.Node, operation: str, tensors: Mapping[str, Tensor | None] | None = None, **settings: Any
    ) -> None:
        """A step for a node, with the values among its arguments as inputs."""
        sources = self.values(node)
        output = len(self.steps) + 1
        held = {key: one for key, one in (tensors or {}).items() if one is not None}
        shapes = tuple(map(shape_of, sources))
        inputs = tuple(self.known[one] for one in sources)
        self.steps.append(Step(operation, inputs, output, shapes, shape_of(node), held, settings))
        self.known[node] = output


def name_of(node: fx.Node) -> str:
    """The name of an operation, without what tells that it is done in place."""
    target = str(node.target)
    return target.split(".")[-2 if target.count(".") > 1 else 0].removesuffix("_")


def _written(node: fx.Node) -> list[Any]:
    """The arguments that an operation changes."""
    known = getattr(node.target, "_schema", None)
    named = [] if known is None else [one for one in known.arguments if one.alias_info and one.alias_info.is_write]
    places = {} if known is None else {one.name: place for place, one in enumerate(known.arguments)}
    given = dict(enumerate(node.args))
    return [node.kwargs.get(one.name, given.get(places[one.name])) for one in named]


def shape_of(node: Any) -> Shape:
    """The shape of a node for one sample."""
    return tuple(int(size) for size in node.meta["val"].shape[1:])


SAME = {
    *("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "alias", "detach"),
    *("dropout", "feature_dropout", "lift_fresh_copy", "_unsafe_view"),
}
"""Operations that leave the numbers and their order as they are."""

PARTS = {"slice", "select", "narrow", "expand", "split", "chunk", "unbind"}
VIEWS = (SAME - {"clone", "lift_fresh_copy"}) | {"permute", "transpose", "movedim"} | PARTS
"""Operations whose results may share their memory with what they are of."""


def _given(node: fx.Node, names: str, *defaults: Any) -> dict[str, Any]:
    """The arguments after the first by name."""
    values = dict(zip(names.split(), defaults, strict=True))
    values.update(zip(names.split(), node.args[1:], strict=False))
    values.update(node.kwargs)
    return values


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    value = default if value in (None, []) else value
    return (value, value) if isinstance(value, int) else tuple(value) * (1 if len(value) == 2 else 2)


def _linear(reader: Reader, node: fx.Node) -> None:
    given = _given(node, "weight bias", None, None)
    weight = {"weight": reader.tensor(given["weight"]), "bias": reader.tensor(given["bias"])}
    reader.add(node, "linear", weight)


def _conv2d(reader: Reader, node: fx.Node) -> None:
    given = _given(node, "weight bias stride padding dilation groups", None, None, 1, 0, 1, 1)
    if isinstance(given["padding"], str):
        raise ValueError(f"the C exporter writes convolutions with padding in numbers, got {given['padding']!r}")
    weight = {"weight": reader.tensor(given["weight"]), "bias": reader.tensor(given["bias"])}
    stride, padding, dilation = (_pair(given[name]) for name in ("stride", "padding", "dilation"))
    sizes = {"stride": stride, "padding": padding, "dilation": dilation}
    reader.add(node, "conv2d", weight, groups=given["groups"], **sizes)


def _conv1d(reader: Reader, node: fx.Node) -> None:
    """A convolution of images of one row."""
    given = _given(node, "weight bias stride padding dilation groups", None, None, 1, 0, 1, 1)
    if isinstance(given["padding"], str):
        raise ValueError(f"the C exporter writes convolutions with padding in numbers, got {given['padding']!r}")
    weight = {"weight": reader.tensor(given["weight"]), "bias": reader.tensor(given["bias"])}
    names, none = ("stride", "padding", "dilation"), {"stride": 1, "padding": 0, "dilation": 1}
    sizes = {name: (none[name], _pair(given[name])[0]) for name in names}
    held = {**weight, "weight": cast(Tensor, weight["weight"]).unsqueeze(2)}
    reader.add(node, "conv2d", held, groups=given["groups"], **sizes)
    _of_one_row(reader)


def _of_one_row(reader: Reader) -> None:
    """Let the last step take its signals for images of one row."""
    last = reader.steps[-1]
    shapes = [(*one[:-1], 1, one[-1]) for one in (*last.shapes, last.shape)]
    reader.steps[-1] = replace(last, shapes=(shapes[0],), shape=shapes[1])
    _of_channels(reader)


def _of_channels(reader: Reader) -> None:
    """Let the last step take what has no channels for one of them."""
    last = reader.steps[-1]
    shapes = [(*[1] * (3 - len(one)), *one) for one in (*last.shapes, last.shape)]
    reader.steps[-1] = replace(last, shapes=(shapes[0],), shape=shapes[1])


def _batch_norm(reader: Reader, node: fx.Node) -> None:
    """An affine map of each channel; multiplied into the map before, if that gives the channels and nothing else."""
    names = "weight bias running_mean running_var training momentum eps cudnn_enabled"
    given = _given(node, names, *[None] * 4, False, None, 1e-5, False)
    weight, bias, mean, variance = (reader.tensor(given[name]) for name in names.split()[:4])
    if mean is None or variance is None or given["training"]:
        raise ValueError("the C exporter writes batch normalisation with stored statistics, got one without")
    scale = (variance.double() + float(given["eps"])).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean.double() * scale
    last = reader.steps[-1] if reader.steps else None
    if last is None or not _gives_channels(reader, last, node):
        reader.add(node, "affine", {"scale": scale.float(), "shift": shift.float()})
        return
    old = last.tensors["weight"].double()
    before = last.tensors["bias"].double() if "bias" in last.tensors else torch.zeros_like(scale)
    tensors = {
        "weight": (old * scale.view(-1, *[1] * (old.ndim - 1))).float(),
        "bias": (before * scale + shift).float(),
    }
    reader.steps[-1] = replace(last, tensors=tensors)
    reader.known[node] = last.output


def _gives_channels(reader: Reader, last: Step, node: fx.Node) -> bool:
    """Whether a step is a map whose outputs are the channels that a node takes, and which nothing else reads."""
    source: Any = node.args[0]
    same = {one for one, value in reader.known.items() if value == last.output}
    alone = source in same and {user for one in same for user in one.users} <= {*same, node}
    channels = last.operation == "conv2d" or (last.operation == "linear" and len(last.shape) == 1)
    return alone and channels and shape_of(source)[0] == last.shape[0]


MAX = "kernel_size stride padding dilation ceil_mode"
AVERAGE = "kernel_size stride padding ceil_mode count_include_pad divisor_override"
OTHERS = {"max_pool2d": (1, False), "avg_pool2d": (False, True, None)}
"""The arguments of pooling, and what those after the padding are unless given."""


def _max_pool2d(reader: Reader, node: fx.Node) -> None:
    given = _given(node, MAX, None, [], 0, *OTHERS["max_pool2d"])
    if given["ceil_mode"]:
        raise ValueError("the C exporter writes pooling without ceil_mode, got ceil_mode=True")
    size = _pair(given["kernel_size"])
    stride, padding, dilation = _pair(given["stride"], size), _pair(given["padding"]), _pair(given["dilation"])
    reader.add(node, "max_pool2d", size=size, stride=stride, padding=padding, dilation=dilation)
    _of_channels(reader)


def _avg_pool2d(reader: Reader, node: fx.Node) -> None:
    given = _given(node, AVERAGE, None, [], 0, *OTHERS["avg_pool2d"])
    size, padding = _pair(given["kernel_size"]), _pair(given["padding"])
    if given["ceil_mode"] or padding != (0, 0) or given["divisor_override"] not in (None, size[0] * size[1]):
        raise ValueError("the C exporter writes average pooling without padding, ceil_mode and divisor_override")
    reader.add(node, "avg_pool2d", size=size, stride=_pair(given["stride"], size))
    _of_channels(reader)


def _adaptive_avg_pool2d(reader: Reader, node: fx.Node) -> None:
    (height, width), (rows, columns) = shape_of(node.args[0])[-2:], shape_of(node)[-2:]
    if height % rows or width % columns:
        raise ValueError(f"the C exporter writes pooling to a divisor of {height, width}, got {rows, columns}")
    size = height // rows, width // columns
    reader.add(node, "avg_pool2d", size=size, stride=size)
    _of_channels(reader)


def _pool1d(reader: Reader, node: fx.Node, kind: str) -> None:
    """Pooling of images of one row."""
    names, none = ("size", "stride", "padding", "dilation"), {"size": 1, "stride": 1, "padding": 0, "dilation": 1}
    names_of = MAX if kind == "max_pool2d" else AVERAGE.removesuffix(" divisor_override")
    given = _given(node, names_of, None, [], 0, *(OTHERS[kind][:2]))
    padding = _pair(given["padding"])[0]
    if given["ceil_mode"] or (padding and kind == "avg_pool2d"):
        raise ValueError("the C exporter writes pooling without ceil_mode, and averages without padding")
    size = _pair(given["kernel_size"])[0]
    found: dict[str, int] = {"size": size, "stride": _pair(given["stride"], size)[0], "padding": padding}
    found["dilation"] = _pair(given.get("dilation", 1))[0]
    kept = names if kind == "max_pool2d" else names[:2]
    sizes: dict[str, Any] = {name: (none[name], found[name]) for name in kept}
    reader.add(node, kind, **sizes)
    _of_one_row(reader)


def _adaptive_avg_pool1d(reader: Reader, node: fx.Node) -> None:
    length, places = shape_of(node.args[0])[-1], shape_of(node)[-1]
    if length % places:
        raise ValueError(f"the C exporter writes pooling to a divisor of {length}, got {places}")
    reader.add(node, "avg_pool2d", size=(1, length // places), stride=(1, length // places))
    _of_one_row(reader)


def _mean(reader: Reader, node: fx.Node) -> None:
    source, asked = shape_of(node.args[0]), (*node.args, None)[1]
    over: Any = asked if isinstance(asked, (list, tuple)) else []
    if len(source) == 2 and [one % 3 for one in over] == [2]:
        reader.add(node, "avg_pool2d", size=(1, source[1]), stride=(1, source[1]))
        last = reader.steps[-1]
        reader.steps[-1] = replace(last, shapes=((source[0], 1, source[1]),), shape=(source[0], 1, 1))
        return
    if len(source) != 3 or sorted(one % 4 for one in over) != [2, 3]:
        raise ValueError(f"the C exporter writes means over height and width, or the length, got dimensions {asked}")
    [_, height, width] = source
    reader.add(node, "avg_pool2d", size=(height, width), stride=(height, width))


def _add(reader: Reader, node: fx.Node) -> None:
    """A sum of two values, or of one and stored numbers."""
    values, shape = reader.values(node), shape_of(node)
    if node.kwargs or {*map(shape_of, values)} != {shape}:
        raise ValueError("the C exporter writes sums of two values of one shape, got another sum")
    if len(values) == 2:
        reader.add(node, "add")
        return
    [other] = [one for one in node.args if one not in values]
    if isinstance(other, fx.Node):
        added = cast(Tensor, reader.tensor(other)).broadcast_to(1, *shape)
        reader.add(node, "plus", {"added": added.reshape(shape)})
    else:
        one = torch.ones(1, device="cpu")
        reader.add(node, "affine", {"scale": one, "shift": float(cast(float, other)) * one})


def _permute(reader: Reader, node: fx.Node) -> None:
    count = len(shape_of(node)) + 1
    given: Any = node.args[1:]
    name = str(node.target)
    order = given[0] if "permute" in name else _moved(count, *given) if "movedim" in name else _swapped(count, *given)
    order = [int(one) % count for one in order]
    if order[0] != 0:
        raise ValueError("the C exporter writes one sample at a time, got a permutation of the batch")
    reader.add(node, "permute", order=tuple(one - 1 for one in order[1:]))


def _swapped(count: int, first: Any, second: Any) -> list[int]:
    order = list(range(count))
    order[first], order[second] = order[second], order[first]
    return order


def _whole(reader: Reader, node: fx.Node) -> None:
    module: Any = reader.modules[int(node.args[1])]  # type: ignore[arg-type]
    if isinstance(module, Polynomial):
        reader.add(node, "polynomial", {"table": module.coefficients.mT.contiguous()}, module=module)
    else:
        held = {"table": module.table, "breaks": module.breaks}
        reader.add(node, "pieces", held, module=module)


def _clamped(reader: Reader, node: fx.Node) -> None:
    given: Any = (*node.args[1:3], None, None)
    low, high = _bounds(node) if "hardtanh" in str(node.target) else given[:2]
    reader.add(node, "clamp", low=low, high=high)


def _bounds(node: fx.Node) -> tuple[float, float]:
    given: list[Any] = [*node.args[1:3], *(-1.0, 1.0)[len(node.args) - 1 :]]
    return float(given[0]), float(given[1])


def _moved(count: int, source: Any, target: Any) -> list[int]:
    """As `torch.movedim`."""
    sources, targets = ([one] if isinstance(one, int) else list(one) for one in (source, target))
    placed = {to % count: at % count for at, to in zip(sources, targets, strict=True)}
    rest = iter([one for one in range(count) if one not in placed.values()])
    return [placed[at] if at in placed else next(rest) for at in range(count)]


LOWER: dict[str, Callable[[Reader, fx.Node], None]] = {
    "linear": _linear,
    "conv1d": _conv1d,
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "max_pool1d": lambda reader, node: _pool1d(reader, node, "max_pool2d"),
    "avg_pool1d": lambda reader, node: _pool1d(reader, node, "avg_pool2d"),
    "adaptive_avg_pool1d": _adaptive_avg_pool1d,
    "mean": _mean,
    "add": _add,
    "permute": _permute,
    "transpose": _permute,
    "movedim": _permute,
    "activation": _whole,
    "relu": lambda reader, node: reader.add(node, "clamp", low=0.0, high=None),
    "relu6": lambda reader, node: reader.add(node, "clamp", low=0.0, high=6.0),
    "hardtanh": _clamped,
    "clamp": _clamped,
    "leaky_relu": lambda reader, node: reader.add(node, "leaky", slope=float((*node.args, 0.01)[1])),  # type: ignore[arg-type]
}
"""How operations of PyTorch become steps; one entry for each more."""


def _conv(step: Step, x: Tensor) -> Tensor:
    sizes = (step.settings[name] for name in ("stride", "padding", "dilation", "groups"))
    return F.conv2d(x, step.tensors["weight"], step.tensors.get("bias"), *sizes)


def _affine(step: Step, x: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    return x * step.tensors["scale"].view(shape) + step.tensors["shift"].view(shape)


def _pool(step: Step, x: Tensor) -> Tensor:
    if step.operation == "avg_pool2d":
        return F.avg_pool2d(x, step.settings["size"], step.settings["stride"]).reshape(-1, *step.shape)
    sizes = (step.settings[name] for name in ("size", "stride", "padding", "dilation"))
    return F.max_pool2d(x, *sizes)


REFERENCE: dict[str, Callable[..., Tensor]] = {
    "linear": lambda step, x: F.linear(x, step.tensors["weight"], step.tensors.get("bias")),
    "conv2d": _conv,
    "affine": _affine,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "add": lambda step, x, y: x + y,
    "plus": lambda step, x: x + step.tensors["added"],
    "permute": lambda step, x: x.permute(0, *(one + 1 for one in step.settings["order"])),
    "pieces": lambda step, x: step.settings["module"](x),
    "polynomial": lambda step, x: step.settings["module"](x),
    "clamp": lambda step, x: x.clamp(step.settings["low"], step.settings["high"]),
    "leaky": lambda step, x: F.leaky_relu(x, step.settings["slope"]),
}
"""What steps do, by PyTorch."""


def size_of(shape: Shape) -> int:
    """The numbers of a value."""
    return prod(shape)
