"""The verb: every method at every size under the same conditions, beside each other."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tenflex.baselines.training import Lesson, finetune
from tenflex.checks import require_finite, require_floating
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.evaluate.fidelity import class_numbers, fidelity, predict
from tenflex.evaluate.latency import latency
from tenflex.methods.conditions import Conditions, conditions_of, numbers_of
from tenflex.methods.contest import Contest, Entry
from tenflex.methods.registry import METHODS, Given, Method
from tenflex.planning.survey import survey
from tenflex.progress import OnProgress, Progress, listening
from tenflex.sampling.inputs import Accepted
from tenflex.split import groups_of_rows, split_samples
from tenflex.storage.files import require_own_folder, write_json
from tenflex.storage.fingerprint import distance, fingerprint
from tenflex.surgery import find_blocks
from tenflex.surgery.door import require_module
from tenflex.surgery.twin import duplicate, twin

FILE = "compare.json"
"""Where entries are kept as they come, so that a comparison that was cut off goes on."""

FEW = 16
"""Inputs with which the network is tried."""

TIMED, SECONDS = 256, 0.2
"""The most inputs of the batch that is timed, and how long."""

GIVEN = 3
"""The first fingerprints are of what is given, the weights and the inputs: these are the same everywhere."""

SAME = 1e-3
"""How far answers may be apart that are the same but for rounding, which is another one on other machines."""

FREE = ("sizes", "methods")
"""Conditions that may be others in a comparison that goes on."""

CHOOSING = 0.2
"""The share of the inputs that no method is given where there is fine-tuning, so that they can choose its rate."""

TUNING_RATES = (3e-4, 2e-3)
"""The rates of fine-tuning that are tried first: what is tuned is near the original already, or far from it."""


@torch.inference_mode(False)
def compare(
    model: nn.Module,
    inputs: Float[Tensor, "S *in"],
    labels: Int[Tensor, " S"] | None = None,
    *,
    test: tuple[Tensor, Tensor | None] | None = None,
    folder: str | Path | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Contest:
    """Make a network smaller by several methods at several sizes, all from the same inputs, and judge them alike.

    The methods are those of `tenflex.methods.METHODS`: flexible layers, factorisations of the weights, students from
    a random start, training from scratch. A method that fails has an entry that says why. The original stays as it is.

    Args:
        model: A network of one tensor, in eval mode.
        inputs: Inputs, `(S, ...)`: a share of them is held back to judge, and at most `samples` of the others are used;
            with `finetune`, a fifth of these choose its rate alone.
        labels: Their classes, for accuracies and for methods that need labels.
        test: Other inputs to judge on, samples first, with their labels or None, instead of a share of the inputs.
        folder: Where entries are written as they come, in `compare.json`; a comparison under the same conditions that
            was cut off goes on there, and one of other sizes or methods is added to it. None to keep nothing.
        on_progress: Called before every entry.
        **settings: Those of `Conditions`: `sizes`, `methods`, `blocks`, `samples`, `held_out`, `steps`, `rates`,
            `finetune`, `seed`, `modes`, `augment`.

    Returns:
        The entries, as a table (`print`), as JSON (`to_dict`) and as a figure (`plot`).

    Raises:
        TypeError: if an argument or a setting is of the wrong type.
        ValueError: if the network, the inputs or a setting cannot be used.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
        >>> found = compare(model, torch.randn(200, 8), sizes=["50%"], methods=["flexible", "svd"])
        >>> [entry.method for entry in found.entries]
        ['flexible', 'svd']
    """
    conditions = conditions_of(settings)
    require_module(model)
    if test is not None and not (isinstance(test, (tuple, list)) and len(test) == 2):
        raise TypeError(f"expected test as a pair (inputs, labels or None), got {type(test).__name__}")
    report = listening(on_progress)
    labels = None if labels is None else class_numbers(labels)
    accepted = Accepted.by(model)
    inputs = accepted.tensor(inputs, "the inputs")
    test = None if test is None else (accepted.tensor(test[0], "the test inputs"), test[1])
    parts = divided(inputs, labels, test, conditions)
    given, known_labels = parts.given
    blocks = blocks_of(model, given, conditions)
    contest = begun(model, conditions, parts)
    if folder is not None:
        contest = resumed(Path(folder), contest)
    whole, everywhere = stored_numbers(model), conditions.blocks is None
    base = Given(twin(model), given, whole, blocks, everywhere, known_labels, conditions.training, conditions.modes)
    known = {(one.method, one.size): one for one in contest.entries}
    done = {place for place, one in known.items() if one.error is None}
    tasks = list(_tasks(conditions, model, known_labels is not None))
    for index, (method, size) in enumerate(tasks):
        report(Progress(method.name, index, len(tasks), task=f"{size:,} numbers"))
        if (method.name, size) not in done:
            known[method.name, size] = _entry(method, replace(base, parameters=size), parts, conditions)
        contest = replace(contest, entries=ordered(known.values()))
        if folder is not None:
            write_json(Path(folder) / FILE, contest.to_dict())
    report(Progress("compared", len(tasks), len(tasks)))
    return contest


Labelled = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Parts:
    """The inputs of a comparison by their use. Equal inputs are in one part.

    Args:
        given: What methods are given, and what fine-tuning trains on.
        choosing: What chooses the rate of fine-tuning, and whether it is kept: no method was fitted to any of it, since
            what was fitted to them would look best untuned. None without fine-tuning.
        judged: What all are judged on.
    """

    given: Labelled
    choosing: Tensor | None
    judged: Labelled


def divided(inputs: Tensor, labels: Tensor | None, test: Labelled | None, conditions: Conditions) -> Parts:
    """Divide the inputs by their use.

    Raises:
        TypeError: if the inputs are no tensor of floating-point numbers.
        ValueError: if there are too few of them, they are not finite, or labels are not theirs.
    """
    require_floating("inputs", inputs)
    if labels is not None and labels.shape != inputs.shape[:1]:
        raise ValueError(f"labels must be one class for each of {len(inputs)} inputs, got shape {tuple(labels.shape)}")
    generator = torch.Generator().manual_seed(conditions.seed)
    order = torch.randperm(len(inputs), generator=generator, device="cpu").to(inputs.device)
    if test is None and int(conditions.held_out * len(inputs)) < 2:
        raise ValueError(
            f"held_out must leave at least two of {len(inputs)} inputs to judge on, got {conditions.held_out}: raise "
            f"it, pass more inputs, or pass test="
        )
    left, judged = (order, order[:0]) if test is not None else apart(inputs, order, conditions.held_out)
    left = left[: conditions.samples]
    given, choosing = apart(inputs, left, CHOOSING) if conditions.finetune else (left, left[:0])
    if len(given) < FEW:
        raise ValueError(f"expected at least {FEW} inputs beside those that are held out, got {len(given)}: pass more")
    require_finite("inputs", inputs[left])
    pick = [(inputs[one], None if labels is None else labels[one]) for one in (given, judged)]
    return Parts(pick[0], inputs[choosing] if len(choosing) else None, pick[1] if test is None else test)


def apart(inputs: Tensor, rows: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Rows of the inputs without a share of them, and that share; equal ones stay together."""
    fitted, *held = split_samples(groups_of_rows([inputs[rows]]), share)
    return rows[fitted], rows[torch.cat(held).sort().values]


def blocks_of(model: nn.Module, inputs: Tensor, conditions: Conditions) -> tuple[str, ...]:
    """The blocks that may be replaced: those that are named or suggested by a survey, or the network as a whole."""
    if conditions.blocks is not None:
        return tuple(find_blocks(model, list(conditions.blocks)))
    found = [one.name for one in survey(model, inputs[:FEW]).suggestions]
    return tuple(find_blocks(model, found or [""]))


def begun(model: nn.Module, conditions: Conditions, parts: Parts) -> Contest:
    """A comparison without entries."""
    tensors = [one for one in model.state_dict().values() if isinstance(one, Tensor)]
    given = [parts.given[0]] if parts.choosing is None else [parts.given[0], parts.choosing]
    accuracy = fidelity(model, model, *parts.judged).accuracy  # which looks at the labels first
    labels = [one for _, one in (parts.given, parts.judged)]
    compared = (
        *(fingerprint(*tensors), fingerprint(*given), fingerprint(parts.judged[0])),
        fingerprint(predict(model, parts.judged[0])),
        *(fingerprint() if one is None else fingerprint(class_numbers(one)) for one in labels),
    )
    return Contest(conditions, tuple(map(tuple, compared)), (cost(model, given[0][:1]), accuracy))


def resumed(folder: Path, contest: Contest) -> Contest:
    """The same with the entries in a folder, which is made if it is not there.

    Raises:
        ValueError: if the folder holds something else, or another comparison.
    """
    require_own_folder(folder, FILE)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    if not path.exists():
        return contest
    saved, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(contest.to_dict()))
    other = _other(saved, now)
    if other is not None:
        raise ValueError(
            f"{folder} holds a comparison under other {other}: choose a new folder, or repeat the call that it was "
            f"begun with"
        )
    return replace(contest, entries=tuple(map(Entry.from_dict, saved["entries"])))


def ordered(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Entries by size, the smallest first, and in the order of the registry."""
    places = {name: place for place, name in enumerate(METHODS)}
    return tuple(sorted(entries, key=lambda one: (one.size, places.get(one.method, len(places)))))


def _other(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What keeps a comparison from going on, in words; None if nothing does: sizes and methods may be others."""
    kept, wanted = ([tuple(one) for one in each["compared"]] for each in (saved, now))
    if kept[:GIVEN] != wanted[:GIVEN]:
        return "networks or inputs"
    if len(kept) != len(wanted):
        return "terms, by a version that did not look at labels and answers"
    if distance(kept[GIVEN], wanted[GIVEN]) > SAME:  # another forward of the same numbers, or another machine
        return "networks: the weights are the same, but not what the original answers"
    if kept[GIVEN + 1 :] != wanted[GIVEN + 1 :]:
        return "labels"
    same = [{key: one for key, one in each["conditions"].items() if key not in FREE} for each in (saved, now)]
    return None if same[0] == same[1] else "conditions"


def _tasks(conditions: Conditions, model: nn.Module, labelled: bool) -> Iterator[tuple[Method, int]]:
    for size in conditions.sizes:
        for method in conditions.chosen(model, labelled):
            yield method, numbers_of(size, stored_numbers(model))


def _entry(method: Method, given: Given, parts: Parts, conditions: Conditions) -> Entry:
    """One method at one size; what goes wrong is an entry as well."""
    began = time.perf_counter()
    entry = Entry(method.name, method.source, given.parameters)
    try:
        smaller = method(replace(given, model=duplicate(given.model)))  # which it may change
        entry = replace(entry, seconds=time.perf_counter() - began)
        return _judged(entry, smaller, given, parts, conditions)
    except Exception as error:  # whatever a method may raise: the others go on
        return replace(entry, error=f"{' '.join(str(error).split()) or type(error).__name__}")


def _judged(entry: Entry, smaller: nn.Module, given: Given, parts: Parts, conditions: Conditions) -> Entry:
    """The entry with what the smaller network costs and how close it is."""
    found = replace(
        entry,
        cost=cost(smaller, given.inputs[:1]),
        fidelity=fidelity(smaller, given.model, *parts.judged),
        latency=latency(given.model, smaller, parts.judged[0][:TIMED], seconds=SECONDS).after,
    )
    if parts.choosing is None:
        return found
    classes = found.fidelity is not None and found.fidelity.agreement is not None
    lesson, other = (Lesson.of(given.model, one, classes=classes) for one in (given.inputs, parts.choosing))
    training = replace(given.training, steps=conditions.finetune, rates=TUNING_RATES)
    tuned = finetune(smaller, lesson, other, training)
    return replace(found, finetuned=fidelity(tuned, given.model, *parts.judged))
