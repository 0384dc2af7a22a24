"""All methods behind one call: a network, its blocks, inputs, a stored size, perhaps labels; a smaller network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.baselines.affine import best_affine
from tenflex.baselines.chen2021 import data_aware_svd
from tenflex.baselines.kim2016 import tucker2
from tenflex.baselines.lebedev2015 import polyadic
from tenflex.baselines.linear import is_dense, linear_layers, stored
from tenflex.baselines.luo2017 import node_dropping
from tenflex.baselines.modes import through_modes
from tenflex.baselines.shrunk import shrunk_svd
from tenflex.baselines.torch_pruning import group_pruning
from tenflex.baselines.training import Lesson, Training
from tenflex.baselines.zhang2015 import asymmetric_svd
from tenflex.checks import near_names, require_eval, require_finite, require_floating, require_whole
from tenflex.compress import compress
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import predict
from tenflex.methods.students import ACTIVATIONS, Asked, distilled
from tenflex.modes import Modes
from tenflex.planning.plan import Block
from tenflex.planning.sizes import FACTOR_TO_RANK, NARROWING, block_size
from tenflex.sampling.capture import capture
from tenflex.sampling.queries import changed
from tenflex.surgery import Cut, find_cut
from tenflex.surgery.batch import tensors_in
from tenflex.surgery.paths import encloses
from tenflex.surgery.twin import duplicate, twin
from tenflex.units import Position, find_unit, sample_of


@dataclass(frozen=True, eq=False)
class Given:
    """What every method is given.

    Args:
        model: The network, of one tensor, in eval mode; it is left as it is.
        inputs: Calibration inputs, `(S, ...)`.
        parameters: The most numbers that the smaller network may store in all.
        blocks: Names or spans of modules that may be replaced, as for `compress`; "" is the whole network.
        everywhere: Whether methods that work layer by layer may go beyond the blocks.
        labels: The classes of the inputs, for methods that need them.
        training: How what is trained is trained; its `augment` makes changed inputs, at which all methods may look.
        modes: What the first layer of every block that takes such inputs may see them through; None for no modes.

    Raises:
        TypeError: if the inputs are not a floating-point tensor.
        ValueError: if the network is in train mode, the inputs are not finite, or a size is none.

    Example:
        >>> from tenflex.methods import METHODS, Given
        >>> smaller = METHODS["svd"].run(Given(model, inputs, 120))
        >>> smaller(inputs).shape
        torch.Size([100, 3])
    """

    model: nn.Module
    inputs: Float[Tensor, "S *in"]
    parameters: int
    blocks: tuple[str, ...] = ("",)
    everywhere: bool = False
    labels: Int[Tensor, " S"] | None = None
    training: Training = field(default_factory=Training)
    modes: Modes | None = None

    def __post_init__(self) -> None:
        require_eval("model", self.model)
        require_floating("inputs", self.inputs)
        require_finite("inputs", self.inputs)
        require_whole("parameters", self.parameters, at_least=1)
        require_axes(self.modes)
        if len(self.inputs) < 2:
            raise ValueError(f"expected at least two inputs (S, ...), got {tuple(self.inputs.shape)}")

    @property
    def queries(self) -> Tensor:
        """The inputs, and a changed copy of each where something changes them."""
        if self.training.augment is None:
            return self.inputs
        copies = changed(self.training.augment, self.inputs, self.training.seed)
        return torch.cat([self.inputs, *tensors_in(copies)])

    def modes_of(self, inputs: tuple[int, ...]) -> Modes | None:
        """The modes for inputs of a shape; None if they are not for such inputs."""
        if self.modes is None or self.modes.shape is None or math.prod(self.modes.shape) != math.prod(inputs):
            return None
        return self.modes.of(inputs)

    def beyond(self, replaced: int) -> int:
        """What is left of the size for parts that store so many numbers now, all others staying.

        Raises:
            ValueError: if nothing is.
        """
        staying = stored_numbers(self.model) - replaced
        if self.parameters <= staying:
            raise ValueError(f"what is not replaced stores {staying:,} numbers already, more than {self.parameters:,}")
        return self.parameters - staying


@dataclass(frozen=True)
class Method:
    """One way to make a network smaller.

    Args:
        name: What it is called.
        source: The paper, or what it is in words.
        run: Gives the smaller network in eval mode, with at most `parameters` stored numbers.
        labels: Whether it needs labels.

    Example:
        >>> from tenflex.methods import METHODS
        >>> METHODS["svd"].labels  # needs none
        False
    """

    name: str
    source: str
    run: Callable[[Given], nn.Module]
    labels: bool = False

    def __call__(self, given: Given) -> nn.Module:
        """The smaller network.

        Raises:
            TypeError: if the method gives something else.
            ValueError: if the size or the network is none for this method, or labels are missing.
        """
        if self.labels and given.labels is None:
            raise ValueError(f"{self.name} needs labels: pass labels=, or leave it out")
        smaller: Any = self.run(given)  # a function of the user's own may give anything
        if not isinstance(smaller, nn.Module):
            got = type(smaller).__name__
            raise TypeError(
                f"{self.name} must give the smaller network, a torch.nn.Module, got {got}: let it return that"
            )
        found = stored_numbers(smaller)
        if found > given.parameters:
            raise ValueError(f"{self.name} stores {found:,} numbers, more than {given.parameters:,}")
        return smaller.eval()


def require_axes(modes: Modes | None) -> None:
    """Raise TypeError or ValueError unless modes tell of which inputs they are: hidden ones have other axes."""
    if modes is not None and not isinstance(modes, Modes):
        raise TypeError(f"modes must be such as Cosine(12, shape=(28, 28)), got {modes!r}")
    if modes is not None and modes.shape is None:
        raise ValueError(f"modes need the axes of the inputs they are for, such as shape=(28, 28), got {modes!r}")


def layer_by_layer(factorize: Callable[..., nn.Module]) -> Callable[[Given], nn.Module]:
    """A method that works on linear layers and convolutions, under the common call."""

    def run(given: Given) -> nn.Module:
        given = seeing_modes(given)
        names = [name for name, one in given.model.named_modules() if is_dense(one) and _is_inside(name, given)]
        layers = linear_layers(given.model, names)
        now = sum(stored(one, None) for one in layers.values())
        return factorize(given.model, given.queries, min(now, given.beyond(now)), layers=names)

    return run


def dropped(given: Given) -> nn.Module:
    """Fewer hidden nodes between linear layers, with what reads them fitted anew."""
    given = seeing_modes(given)
    named = given.model.named_modules()
    names = [name for name, one in named if isinstance(one, nn.Linear) and _is_inside(name, given)]
    now = sum(stored(one, None) for one in linear_layers(given.model, names).values())
    return node_dropping(given.model, given.queries, min(now, given.beyond(now)), layers=names)


def seeing_modes(given: Given) -> Given:
    """The same with a network whose first linear layer sees the inputs through the modes, if they are for it."""
    first = next((name for name, one in given.model.named_modules() if is_dense(one)), None)
    layer = None if first is None else given.model.get_submodule(first)
    if first is None or not isinstance(layer, nn.Linear) or not _is_inside(first, given):
        return given
    modes = given.modes_of((layer.in_features,))
    if modes is None:
        return given
    return replace(given, model=through_modes(given.model, given.queries, first, modes), modes=None)


def _is_inside(name: str, given: Given) -> bool:
    """Whether a layer lies in one of the blocks: in one of its modules, or between the ends of a span."""
    if given.everywhere:
        return True
    names = [one for one, _ in given.model.named_modules()]
    for block in given.blocks:
        first, _, last = block.partition(":")
        last = last or first
        if encloses(first, name) or encloses(last, name):
            return True
        if first != last and names.index(first) <= names.index(name) <= names.index(last):
            return True
    return False


def affine(given: Given) -> nn.Module:
    """The best affine map in the place of the whole network."""
    return best_affine(given.model, given.inputs)


@dataclass(frozen=True)
class Part:
    """A block with the numbers that its replacement may store.

    Args:
        cut: How it is taken out.
        parameters: The most numbers.
    """

    cut: Cut
    parameters: int


def parts_of(given: Given) -> tuple[nn.Module, list[Part]]:
    """A copy of the network that may be run, and its blocks, each with the same share of its numbers."""
    model = twin(given.model)
    cuts = [find_cut(model, name, given.inputs[:16]) for name in given.blocks]
    sizes = [stored_numbers(cut.function(model)) for cut in cuts]
    left = given.beyond(sum(sizes))
    return model, [Part(cut, int(left * size / sum(sizes))) for cut, size in zip(cuts, sizes, strict=True)]


def flexible(given: Given) -> nn.Module:
    """Flexible layers in the place of the blocks, at the sizes that fit."""
    model, parts = parts_of(given)
    ends = capture(model, [one.cut for one in parts], [given.inputs])
    blocks: dict[str, Block] = {}
    for part in parts:
        arriving, leaving = ends[part.cut.name]
        shape, outputs = sample_of(find_unit(part.cut.function(model), arriving), arriving, leaving)
        blocks[part.cut.name] = sized(shape, outputs, part.parameters, given.modes_of(shape))
    return compress(given.model, given.inputs, blocks, **sampling(given)).model


def planned(given: Given) -> nn.Module:
    """What a budget chooses, anywhere in the network."""
    return compress(given.model, given.inputs, budget=given.parameters, **sampling(given)).model


def sampling(given: Given) -> dict[str, Any]:
    """What `compress` is to use."""
    training = given.training
    return {"samples": len(given.inputs), "seed": training.seed, "augment": training.augment}


def grouped(given: Given) -> nn.Module:
    """The whole network pruned by Torch-Pruning; of modes it knows nothing."""
    return group_pruning(given.model, given.inputs, given.parameters)


def sized(shape: tuple[int, ...], outputs: int, parameters: int, modes: Modes | None = None) -> Block:
    """The widest flexible layer that stores at most so many numbers.

    Raises:
        ValueError: if not even two nodes fit.
    """
    inputs = math.prod(shape) if modes is None else modes.core_size(shape)
    factored = inputs >= NARROWING * outputs

    def block(rank: int) -> Block:
        return Block(rank, max(1, min(round(FACTOR_TO_RANK * rank), inputs)) if factored else None, modes=modes)

    def size(rank: int) -> int:
        return block_size(block(rank), shape, outputs)

    rank = 1
    while size(rank + 1) <= parameters:
        rank += 1
    if size(rank) > parameters or rank < 2:
        raise ValueError(f"a flexible layer of two nodes stores {size(2):,} numbers, more than {parameters:,}")
    return block(rank)


def student(given: Given, activation: str, **changed: Any) -> nn.Module:
    """Students in the place of the blocks, each trained to what its block gives for what arrives there.

    A block that acts on positions alone has a student that does, too, taught at all of them.

    Only a block that is given the network's own inputs can be taught at changed ones by the user's rule, and only
    answers of the network itself are scores of classes.
    """
    training = replace(given.training, **changed)
    model, parts = parts_of(given)
    ends = capture(model, [one.cut for one in parts], [given.inputs])
    answers, smaller = predict(model, given.inputs), duplicate(given.model)
    for part in parts:
        arriving, leaving = ends[part.cut.name]
        classes = same(leaving, answers) and leaving.ndim == 2 and leaving.shape[1] > 1
        inner = training if same(arriving, given.inputs) else replace(training, augment=None)
        function = part.cut.function(model)
        if isinstance(find_unit(function, arriving), Position):
            arriving, leaving = arriving.flatten(0, -2), leaving.flatten(0, -2)
        lesson = Lesson(function, arriving, leaving, None, classes)
        asked = Asked(part.parameters, activation, given.modes_of(tuple(arriving.shape[1:])))
        smaller = part.cut.replace_(smaller, distilled(lesson, asked, inner))
    return smaller.eval()


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same."""
    return one.shape == other.shape and torch.equal(one, other)


def scratch(given: Given) -> nn.Module:
    """A small network in the place of the whole one, from a random start, trained with labels."""
    lesson = replace(Lesson.of(given.model, given.inputs), labels=given.labels)
    asked = Asked(given.parameters, "relu", given.modes_of(tuple(given.inputs.shape[1:])))
    return distilled(lesson, asked, given.training)


SURVEY = "Apicella et al. 2021"

METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        Method("flexible", "this library", flexible),
        Method("planned", "this library", planned),
        Method("svd", "Chen et al. 2021", layer_by_layer(data_aware_svd)),
        Method("svd-shrunk", "Ledoit, Wolf 2004", layer_by_layer(shrunk_svd)),
        Method("asymmetric-svd", "Zhang et al. 2015", layer_by_layer(asymmetric_svd)),
        Method("tucker2", "Kim et al. 2016", layer_by_layer(tucker2)),
        Method("cpd", "Lebedev et al. 2015", layer_by_layer(polyadic)),
        Method("node-dropping", "Luo et al. 2017", dropped),
        Method("torch-pruning", "Fang et al. 2023", grouped),
        Method("affine", "least squares", affine),
        Method("student", "Hinton et al. 2015", partial(student, activation="relu")),
        Method("student-jacobians", "Czarnecki et al. 2017", partial(student, activation="relu", jacobians=1.0)),
        Method("student-augmented", "queries beside the inputs", partial(student, activation="relu", augmented=True)),
        *(
            Method(f"student-{name}", SURVEY, partial(student, activation=name, augmented=True))
            for name in ACTIVATIONS
            if name != "relu"
        ),
        Method("student-kan", "Liu et al. 2024", partial(student, activation="kan", augmented=True)),
        Method("scratch", "training with labels", scratch, labels=True),
    )
}
"""Every method by its name, ours first. A new one is one line here and one row in the contract test."""


def find_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names.

    Raises:
        TypeError: if `names` is one string, or holds something else than names.
        ValueError: if a name is unknown or given twice, or there is none.
    """
    if isinstance(names, str):
        raise TypeError(f"methods must be a sequence of names, got the string {names!r}: write [{names!r}]")
    for name in [names] if isinstance(names, Method) else names:
        if not isinstance(name, str):
            raise TypeError(f"methods must be names, got {name!r}: put a method of your own into METHODS, and name it")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods must name each method once, and at least one, got {list(names)}")
    for name in names:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}{near_names(name, METHODS)}")
    return [METHODS[name] for name in names]
