"""Students: small networks of the shape of a flexible layer, from a random start, trained to the original's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tenflex.baselines.training import InUnits, Lesson, Training, judge, next_rate, train
from tenflex.bases.base import positive
from tenflex.modes import Modes
from tenflex.nn.activations import FAMILIES, KANLayer, Maxout
from tenflex.nn.multilinear import ModeProduct
from tenflex.planning.sizes import FACTOR_TO_RANK

PIECES = 2
"""Linear pieces of a maxout node."""

SPLINES = 8
"""B-splines on an edge of a KAN layer."""

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda nodes: nn.ReLU(),
    "gelu": lambda nodes: nn.GELU(),
    **FAMILIES,
    "maxout": lambda nodes: Maxout(PIECES),
}
"""What may stand between the two maps of a student, by name."""


@dataclass(frozen=True)
class Asked:
    """What a student is to be.

    Args:
        parameters: The most numbers it may store.
        activation: A name of `ACTIVATIONS`, or "kan".
        modes: What its first map sees its inputs through; None for the inputs as they are.
    """

    parameters: int
    activation: str
    modes: Modes | None = None


class Student(nn.Module):
    """Flat inputs, perhaps modes, a linear map, full or as a product of two, activations, a linear map.

    Args:
        in_shape: The shape of one input, without the batch.
        out_shape: The shape of one output.
        middle: The modules between flat inputs and flat outputs.
    """

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], middle: list[nn.Module]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = in_shape, out_shape
        self.middle = nn.Sequential(*middle)
        self.eval()

    def forward(self, x: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """The outputs; all dimensions before `in_shape` are batch dimensions."""
        if len(self.in_shape) > 1:
            x = x.flatten(-len(self.in_shape))
        outputs: Tensor = self.middle(x)
        return outputs.unflatten(-1, self.out_shape) if len(self.out_shape) > 1 else outputs


@dataclass(frozen=True)
class Shape:
    """The widths of a student.

    Args:
        nodes: r.
        factor: The width q of the first map as a product; None where it is full.
    """

    nodes: int
    factor: int | None


def shapes_for(inputs: int, outputs: int, parameters: int, size: Callable[[int, int | None], int]) -> list[Shape]:
    """The widest students that store at most so many numbers: with a full first map, and with a product.

    Args:
        inputs: m.
        outputs: n.
        parameters: The most numbers.
        size: The numbers stored for r nodes and a width q.

    Raises:
        ValueError: if not even one node fits.
    """
    found = []
    for factored in (False, True):
        nodes = 0
        while size(nodes + 1, width_of(nodes + 1) if factored else None) <= parameters:
            nodes += 1
        if nodes and (not factored or nodes > width_of(nodes) > 0):
            found.append(Shape(nodes, width_of(nodes) if factored else None))
    if not found:
        least = size(1, None)
        raise ValueError(
            f"a student of {inputs} inputs and {outputs} outputs stores at least {least}, got {parameters}"
        )
    return found


def width_of(nodes: int) -> int:
    """The width of a factored first map, in proportion to the nodes."""
    return max(1, round(FACTOR_TO_RANK * nodes))


def student_size(inputs: int, outputs: int, activation: str) -> Callable[[int, int | None], int]:
    """The numbers that students with an activation store, by nodes and width."""
    own = sum(one.numel() for one in ACTIVATIONS[activation](1).parameters())
    pieces = PIECES if activation == "maxout" else 1

    def size(nodes: int, factor: int | None) -> int:
        hidden = pieces * nodes
        first = inputs * hidden if factor is None else factor * (inputs + hidden)
        return first + hidden + own * nodes + nodes * outputs + outputs

    return size


def layers_of(inputs: int, outputs: int, shape: Shape, activation: str) -> list[nn.Module]:
    """The modules of a student, with random weights."""
    hidden = shape.nodes * (PIECES if activation == "maxout" else 1)
    first: list[nn.Module] = [nn.Linear(inputs, hidden)]
    if shape.factor is not None:
        first = [nn.Linear(inputs, shape.factor, bias=False), nn.Linear(shape.factor, hidden)]
    return [*first, ACTIVATIONS[activation](shape.nodes), nn.Linear(shape.nodes, outputs)]


def kan_size(inputs: int, outputs: int) -> Callable[[int, int | None], int]:
    """The numbers of a linear map to r inputs of a KAN layer."""
    return lambda nodes, factor: inputs * nodes + nodes + nodes * outputs * (1 + SPLINES)


def kan_layers(inputs: int, outputs: int, shape: Shape, activation: str) -> list[nn.Module]:
    """A linear map to r numbers, and a KAN layer."""
    return [nn.Linear(inputs, shape.nodes), KANLayer(shape.nodes, outputs, SPLINES)]


def distilled(lesson: Lesson, asked: Asked, training: Training) -> nn.Module:
    """The student of a size, whose shape and rate do best on held-out inputs after a quarter of the steps.

    Args:
        lesson: What is taught.
        asked: What it is to be.
        training: How it is trained.

    Raises:
        ValueError: if not even one node fits.
    """
    m, n = lesson.inputs[0].numel(), lesson.outputs[0].numel()
    front: list[nn.Module] = [] if asked.modes is None else [ModeProduct(asked.modes)]
    given = 0
    if asked.modes is not None:
        m, given = asked.modes.core_size((m,)), asked.modes.stored_numbers((m,))
    kan = asked.activation == "kan"
    size, layers = (kan_size(m, n), kan_layers) if kan else (student_size(m, n, asked.activation), layers_of)
    shapes = shapes_for(m, n, asked.parameters - given, size)

    def build(shape: Shape) -> list[nn.Module]:
        return [*front, *layers(m, n, shape, asked.activation)]

    started = [
        started_student(lesson, partial(build, shape), training.seed) for shape in (shapes[:1] if kan else shapes)
    ]
    student, rate = quickest([in_units_(one, lesson) for one in started], lesson, training)
    trained: Any = train(student, lesson, replace(training, rates=(rate,)))
    return folded_(trained)


def started_student(lesson: Lesson, build: Callable[[], list[nn.Module]], seed: int) -> Student:
    """A student before training, its random numbers from a seed."""
    in_shape, out_shape = tuple(lesson.inputs.shape[1:]), tuple(lesson.outputs.shape[1:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = Student(in_shape, out_shape, build()).to(lesson.inputs)
    return placed_(student, lesson)


def quickest(started: list[InUnits], lesson: Lesson, training: Training) -> tuple[InUnits, float]:
    """The start and the rate that do best on held-out inputs after a quarter of the steps.

    All starts are tried at the rates that are given, and the best of them goes on beyond the end that is best.
    """
    if len(started) == len(training.rates) == 1:
        return started[0], training.rates[0]
    judged = lesson.divided(training)[1]
    short = replace(training, steps=max(1, training.steps // 4))

    def loss(student: InUnits, rate: float) -> float:
        return judge(train(student, lesson, replace(short, rates=(rate,))), judged)

    tried = [{rate: loss(one, rate) for rate in training.rates} for one in started]
    student, losses = min(zip(started, tried, strict=True), key=lambda pair: min(pair[1].values()))
    while (rate := next_rate(training.rates, losses)) is not None:
        losses[rate] = loss(student, rate)
    return student, min(losses, key=losses.__getitem__)


@torch.no_grad()
def in_units_(student: Student, lesson: Lesson) -> InUnits:
    """A student as it is trained: the same function of inputs in usual units, whose outputs are near 0 and 1."""
    width = lesson.width
    first_map(student).weight.mul_(width)
    return InUnits(student, *lesson.units, width)


def first_map(student: nn.Module) -> nn.Linear:
    """The first of the linear maps, to which modes alone are before."""
    return next(one for one in student.modules() if isinstance(one, nn.Linear))


@torch.no_grad()
def folded_(trained: InUnits) -> nn.Module:
    """The student alone, whose first and last map take and give numbers in their own units, in place."""
    first_map(trained.inner).weight.div_(trained.width)
    middle: Any = trained.inner.middle
    last, mean = middle[-1], trained.mean.flatten()
    if isinstance(last, KANLayer):
        last.map.weight.mul_(trained.scale)
        inputs = last.edges.inputs  # the B-splines of each sum to one, so that a constant is the same in all of them
        last.map.weight[:, inputs:] += mean[:, None] / inputs
    else:
        last.weight.mul_(trained.scale)
        last.bias.mul_(trained.scale).add_(mean)
    return trained.inner


@torch.no_grad()
def placed_(student: Student, lesson: Lesson) -> Student:
    """Scale and shift what arrives at the activations to mean 0 and variance 1 on the inputs, in place.

    References:
        Mishkin, Matas, "All you need is a good init", 2016, https://arxiv.org/abs/1511.06422
    """
    x = lesson.inputs.flatten(1)
    for before, after in pairwise(list(student.middle)):
        x = before(x)
        if isinstance(before, nn.Linear) and not isinstance(after, nn.Linear):
            scale, mean = positive(x.std(0, correction=0)), x.mean(0)
            before.weight /= scale[:, None]
            before.bias.copy_((before.bias - mean) / scale)
            break
    return student
