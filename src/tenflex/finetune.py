"""Training a compressed network further: to the original's answers, without labels, or by the user's own loss."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.baselines.training import WORSE, next_rate, scale_of
from tenflex.checks import near_names, require_finite, require_number, require_seed, require_share, require_whole
from tenflex.evaluate.fidelity import Unpadded, floating_rows
from tenflex.evaluate.tuned import Tuned
from tenflex.nn.saved import KINDS
from tenflex.progress import OnProgress, Progress
from tenflex.sampling.inputs import READ_FOR_ONE, Accepted, Reservoir, gather, length_of
from tenflex.sampling.queries import (
    Augment,
    Padding,
    changed,
    mixed,
    noisy,
    require_mixable,
    seeded,
    spreads_of,
)
from tenflex.split import SHARE, Split, groups_of_rows, split_samples
from tenflex.sums import flattened
from tenflex.surgery.batch import Batch, call, clone, count_samples, describe, rows_of, take
from tenflex.surgery.paths import encloses
from tenflex.surgery.quiet import passing, unfused
from tenflex.surgery.twin import duplicate, twin
from tenflex.units.mask import find_mask, mask_in

UNUSED = 10**9
"""The numbers of steps from here on are of no step, so that what is drawn for them is seen in none."""

Loss = Callable[[Any, Any], Tensor]
"""What a network gives for a batch, and the batch as the loader gave it, to a number that is to become small."""

REPLACED, ALL = "replaced", "all"
"""What may be trained, besides parameters by name: those of the layers that replaced blocks, or every one."""

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""The learning rates that are tried first; beyond the ends goes the search if an end is best."""

TRIAL = 0.1
"""The share of the steps that a trial of a rate takes."""

CHECKS = 20
"""How often the held-out inputs are looked at."""

FEWEST_BETWEEN = 10
"""Steps between two looks, at least: a look costs as much as some steps do."""

PATIENCE = 10
"""After so many looks without a better one the training ends: half of all, as much is gained when the rate is low."""

FEWEST_CHOOSING = 64
"""Held-out inputs that choose the rate and the steps; of fewer, those join in that were to tell the loss alone."""

LOOKED_AT = 512
"""Where inputs are changed, as many changed copies of the held-out ones join in: the original answers any input."""

AT_ONCE = 256
"""Held-out inputs that run at a time."""


@dataclass(frozen=True)
class Tuning:
    """How a compressed network is trained further.

    Args:
        loss: What is to become small, of a network's output and the batch as the loader gives it, labels included; None
            for the distance to the original's answers, which needs no labels.
        train: What is trained: "replaced", the parameters of the layers that stand in the place of blocks; "all"; or
            names of parameters and of modules, among which "replaced" may be, too.
        steps: The most steps; the best network on held-out inputs is kept.
        batch: The inputs in each step.
        rate: The learning rate; None to find it by short trials.
        temperature: Outputs `(S, classes)` of at least two numbers are taken for scores of classes and compared
            softened by it, besides, scores that spread by more than ten being scaled down to that; 0 for the squared
            error alone, as of outputs that are no scores.
        mix: The share of the inputs of a step that are mixed with another one.
        noise: The size of the noise on the inputs of a step, as a share of how much each of their numbers varies.
        augment: Makes changed inputs of those of a step.
        samples: The most inputs that are used, drawn at random.
        held_out: The share of the inputs that is never trained on: on half of it the rate and the number of steps are
            chosen, and the other half tells the loss; where that is few, all of it chooses.
        seed: Of all random choices.

    Raises:
        TypeError: if `loss`, `augment` or `train` are of another kind.
        ValueError: if a number is out of its range, or changed inputs are asked for with a loss, which has no labels
            for them.

    Example:
        >>> from tenflex.finetune import Tuning
        >>> Tuning(steps=50, rate=0.001).batch
        128
    """

    loss: Loss | None = None
    train: str | Sequence[str] = REPLACED
    steps: int = 1000
    batch: int = 128
    rate: float | None = None
    temperature: float = 3.0
    mix: float = 0.0
    noise: float = 0.0
    augment: Augment | None = None
    samples: int = 10_000
    held_out: float = SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("loss", "augment"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function, got {getattr(self, name)!r}")
        for name, least in (("steps", 1), ("batch", 1), ("samples", 2)):
            require_whole(name, getattr(self, name), at_least=least)
        require_seed(self.seed)
        if self.rate is not None:
            require_number("rate", self.rate, above=0)
        for name in ("temperature", "noise"):
            require_number(name, getattr(self, name), at_least=0)
        require_share("mix", self.mix, at_most=1)
        require_share("held_out", self.held_out, at_most=0.5)
        if self.loss is not None and (self.mix or self.noise or self.augment is not None):
            raise ValueError(
                "mix, noise and augment ask the original at changed inputs, for which a loss with labels has no "
                "labels: leave them out, or change inputs in the loader"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Tuning:
        """The settings by name.

        Raises:
            TypeError: if a setting is unknown or of the wrong type.
            ValueError: if a number is out of its range.
        """
        names = [one.name for one in fields(cls)]
        for name in settings:
            if name not in names:
                raise TypeError(f"finetune has no setting {name!r}{near_names(name, names)}")
        return cls(**settings)


def tuned(
    model: nn.Module, original: nn.Module, inputs: Any, tuning: Tuning, report: OnProgress, mask: str | None = None
) -> tuple[nn.Module, Tuned, Batch]:
    """A copy of a compressed network, trained further; what was done; and the inputs that were used.

    Modules stay in eval mode: no dropout is drawn, and no statistics of normalisations change. Positions that the input
    of the name `mask`, or `attention_mask`, calls padding teach nothing, but by a loss of the user's own.

    Raises:
        TypeError: if the inputs are not tensors or arrays of numbers.
        ValueError: if there are fewer than 2 inputs, nothing is to be trained, or the loss is not finite.
    """
    began = time.perf_counter()
    network = duplicate(model).eval()
    chosen = trained_parameters(network, tuning.train)
    with torch.inference_mode(False), torch.enable_grad(), seeded(tuning.seed), unfused(network):
        task = (Answers if tuning.loss is None else Own)(original, inputs, tuning, report, mask)
        before = task.told(network)
        require_loss(before, "held-out inputs")
        with only(network, chosen):
            rates = Rates(network, chosen, task, tuning, report)
            rate = rates.found() if tuning.rate is None else tuning.rate
            steps = trained_(network, chosen, task, Run(tuning.steps, rate, tuning, report))
        after = task.told(network)
    numbers = sum(one.numel() for one in chosen)
    about = task.goal, task.count, steps, rates.steps, rate, numbers
    return network, Tuned(*about, before, after, task.judged, time.perf_counter() - began), task.inputs


def trained_parameters(model: nn.Module, train: str | Sequence[str]) -> list[nn.Parameter]:
    """The parameters that are to be trained, each once.

    Raises:
        TypeError: if `train` is something else than a text or texts.
        ValueError: if a name is none of the network's, or nothing is left to train.
    """
    asked = [train] if isinstance(train, str) else train if isinstance(train, Sequence) else [None]
    known = dict(model.named_parameters(remove_duplicate=False))
    words = {ALL: [""], REPLACED: [path for path, one in model.named_modules() if type(one) in KINDS]}
    names = list[str]()
    for one in asked:
        if not isinstance(one, str):
            raise TypeError(f"train must be 'replaced', 'all', or names of parameters and modules, got {train!r}")
        names += [one] if any(encloses(one, path) for path in known) else words.get(one, [one])
    for name in names:
        if not any(encloses(name, one) for one in known):
            others = [*known, *dict(model.named_modules())]
            if name in others:
                raise ValueError(
                    f"the module {name!r} has no parameters, as those have none that are in a block whose layer stands "
                    f"in another place: 'replaced' names the new layers"
                )
            raise ValueError(f"the network has no parameters {name!r}{near_names(name, others)}")
    found = {id(one): one for path, one in known.items() if any(encloses(name, path) for name in names)}
    real = [one for one in found.values() if one.is_floating_point()]
    if not real:
        raise ValueError(
            f"train={train!r} leaves nothing to train: name parameters or modules of the network, or 'all'"
        )
    return real


@contextmanager
def only(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters alone have gradients; afterwards those that had them before."""
    flags = [(one, one.requires_grad) for one in model.parameters()]
    ours = {id(one) for one in chosen}
    for one, _ in flags:
        one.requires_grad_(id(one) in ours)
    try:
        yield
    finally:
        for one, flag in flags:
            one.requires_grad_(flag)
            one.grad = None


class Task(ABC):
    """What a network is trained to do.

    Args:
        original: The network before its compression.
        inputs: As the user passes them.
        tuning: The settings.
        report: Called while inputs are read.
        mask: The argument of the networks that tells which positions are padding.
    """

    goal: str
    inputs: Batch

    def __init__(
        self, original: nn.Module, inputs: Any, tuning: Tuning, report: OnProgress, mask: str | None = None
    ) -> None:
        self.original, self.tuning, self.mask = twin(original), tuning, mask
        self.read(inputs, report)
        self.count = count_samples(self.inputs)

    @abstractmethod
    def read(self, inputs: Any, report: OnProgress) -> None:
        """Set `inputs`, as networks are called with them."""

    @abstractmethod
    def loss(self, network: nn.Module, rows: Int[Tensor, " rows"], step: int | None) -> Float[Tensor, ""]:
        """The mean loss on some of the inputs, changed ones for a step of the training."""

    @cached_property
    def split(self) -> Split:
        """Which inputs are trained on, which choose, and which only tell."""
        return split_samples(groups_of_rows(rows_of(self.inputs)).cpu(), self.tuning.held_out)

    @cached_property
    def choosing(self) -> Int[Tensor, " rows"]:
        """The inputs that choose; those trained on, where none is held out."""
        _, validation, test = self.split
        held = validation if len(validation) >= FEWEST_CHOOSING else torch.cat([validation, test])
        return held if len(held) else self.split.fitted

    @property
    def telling(self) -> Int[Tensor, " rows"]:
        """The inputs that tell the loss: those that chose nothing, if there are any."""
        return self.split.test if len(self.split.validation) >= FEWEST_CHOOSING else self.choosing

    @property
    def judged(self) -> str:
        """The inputs that tell the loss, in words."""
        if self.telling is not self.choosing:
            return "held-out inputs that chose nothing"
        trained = self.choosing is self.split.fitted
        return "the inputs trained on, which flatters" if trained else "held-out inputs that chose the steps"

    def chosen_on(self, network: nn.Module) -> float:
        """The loss by which rate and steps are chosen."""
        return self.mean(network, self.choosing)

    def told(self, network: nn.Module) -> float:
        """The loss that is reported."""
        return self.mean(network, self.telling)

    def mean(self, network: nn.Module, rows: Int[Tensor, " rows"]) -> float:
        """The loss on some inputs as they are; infinity if it is no number."""
        with torch.no_grad():
            parts = [len(part) * self.loss(network, part, None).item() for part in rows.split(AT_ONCE)]
        found = sum(parts) / len(rows)
        return found if math.isfinite(found) else math.inf


class Answers(Task):
    """The answers of the original network, for the inputs and for changed ones: no labels are needed."""

    @property
    def goal(self) -> str:  # type: ignore[override] # of the user's loss it is always the same
        """What the network is fitted to, in words."""
        return f"the original's answers{' as scores of classes' if self.scores else ''}"

    def read(self, inputs: Any, report: OnProgress) -> None:
        tuning = self.tuning
        self.inputs = gather(self.original, inputs, tuning.samples, tuning.seed, report)
        if tuning.mix or tuning.noise:
            require_mixable(self.inputs, self.padding_of(self.inputs))
        if tuning.augment is not None:
            changed(tuning.augment, take(self.inputs, slice(2)), tuning.seed)
        self.changing = bool(tuning.mix or tuning.noise or tuning.augment)
        self.spreads = spreads_of(self.inputs, self.padding_of(self.inputs)) if tuning.noise else []
        rows = torch.arange(count_samples(self.inputs), device="cpu").split(AT_ONCE)
        parts = [self.asked(take(self.inputs, part)) for part in rows]
        self.targets = {place: torch.cat([one[place] for one in parts]) for place in parts[0]}
        for one in self.targets.values():
            require_finite("the outputs of the model", one)  # at padding, too: through NaN no gradient is a number
        self.spread = {place: spread_of(one) for place, one in self.compared(self.inputs, self.targets).items()}
        first = self.targets[min(self.targets)]
        self.scores = first.ndim == 2 and first.shape[1] > 1 and self.tuning.temperature > 0
        self.scale = scale_of(first) if self.scores else 1.0
        self.at_first: float | None = None

    def padding_of(self, batch: Batch) -> Padding | None:
        """What is known of padding in a batch."""
        mask, there = (find(self.original, batch, self.mask) for find in (mask_in, find_mask))
        return None if mask is None or there is None else Padding(mask, there)

    def compared(self, batch: Batch, outputs: dict[int, Tensor]) -> dict[int, Tensor]:
        """Outputs for a batch without those at padding, from which nothing is to be learnt."""
        return Unpadded(self.mask).of(self.original, batch, outputs)

    def asked(self, batch: Batch) -> dict[int, Tensor]:
        """The original's answers."""
        with passing(self.original):
            return floating_rows(call(self.original, clone(batch)), count_samples(batch))

    def loss(self, network: nn.Module, rows: Int[Tensor, " rows"], step: int | None) -> Float[Tensor, ""]:
        batch = take(self.inputs, rows)
        if step is not None and self.changing:
            batch = self.queries(batch, step)
            wanted = self.asked(batch)
        else:
            wanted = {place: one[rows.to(one.device)] for place, one in self.targets.items()}
        found = floating_rows(call(network, clone(batch)), len(rows))
        shapes, expected = ([tuple(one.shape[1:]) for one in each.values()] for each in (found, wanted))
        if shapes != expected:
            raise ValueError(
                f"expected outputs of the shapes {expected}, as the original's, got {shapes}: a network that was "
                f"changed to give something else needs a loss of its own"
            )
        return self.distance(self.compared(batch, found), self.compared(batch, wanted))

    @cached_property
    def looked_at(self) -> list[tuple[Batch, dict[int, Tensor]]]:
        """The inputs that choose with the original's answers, and changed copies of them."""
        rows = self.choosing.split(AT_ONCE)
        copies = -(-LOOKED_AT // len(self.choosing)) if self.changing else 0
        parts = [take(self.inputs, part) for part in rows]
        parts += [self.queries(part, UNUSED + copy) for copy in range(copies) for part in parts]
        return [(part, self.compared(part, self.asked(part))) for part in parts]

    def chosen_on(self, network: nn.Module) -> float:
        with torch.no_grad():
            counts = [count_samples(part) for part, _ in self.looked_at]
            answers = (floating_rows(call(network, clone(part)), count_samples(part)) for part, _ in self.looked_at)
            looked = zip(answers, self.looked_at, strict=True)
            pairs = [(self.compared(part, one), wanted) for one, (part, wanted) in looked]
            errors, softened = (
                [of(*pair).item() * count for pair, count in zip(pairs, counts, strict=True)]
                for of in (self.error, self.softened)
            )
        own = len(self.choosing.split(AT_ONCE))  # changed inputs tell what is better, but not what is much worse
        error = sum(errors[:own]) / sum(counts[:own])
        self.at_first = error if self.at_first is None else self.at_first  # of the network that is to become better
        found = sum(errors) / sum(counts) + sum(softened) / sum(counts)
        return found if math.isfinite(found) and not error > WORSE * self.at_first else math.inf

    def queries(self, batch: Batch, step: int) -> Batch:
        """The changed inputs of a step."""
        tuning = self.tuning
        generator = torch.Generator().manual_seed(tuning.seed + step)
        if tuning.augment is not None:
            batch = changed(tuning.augment, batch, tuning.seed + step)
        if tuning.mix:
            batch = mixed(batch, tuning.mix, generator, self.padding_of(batch))
        return noisy(batch, self.spreads, tuning.noise, generator, self.padding_of(batch)) if tuning.noise else batch

    def distance(self, found: Mapping[int, Tensor], wanted: Mapping[int, Tensor]) -> Float[Tensor, ""]:
        """The relative squared error, and for scores of classes the divergence of the softened answers besides."""
        return self.error(found, wanted) + self.softened(found, wanted)

    def softened(self, found: Mapping[int, Tensor], wanted: Mapping[int, Tensor]) -> Float[Tensor, ""]:
        """The divergence of the softened answers; zero where outputs are no scores of classes."""
        first = min(wanted)
        if not self.scores:
            return wanted[first].new_zeros(())
        return divergence(found[first] / self.scale, wanted[first] / self.scale, self.tuning.temperature)

    def error(self, found: Mapping[int, Tensor], wanted: Mapping[int, Tensor]) -> Float[Tensor, ""]:
        """The relative squared error; of several outputs the mean of theirs: none drowns another by its units."""
        rows = {place: flattened(found[place] - one).square().sum(1) for place, one in wanted.items()}
        squares = {
            place: one.sum() / max(1, len(one)) for place, one in rows.items()
        }  # of padding alone there are none
        return torch.stack([one / self.spread[place] for place, one in squares.items()]).mean()


def spread_of(outputs: Float[Tensor, "S *n"]) -> float:
    """The summed variances of outputs; 1 where they never change."""
    return (outputs.double() - outputs.double().mean(0)).square().sum().item() / len(outputs) or 1.0


def divergence(
    found: Float[Tensor, "S classes"], wanted: Float[Tensor, "S classes"], temperature: float
) -> Float[Tensor, ""]:
    """The Kullback-Leibler divergence of softened answers, times the squared temperature, as gradients fall with it."""
    ours, theirs = (torch.log_softmax(one / temperature, 1) for one in (found, wanted))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class Own(Task):
    """What the user's loss asks for, of batches as the user's loader gives them."""

    goal = "a loss of the user's own"

    def read(self, inputs: Any, report: OnProgress) -> None:
        drawn = Reservoir(self.tuning.samples, self.tuning.seed)
        batches = batches_of(inputs)
        most = READ_FOR_ONE * self.tuning.samples if length_of(batches) is None else math.inf
        for index, item in enumerate(batches):
            drawn.add(as_rows(item, index))
            report(Progress("read", index + 1, index + 1))
            if drawn.seen >= most:  # it may have no end
                break
        if drawn.seen < 2:
            raise ValueError(f"expected at least 2 examples, got {drawn.seen}: pass more inputs")
        self.items = drawn.batch()
        self.accepted = Accepted.by(self.original)
        self.inputs = self.accepted.batch(self.items, "the inputs")

    def loss(self, network: nn.Module, rows: Int[Tensor, " rows"], step: int | None) -> Float[Tensor, ""]:
        item = take(self.items, rows)
        wanted = self.tuning.loss
        found = wanted(call(network, clone(self.accepted.batch(item, "the inputs"))), item) if wanted else None
        if not isinstance(found, Tensor) or found.numel() != 1 or found.is_complex():
            raise TypeError(f"loss must give a tensor with one real number, got {describe(found)}")
        if step is not None and not found.requires_grad:
            raise ValueError(
                "loss must depend on what is trained in a way that can be differentiated, but no gradient leads to it: "
                "it is detached, counts decisions, or uses nothing that the trained parameters change"
            )
        return found.reshape(())


def batches_of(inputs: Any) -> Any:
    """The batches: one, or what an iterable gives."""
    one = isinstance(inputs, (Tensor, Mapping)) or (
        isinstance(inputs, tuple) and isinstance(next(iter(inputs), None), Tensor)
    )
    return [inputs] if one else inputs


def as_rows(item: Any, index: int) -> Batch:
    """A batch with labels, as a tensor, a tuple of tensors or a mapping of them."""
    item = tuple(item) if isinstance(item, list) else item
    values = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple) else (item,)
    if not values or not all(isinstance(one, Tensor) for one in values):
        raise TypeError(
            f"expected batch {index} to be a tensor, a tuple of tensors or a mapping of them, got {describe(item)}"
        )
    kept: Batch = item
    return kept


@dataclass(frozen=True)
class Run:
    """One training: how long, how fast, and who is told."""

    steps: int
    rate: float
    tuning: Tuning
    report: OnProgress
    stage: str = "finetune"


def trained_(network: nn.Module, chosen: Sequence[nn.Parameter], task: Task, run: Run) -> int:
    """Train parameters in place, by Adam with a rate that falls to nothing; those of the best look are kept.

    Returns:
        The steps to these.
    """
    optimiser = torch.optim.Adam(chosen, run.rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, run.steps)
    best, kept, taken, since = task.chosen_on(network), numbers_of(chosen), 0, 0
    require_loss(best, "the inputs that choose")
    between = max(FEWEST_BETWEEN, run.steps // CHECKS)
    for step, rows in enumerate(islices(task.split.fitted, run), 1):
        optimiser.zero_grad()
        loss = task.loss(network, rows, step)
        if step == 1:
            require_loss(loss.item(), "the first batch")
        loss.backward()
        optimiser.step()
        falling.step()
        if step % between and step < run.steps:
            continue
        now = task.chosen_on(network)
        run.report(Progress(run.stage, step, run.steps))
        since += 1
        if now < best:
            best, kept, taken, since = now, numbers_of(chosen), step, 0
        if since >= PATIENCE:
            break
    put_back_(chosen, kept)
    return taken


def require_loss(loss: float, where: str) -> None:
    """Raise ValueError for a loss of a network as it is that leads nowhere."""
    if not math.isfinite(loss):
        raise ValueError(
            f"expected a loss that is a finite number before any step, got {loss} on {where}: look for NaN in labels, "
            f"for logarithms and divisions of 0, and for numbers too large for their precision"
        )


def islices(rows: Int[Tensor, " rows"], run: Run) -> Iterator[Int[Tensor, " batch"]]:
    """The rows of every step: in a random order, all but fewer than a batch of them before one comes again."""
    generator = torch.Generator().manual_seed(run.tuning.seed)
    size = min(run.tuning.batch, len(rows))
    left = rows[:0]
    for _ in range(run.steps):
        if len(left) < size:
            left = rows[torch.randperm(len(rows), generator=generator, device="cpu")]
        yield left[:size]
        left = left[size:]


def numbers_of(chosen: Sequence[nn.Parameter]) -> list[Tensor]:
    """Copies of what parameters hold."""
    return [one.detach().clone() for one in chosen]


@torch.no_grad()
def put_back_(chosen: Sequence[nn.Parameter], kept: Sequence[Tensor]) -> None:
    """Let parameters hold what they held."""
    for one, numbers in zip(chosen, kept, strict=True):
        one.copy_(numbers)


@dataclass
class Rates:
    """The search for a learning rate, by short trainings from the same start."""

    network: nn.Module
    chosen: Sequence[nn.Parameter]
    task: Task
    tuning: Tuning
    report: OnProgress
    steps: int = 0

    def found(self) -> float:
        """The rate with the least loss on the inputs that choose."""
        losses: dict[float, float] = {}
        while (rate := next_rate(RATES, losses, step=3)) is not None:
            losses[rate] = self.tried(rate)
        return min(losses, key=losses.__getitem__)

    def tried(self, rate: float) -> float:
        """The loss after a trial, which leaves the network as it was."""
        kept, steps = numbers_of(self.chosen), max(10, round(TRIAL * self.tuning.steps))
        trained_(
            self.network, self.chosen, self.task, Run(steps, rate, self.tuning, self.report, f"try rate {rate:.0e}")
        )
        self.steps += steps
        loss = self.task.chosen_on(self.network)
        put_back_(self.chosen, kept)
        return loss
