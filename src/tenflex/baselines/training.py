"""The one training loop of all that is trained here: to a network's own outputs at any queries, or to labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.baselines.linear import ThinConvolution
from tenflex.bases.base import positive
from tenflex.checks import require_number, require_share, require_whole
from tenflex.evaluate.fidelity import predict
from tenflex.nn.low_rank import ThinLinear
from tenflex.sampling.queries import altered, seeded
from tenflex.surgery.twin import duplicate

MOST_NOISE = 0.5
"""Noise of augmented queries has at most this many standard deviations of an input; how many is drawn for each."""

MOST_RATES = 8
"""So many rates are tried at most."""

TRIAL = 4
"""Where a rate is found by trials, each takes one of so many parts of the steps."""

USUAL = 10.0
"""Scores of classes hardly spread by more than this."""

CENTRED = 2.0
"""Means of scores of classes are hardly further from 0 than so many of their spreads."""

NARROW, WIDE = 0.1, 10.0
"""Inputs vary by less or by more than this where their units are unusual."""

WORSE = 1.03
"""By no more than this may the relative squared error rise, whatever else is better."""

PROBED = 16
"""Inputs that tell whether outputs are proportional to some of a network's numbers."""

Augment = Callable[[Tensor], Tensor]
"""What a user knows may be done with inputs, `(B, ...)` to as many."""


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        steps: Steps of Adam with a one-cycle rate.
        batch: Queries at each step.
        rates: The largest rates that are tried, each from the same start; the one with the least held-out loss stays.
            Of several, the search goes on beyond the lowest or the highest while that is the best: what starts near the
            original needs rates hundreds of times smaller than what starts from nothing.
        augmented: Whether queries are mixes of pairs of inputs with noise, which the original answers, too.
        augment: What else may be done with queries, such as shifts; used with and without `augmented`.
        jacobians: The weight of the error of Jacobians, along one random direction of the outputs for each query.
        held_out: The share of the inputs that choose among rates and are never trained on.
        seed: Of everything random.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> from tenflex.baselines import Training
        >>> Training(steps=100, rates=(0.003,)).batch
        128
    """

    steps: int = 1000
    batch: int = 128
    rates: tuple[float, ...] = (2e-3, 8e-3)
    augmented: bool = False
    augment: Augment | None = None
    jacobians: float = 0.0
    held_out: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole("steps", self.steps, at_least=1)
        require_whole("batch", self.batch, at_least=1)
        require_whole("seed", self.seed, at_least=0)
        require_number("jacobians", self.jacobians, at_least=0)
        require_share("held_out", self.held_out, at_most=0.5)
        if not self.rates:
            raise ValueError("rates must hold at least one rate, got none")
        for rate in self.rates:
            require_number("each of rates", rate, above=0)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is taught: inputs, what the original answers there, and the original for other queries.

    Args:
        teacher: The original, in eval mode.
        inputs: `(S, ...)`.
        outputs: Its answers.
        labels: Classes that are taught instead of the answers; None for the answers.
        classes: Whether outputs are scores of classes, whose softened shares are compared too.
    """

    teacher: nn.Module
    inputs: Float[Tensor, "S *in"]
    outputs: Float[Tensor, "S *out"]
    labels: Int[Tensor, " S"] | None = None
    classes: bool = False

    @staticmethod
    def of(teacher: nn.Module, inputs: Tensor, labels: Tensor | None = None, classes: bool = False) -> Lesson:
        """A lesson, with the answers of the teacher to its inputs."""
        return Lesson(teacher, inputs, predict(teacher, inputs), labels, classes)

    def part(self, chosen: Tensor) -> Lesson:
        """The same with some of the inputs."""
        labels = None if self.labels is None else self.labels[chosen]
        return Lesson(self.teacher, self.inputs[chosen], self.outputs[chosen], labels, self.classes)

    def divided(self, training: Training) -> tuple[Lesson, Lesson]:
        """What is trained on, and what is held out to choose; all of it where nothing is."""
        generator = torch.Generator().manual_seed(training.seed)
        order = torch.randperm(len(self.inputs), generator=generator, device="cpu").to(self.inputs.device)
        cut = int(training.held_out * len(order))
        return self.part(order[cut:]), self.part(order[:cut] if cut else order)

    def loss(self, found: Tensor, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """The error of outputs relative to their variance, with the divergence of shares; or that of labels alone."""
        if labels is not None:
            return F.cross_entropy(found, labels)
        error = self.error(found, outputs)
        if self.classes:
            ours, theirs = ((one / self.scale).log_softmax(-1) for one in (found, outputs))
            error = error + F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
        return error

    def error(self, found: Tensor, outputs: Tensor) -> Tensor:
        """The squared error relative to the variance of the answers."""
        return (found - outputs).square().mean() / self.variance

    @cached_property
    def scale(self) -> float:
        """What scores are divided by before their shares are compared."""
        return scale_of(self.outputs)

    @property
    def units(self) -> tuple[Tensor, Tensor]:
        """The mean of each answer and the spread of all, without which they are trained best; 0 and 1 of labels.

        One spread of all keeps what they weigh beside each other. Scores of classes that spread as usual stay as they
        are: rates are for these, and of others the spread becomes the nearest that is usual.
        """
        mean, spread = self.outputs.mean(0), self.variance.sqrt()
        if self.labels is not None:
            return torch.zeros_like(mean), torch.ones_like(spread)
        if not self.classes:
            return mean, spread
        scale = spread / spread.clamp(1, USUAL)
        usual = bool(scale == 1 and (mean.abs() <= CENTRED * spread).all())
        return (torch.zeros_like(mean) if usual else mean), scale

    @property
    def width(self) -> Tensor:
        """What inputs are divided by for training: how much they vary, all together; 1 where that is usual."""
        spread = positive((self.inputs - self.inputs.mean(0)).square().mean()).sqrt()
        return spread if not NARROW <= spread <= WIDE else torch.ones_like(spread)

    @property
    def variance(self) -> Tensor:
        """The mean variance of the answers."""
        return positive((self.outputs - self.outputs.mean(0)).square().mean())


def scale_of(scores: Float[Tensor, "S classes"]) -> float:
    """What scores are divided by to spread as usual, so that outputs that are none do not count by their units."""
    among = scores.double() - scores.double().mean(1, keepdim=True)
    return max(1.0, among.square().mean().sqrt().item() / USUAL)


class InUnits(nn.Module):
    """A network that answers in units in which its outputs are near 0 and 1: as it is trained.

    Adam changes all numbers by about as much, so that what is far off in the units of the outputs would come late.

    Args:
        inner: What is trained.
        mean: What is added to its outputs.
        scale: What they are multiplied by before.
        width: What its inputs are divided by.
    """

    mean: Tensor
    scale: Tensor
    width: Tensor

    def __init__(self, inner: nn.Module, mean: Tensor, scale: Tensor, width: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("width", width)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The outputs in their own units."""
        outputs: Tensor = self.mean + self.scale * self.inner(x / self.width)
        return outputs


def train(student: nn.Module, lesson: Lesson, training: Training) -> nn.Module:
    """A student after training, with the rate that does best on held-out inputs; itself if none does better.

    Args:
        student: Any module of one tensor, in eval mode, in which it is trained; it is left as it is.
        lesson: What is taught.
        training: How.
    """
    taught, judged = lesson.divided(training)
    best, least = student, judge(student, judged)
    trainable = any(one.requires_grad for one in student.parameters())
    losses: dict[float, float] = {}
    while trainable and (rate := next_rate(training.rates, losses)) is not None:
        tried = run_(duplicate(student), taught, training, rate)
        losses[rate] = judge(tried, judged)
        if losses[rate] < least:
            best, least = tried, losses[rate]
    return best


def finetune(smaller: nn.Module, lesson: Lesson, judged: Lesson, training: Training) -> nn.Module:
    """A network after further training, at the rate that does best after a quarter of the steps; itself if no better.

    Args:
        smaller: A module of one tensor, in eval mode, made from the inputs of the lesson; it is left as it is.
        lesson: What is taught, all of it.
        judged: What chooses the rate, and between before and after: other inputs, to which nothing was fitted.
        training: How; its `held_out` is not used.
    """
    short = replace(training, steps=max(1, training.steps // TRIAL))
    losses: dict[float, float] = {}
    if not any(one.requires_grad for one in smaller.parameters()):
        return smaller
    names = proportional(smaller, lesson.inputs[:PROBED])
    start = scaled_down(smaller, lesson, names)
    while (rate := next_rate(training.rates, losses)) is not None:
        losses[rate] = judge_beside(run_(duplicate(start), lesson, short, rate), smaller, judged)
    tuned: Any = run_(duplicate(start), lesson, training, min(losses, key=losses.__getitem__))
    better = judge_beside(tuned, smaller, judged) < judge(smaller, judged)
    return scaled_up_(tuned, names) if better else smaller


def judge_beside(found: nn.Module, start: nn.Module, lesson: Lesson) -> float:
    """The loss of a network; infinite where shares of classes are bought with squared errors above the start's."""
    if lesson.classes and lesson.labels is None:
        error, before = (lesson.error(predict(one, lesson.inputs), lesson.outputs) for one in (found, start))
        if not error <= WORSE * before:
            return float("inf")
    return judge(found, lesson)


@torch.no_grad()
def scaled_down(network: nn.Module, lesson: Lesson, names: Sequence[str]) -> InUnits:
    """A copy whose outputs are in usual units, for those numbers to be smaller to which they are proportional."""
    made, (mean, scale) = duplicate(network), lesson.units
    scale = scale if names else torch.ones_like(scale)
    for name in names:
        made.get_parameter(name).div_(scale)
    return InUnits(made, torch.zeros_like(mean), scale, torch.ones_like(scale))


@torch.no_grad()
def scaled_up_(trained: InUnits, names: Sequence[str]) -> nn.Module:
    """What was trained, in the units of the outputs again."""
    for name in names:
        trained.inner.get_parameter(name).mul_(trained.scale)
    return trained.inner


@torch.no_grad()
def proportional(network: nn.Module, inputs: Tensor) -> list[str]:
    """Names of the numbers that outputs are proportional to, where their units are: a last layer's, if it has such."""
    tried = duplicate(network)
    wanted = 2 * predict(tried, inputs)
    for names in reversed(closing(tried)):
        for name in names:
            tried.get_parameter(name).mul_(2)
        far = (predict(tried, inputs) - wanted).norm()
        for name in names:
            tried.get_parameter(name).div_(2)
        if far <= 1e-5 * wanted.norm():
            return names
    return []


def closing(network: nn.Module) -> list[list[str]]:
    """For every module that has some, the names of the numbers that would hold the units of its outputs."""
    groups: list[list[str]] = []
    skipped = set[str]()
    for path, module in network.named_modules():
        before = f"{path}." if path else ""
        if isinstance(module, (ThinLinear, ThinConvolution)):  # whose outer weight is orthonormal
            skipped |= {f"{before}inner", f"{before}outer"}
            groups.append([f"{before}inner.weight", f"{before}outer.bias"])
        elif path not in skipped:
            groups.append([before + name for name, one in module.named_parameters(recurse=False) if one.numel()])
    return [names for names in groups if names]


def next_rate(rates: Sequence[float], losses: Mapping[float, float], step: float | None = None) -> float | None:
    """The rate to try next, or None: those given first, then beyond the end that is best.

    Args:
        rates: Those given.
        losses: What was reached with those that were tried.
        step: From one rate beyond an end to the next; None for that of the given ones, which is none for a single one.
    """
    left = [rate for rate in rates if rate not in losses]
    if left:
        return left[0]
    if step is None:
        step = (max(rates) / min(rates)) ** (1 / max(1, len(set(rates)) - 1))
    low, high = min(losses), max(losses)
    best = min(losses, key=lambda rate: (losses[rate], rate))
    if step == 1 or len(losses) >= max(MOST_RATES, len(rates)) or best not in (low, high):
        return None
    return low / step if best == low else high * step


@torch.no_grad()
def judge(student: nn.Module, lesson: Lesson) -> float:
    """The loss of a student on all inputs of a lesson; infinite where it is no number."""
    loss = lesson.loss(predict(student, lesson.inputs), lesson.outputs, lesson.labels).item()
    return loss if loss < float("inf") else float("inf")


def run_(student: nn.Module, lesson: Lesson, training: Training, rate: float) -> nn.Module:
    """Train by Adam with a one-cycle rate, in place; the global random state is left as it was."""
    generator = torch.Generator().manual_seed(training.seed)
    parameters = [one for one in student.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=training.steps + 1, pct_start=0.1)
    with seeded(training.seed):  # for what the user's augment draws
        for _ in range(training.steps):
            optimizer.zero_grad(set_to_none=True)
            loss_of(student, lesson, training, generator).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
    return student


def loss_of(student: nn.Module, lesson: Lesson, training: Training, generator: torch.Generator) -> Tensor:
    """The loss at random queries."""
    drawn = torch.randint(len(lesson.inputs), (training.batch,), generator=generator, device="cpu")
    chosen = drawn.to(lesson.inputs.device)
    x, outputs = lesson.inputs[chosen], lesson.outputs[chosen]
    labels = None if lesson.labels is None else lesson.labels[chosen]
    changed = False
    if training.augment is not None:
        x, changed = altered(training.augment, x), True
    if training.augmented and labels is None:  # a mix has no label
        x, changed = mixed(x, generator), True
    if training.jacobians and labels is None:
        return loss_with_jacobians(student, lesson, x, training.jacobians, generator)
    if changed and labels is None:
        with torch.no_grad():
            outputs = lesson.teacher(x)
    return lesson.loss(student(x), outputs, labels)


def mixed(x: Float[Tensor, "B *in"], generator: torch.Generator) -> Float[Tensor, "B *in"]:
    """Queries beside inputs: mixes of random pairs, and noise of a random size."""
    shares = torch.rand(2, len(x), generator=generator, device="cpu").to(x).reshape(2, len(x), *[1] * (x.ndim - 1))
    partners = x[torch.randperm(len(x), generator=generator, device="cpu").to(x.device)]
    blends = x + shares[0] * (partners - x)
    noise = torch.randn(x.shape, generator=generator, device="cpu").to(x)
    return blends + MOST_NOISE * shares[1] * x.std(0, correction=0) * noise


def loss_with_jacobians(
    student: nn.Module, lesson: Lesson, x: Tensor, weight: float, generator: torch.Generator
) -> Tensor:
    """The loss at queries, with the error of Jacobians along random directions of the outputs.

    References:
        Czarnecki, Osindero, Jaderberg, Swirszcz, Pascanu, "Sobolev training for neural networks", 2017,
        https://arxiv.org/abs/1706.04859
    """
    x = x.detach().requires_grad_()
    outputs, found = lesson.teacher(x), student(x)
    direction = torch.randn(outputs.shape, generator=generator, device="cpu").to(outputs)
    (theirs,) = torch.autograd.grad((outputs * direction).sum(), x)
    (ours,) = torch.autograd.grad((found * direction).sum(), x, create_graph=True)
    error = (ours - theirs).square().sum() / positive(theirs.square().sum())
    return lesson.loss(found, outputs.detach(), None) + weight * error
