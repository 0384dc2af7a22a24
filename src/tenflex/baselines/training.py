"""The one training loop of all that is trained here: to a network's own outputs at any queries, or to labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.bases.base import positive
from tenflex.checks import require_number, require_share, require_whole
from tenflex.evaluate.fidelity import predict
from tenflex.surgery.twin import duplicate

MOST_NOISE = 0.5
"""Noise of augmented queries has at most this many standard deviations of an input; how many is drawn for each."""

MOST_RATES = 8
"""So many rates are tried at most."""

TRIAL = 4
"""Where a rate is found by trials, each takes one of so many parts of the steps."""

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
        error = (found - outputs).square().mean() / self.variance
        if self.classes:
            ours, theirs = found.log_softmax(-1), outputs.log_softmax(-1)
            error = error + F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
        return error

    @property
    def variance(self) -> Tensor:
        """The mean variance of the answers."""
        return positive((self.outputs - self.outputs.mean(0)).square().mean())


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
    while (rate := next_rate(training.rates, losses)) is not None:
        losses[rate] = judge(run_(duplicate(smaller), lesson, short, rate), judged)
    tuned = run_(duplicate(smaller), lesson, training, min(losses, key=losses.__getitem__))
    return min((smaller, tuned), key=lambda one: judge(one, judged))


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)  # for what the user's augment draws
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
        x, changed = training.augment(x), True
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
