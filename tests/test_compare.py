"""`tenflex.compare`: the same conditions for all, failures as entries, going on where it was cut off."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import tenflex
from tenflex.baselines.training import Lesson, Training, finetune
from tenflex.cli.app import app
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import predict
from tenflex.methods import METHODS, Given, Method
from tenflex.methods.conditions import Conditions, numbers_of
from tenflex.methods.contest import Entry
from tenflex.progress import Progress

pytestmark = pytest.mark.usefixtures("few_steps")

QUICK = {"sizes": ["40%"], "steps": 30, "rates": (1e-2,)}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are timed by a few passes."""
    monkeypatch.setattr(import_module("tenflex.compare"), "SECONDS", 0.01)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)).eval()


def inputs(count: int = 120) -> Tensor:
    return torch.randn(count, 5) @ torch.randn(5, 12)


def test_all_are_judged_alike(tmp_path: Path) -> None:
    model, x = network(), inputs()
    labels = predict(model, x).argmax(1)
    before = copy.deepcopy(model.state_dict())
    told: list[Progress] = []
    names = ["flexible", "svd", "affine", "student", "scratch"]
    found = tenflex.compare(
        model, x, labels, **QUICK, methods=names, finetune=20, on_progress=told.append, folder=tmp_path / "new"
    )
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert [one.method for one in found.entries] == names
    most = int(0.4 * stored_numbers(model))
    for entry in found.entries:
        assert entry.error is None
        assert entry.cost.parameters <= entry.size == most
        assert entry.cost.macs > 0
        assert entry.latency > 0
        assert entry.fidelity.accuracy == entry.fidelity.agreement  # labels are the network's own decisions
        assert entry.finetuned.relative_error <= 1.2 * entry.fidelity.relative_error
    assert found.original[1] == 1.0
    assert told[-1].done == told[-1].total == 5
    text = str(found)
    assert all(name in text for name in names)
    assert "after" in text
    saved = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert saved == json.loads(json.dumps(found.to_dict()))
    assert [Entry.from_dict(one) for one in saved["entries"]] == list(found.entries)


def test_inputs_are_taken_as_everywhere_else() -> None:
    """In the precision of the network, and from arrays: files of NumPy hold double precision unless told otherwise."""
    model, x = network(), inputs()
    one, other, third = (
        tenflex.compare(model, given, **QUICK, methods=["svd"], test=(given, None)).entries[0].fidelity
        for given in (x, x.double(), x.double().numpy())
    )
    assert one == other == third


def test_no_method_sees_what_it_is_judged_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), inputs()
    seen: list[Given] = []

    def watch(given: Given) -> nn.Module:
        seen.append(given)
        return METHODS["svd"].run(given)

    monkeypatch.setitem(METHODS, "watch", Method("watch", "a test", watch))
    tenflex.compare(model, x, **QUICK, methods=["watch", "svd"], held_out=0.25)
    assert len(seen[0].inputs) == 90
    other = inputs(50)
    found = tenflex.compare(model, x, **QUICK, methods=["watch"], test=(other, None), samples=40)
    assert len(seen[1].inputs) == 40
    assert found.entries[0].fidelity.accuracy is None


def test_what_chooses_of_fine_tuning_was_given_to_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same inputs for all methods, and none of them, nor a copy of one, among those that choose and that judge."""
    model, x = network(), inputs(90)
    x = torch.cat([x, x[:40]])
    given: list[Tensor] = []
    lessons: list[tuple[Lesson, Lesson]] = []

    def watch(one: Given) -> nn.Module:
        given.append(one.inputs)
        return METHODS["svd"].run(one)

    def tune(smaller: nn.Module, lesson: Lesson, judged: Lesson, training: Training) -> nn.Module:
        lessons.append((lesson, judged))
        return finetune(smaller, lesson, judged, training)

    monkeypatch.setattr(import_module("tenflex.compare"), "finetune", tune)
    for name in ("watch", "watch too"):
        monkeypatch.setitem(METHODS, name, Method(name, "a test", watch))
    found = tenflex.compare(model, x, **QUICK, methods=["watch", "watch too"], held_out=0.25, finetune=8)
    assert [one.error for one in found.entries] == [None, None]
    parts = [{tuple(row.tolist()) for row in part} for part in (given[0], lessons[0][1].inputs)]
    assert not parts[0] & parts[1]
    judged = {tuple(row.tolist()) for row in x} - parts[0] - parts[1]
    assert 18 <= len(judged) <= 27  # a quarter of 130, of which 40 are copies
    assert 0.1 <= len(parts[1]) / (90 - len(judged)) <= 0.3
    for one, (lesson, choosing) in zip(given, lessons, strict=True):
        torch.testing.assert_close(one, given[0])
        torch.testing.assert_close(lesson.inputs, given[0])
        torch.testing.assert_close(choosing.inputs, lessons[0][1].inputs)


def test_without_fine_tuning_all_inputs_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 50 inputs that are no test ones, a method has 50, and 40 where ten choose the rate of fine-tuning."""
    seen: list[int] = []

    def watch(given: Given) -> nn.Module:
        seen.append(len(given.inputs))
        return METHODS["svd"].run(given)

    monkeypatch.setitem(METHODS, "watch", Method("watch", "a test", watch))
    for steps in (0, 4):
        tenflex.compare(network(), inputs(50), **QUICK, methods=["watch"], test=(inputs(20), None), finetune=steps)
    assert seen == [50, 40]


def test_a_failure_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: Given) -> nn.Module:
        raise RuntimeError("it broke\nhere")

    monkeypatch.setitem(METHODS, "broken", Method("broken", "a test", broken))
    monkeypatch.setitem(METHODS, "too large", Method("too large", "a test", lambda given: given.model))
    found = tenflex.compare(network(), inputs(), **QUICK, methods=["broken", "scratch", "too large", "svd"])
    errors = {one.method: one.error for one in found.entries}
    assert errors["broken"] == "it broke here"
    assert errors["scratch"] == "scratch needs labels: pass labels=, or leave it out"
    assert "numbers, more than" in errors["too large"]
    assert errors["svd"] is None
    assert "failed: it broke here" in str(found)


def test_a_method_may_change_the_network_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def emptied(given: Given) -> nn.Module:
        for one in given.model.parameters():
            one.data.zero_()
        return given.model

    monkeypatch.setitem(METHODS, "emptied", Method("emptied", "a test", emptied))
    model = network()
    before = copy.deepcopy(model.state_dict())
    found = {one.method: one for one in tenflex.compare(model, inputs(), sizes=["100%"], methods=["emptied"]).entries}
    assert found["emptied"].fidelity.relative_error > 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), inputs()
    calls: list[str] = []

    def counted(given: Given) -> nn.Module:
        calls.append("counted")
        return METHODS["svd"].run(given)

    monkeypatch.setitem(METHODS, "counted", Method("counted", "a test", counted))

    def interrupt(progress: Progress) -> None:
        if progress.stage == "svd":
            raise KeyboardInterrupt

    settings = {**QUICK, "methods": ["counted", "svd"], "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        tenflex.compare(model, x, **settings, on_progress=interrupt)
    found = tenflex.compare(model, x, **settings)
    assert [one.method for one in found.entries] == ["svd", "counted"]
    assert calls == ["counted"]
    more = tenflex.compare(model, x, **{**settings, "methods": ["affine"]})  # what is there stays
    assert [one.method for one in more.entries] == ["svd", "affine", "counted"]
    failed = tenflex.compare(model, x, **{**settings, "methods": ["scratch"]})
    again = tenflex.compare(model, x, **{**settings, "methods": ["svd"]})  # and so does what failed
    assert [one.method for one in again.entries if one.error] == ["scratch"]
    assert again.entries == failed.entries
    with pytest.raises(ValueError, match="holds a comparison under other conditions"):
        tenflex.compare(model, x, **{**settings, "steps": 31})
    with pytest.raises(ValueError, match="other networks or inputs"):
        tenflex.compare(model, x + 1, **settings)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files than an earlier result"):
        tenflex.compare(model, x, **{**settings, "folder": tmp_path / "other"})


def test_entries_of_other_labels_or_answers_are_not_taken(tmp_path: Path) -> None:
    """Training from scratch and accuracies follow from labels, and all else from what the original answers."""
    model, x, settings = network(), inputs(), {**QUICK, "methods": ["svd"]}
    labels, test = torch.arange(120) % 3, (inputs(20), torch.arange(20) % 3)
    for name, given in (("none", {}), ("some", {"labels": labels}), ("test", {"labels": labels, "test": test})):
        first = tenflex.compare(model, x, **given, **settings, folder=tmp_path / name)
        again = tenflex.compare(model, x, **given, **settings, folder=tmp_path / name)
        assert again.to_dict() == first.to_dict()
    others = [("none", {"labels": labels}), ("some", {}), ("some", {"labels": (labels + 1) % 3})]
    others.append(("test", {"labels": labels, "test": (test[0], (test[1] + 1) % 3)}))
    others.append(("test", {"labels": labels, "test": (test[0], None)}))
    for name, given in others:
        with pytest.raises(ValueError, match=r"holds a comparison under other labels: choose a new folder"):
            tenflex.compare(model, x, **given, **settings, folder=tmp_path / name)
    with pytest.raises(ValueError, match="under other networks or inputs"):
        tenflex.compare(model, x, labels, test=(test[0] + 1, test[1]), **settings, folder=tmp_path / "test")
    other = copy.deepcopy(model)
    other[1] = nn.Tanh().eval()
    with pytest.raises(ValueError, match="the weights are the same, but not what the original answers"):
        tenflex.compare(other, x, **settings, folder=tmp_path / "none")


def test_a_comparison_of_before_says_why_it_cannot_go_on(tmp_path: Path) -> None:
    """Its file tells neither of labels nor of answers."""
    model, x, settings = network(), inputs(), {**QUICK, "methods": ["svd"], "folder": tmp_path}
    tenflex.compare(model, x, **settings)
    saved = json.loads((tmp_path / "compare.json").read_text())
    saved["compared"] = saved["compared"][:3]
    (tmp_path / "compare.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="by a version that did not look at labels and answers: choose a new folder"):
        tenflex.compare(model, x, **settings)


@pytest.mark.parametrize("method", ["student", "svd"])
def test_what_augment_draws_follows_from_the_seed(method: str) -> None:
    """From NumPy and Python too, whose own generators go on as if nothing had been drawn."""

    def noisy(batch: Tensor) -> Tensor:
        noise = torch.from_numpy(np.random.randn(*batch.shape)) + random.random() + torch.rand(())
        return batch + 0.1 * noise.to(batch)

    model, x, found = network(), inputs(), []
    settings = {**QUICK, "methods": [method], "augment": noisy, "finetune": 5}
    numpy, plain = np.random.get_state(), random.getstate()
    try:
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            before = np.random.get_state()[1].tolist(), random.getstate()
            [entry] = tenflex.compare(model, x, **settings).entries
            assert (np.random.get_state()[1].tolist(), random.getstate()) == before
            assert entry.error is None
            found.append((entry.fidelity, entry.finetuned))
    finally:
        np.random.set_state(numpy)
        random.setstate(plain)
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["student", "scratch"])
def test_what_augment_gives_is_looked_at_where_students_are_taught(method: str) -> None:
    model, x = network(), inputs()
    settings = {**QUICK, "methods": [method]}
    [entry] = tenflex.compare(model, x, torch.arange(120) % 3, **settings, augment=lambda one: one[:3]).entries
    assert "augment must give inputs of the same shapes and dtypes" in str(entry.error)


def test_shares_are_drawn_where_they_differ() -> None:
    """The scale rises, comes back, and gives the ten points below 100 % more room than the fifty above nothing."""
    pytest.importorskip("matplotlib")
    from tenflex.methods.plot import stretched, unstretched

    shares = np.linspace(0, 100, 201)
    heights = stretched(shares)
    assert (np.diff(heights) > 0).all()
    np.testing.assert_allclose(unstretched(heights), shares, atol=1e-10)
    assert stretched(np.array(100)) - stretched(np.array(90)) > stretched(np.array(50)) - stretched(np.array(0))


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, x = network(), inputs()
    found = tenflex.compare(model, x, **{**QUICK, "sizes": ["30%", "60%"]}, methods=["affine", "svd"], finetune=5)
    found.plot(tmp_path / "compare.svg")
    assert "<!-- svd -->" in (tmp_path / "compare.svg").read_text()
    found.plot(tmp_path / "time.svg", against="time")
    with pytest.raises(ValueError, match="against must be 'size' or 'time', got 'cost'"):
        found.plot(tmp_path / "none.svg", against="cost")
    with pytest.raises(ValueError, match="at least one method with a result"):
        replace(found, entries=()).plot(tmp_path / "none.svg")


@pytest.mark.parametrize(
    ("size", "expected"), [("5%", 50), (0.05, 50), (200, 200), ("200", 200), ("0.5%", 5), ("100%", 1000), (1, 1)]
)
def test_sizes(size: object, expected: int) -> None:
    assert numbers_of(size, 1000) == expected


@pytest.mark.parametrize("size", ["0%", "-3%", "101%", 0, -5, "many", 2.5, "x%", "%"])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(ValueError, match="a size must be a share such as '5%'"):
        Conditions(sizes=[size])


@pytest.mark.parametrize(
    "size",
    [
        "inf",
        float("inf"),
        "-inf",
        "nan",
        float("nan"),
        "inf%",
        "nan%",
        "1e400",
        None,
        True,
        [5],
        pytest.param(10**400, id="large"),
    ],
)
def test_sizes_that_are_no_numbers(size: object) -> None:
    with pytest.raises(ValueError, match=r"a size must be a share such as '5%'.* got .*: give the most numbers"):
        Conditions(sizes=[size])


@pytest.mark.parametrize("size", [1.0, "1.0"])
def test_one_with_a_point_may_be_all_or_one(size: object) -> None:
    with pytest.raises(ValueError, match=r"may be a share or a single number: write '100%' for all numbers, or 1 for"):
        Conditions(sizes=[size])


@pytest.mark.parametrize(("gives", "kind"), [(lambda _: None, "NoneType"), (lambda one: (one.model, 3), "tuple")])
def test_a_method_that_gives_no_network_says_so(gives, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "own", Method("own", "me", gives))
    [entry] = tenflex.compare(network(), inputs(), **QUICK, methods=["own"]).entries
    expected = f"own must give the smaller network, a torch.nn.Module, got {kind}: let it return that"
    assert entry.error == expected


def test_bad_settings() -> None:
    model, x = network(), inputs()
    with pytest.raises(TypeError, match="compare has no setting 'size'; did you mean 'sizes'"):
        tenflex.compare(model, x, size=["5%"])
    for methods in (METHODS["svd"], [METHODS["svd"]]):
        with pytest.raises(TypeError, match=r"methods must be names, got Method\(name='svd'.*: put a method of"):
            tenflex.compare(model, x, methods=methods)
    with pytest.raises(ValueError, match="there is no method 'svdd'; did you mean 'svd'"):
        tenflex.compare(model, x, methods=["svdd"])
    for name, value in (("sizes", "5%"), ("sizes", 5), ("sizes", None), ("rates", 0.01), ("blocks", 3)):
        with pytest.raises(TypeError, match=f"{name} must be a sequence, got {value!r}: write such as"):
            tenflex.compare(model, x, **{name: value})
    with pytest.raises(ValueError, match=r"one class for each of 120 inputs, got shape \(3,\)"):
        tenflex.compare(model, x, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        tenflex.compare(model, x, steps=0)
    with pytest.raises(ValueError, match="at least 16 inputs beside"):
        tenflex.compare(model, x[:15])


def test_the_whole_network_is_the_block_where_none_suggests_itself() -> None:
    """Methods that work layer by layer have their rows, and a size that is too small for a flexible layer says so."""
    model = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU()).eval()
    found = tenflex.compare(model, torch.randn(80, 1, 9), methods=["svd", "flexible"], **{**QUICK, "sizes": ["80%"]})
    svd, flexible = (next(one for one in found.entries if one.method == name) for name in ("svd", "flexible"))
    assert svd.error is None
    assert svd.cost is not None
    assert svd.cost.parameters == 9
    assert flexible.error == "a flexible layer of two nodes stores 37 numbers, more than 9"


TOY = """
import torch
from torch import nn

def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))
"""


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "toy_rivals.py").write_text(TOY)
    np.save("x.npy", inputs().numpy())
    np.save("labels.npy", np.arange(120) % 3)
    given = ["compare", "toy_rivals:network", "--inputs", "x.npy", "--labels", "labels.npy", "--sizes", "40%,300"]
    quick = ["--methods", "svd,affine", "--out", "found"]
    done = CliRunner().invoke(app, [*given, *quick])
    assert done.exit_code == 0, done.output
    assert "svd" in done.output
    assert "Saved in found" in done.output
    entries = json.loads((tmp_path / "found" / "compare.json").read_text())["entries"]
    assert [(one["method"], one["size"]) for one in entries] == [
        (name, size) for size in (300, 429) for name in ("svd", "affine")
    ]
    shown = CliRunner().invoke(app, [*given, *quick, "--json"])
    assert json.loads(shown.stdout)["entries"] == entries  # it went on, with nothing left to do
    bad = CliRunner().invoke(app, [*given, "--methods", "svdd"])
    assert bad.exit_code == 2
    assert "did you mean 'svd'" in bad.output
    bad = CliRunner().invoke(app, [*given[:4], "--sizes", "40%,inf"])
    assert bad.exit_code == 2
    assert "a size must be a share such as '5%'" in bad.output
    bad = CliRunner().invoke(app, [*given[:4], "--test-labels", "labels.npy"])
    assert bad.exit_code == 2
    assert "--test-labels is given without --test-inputs" in bad.output


def shifted(batch: Tensor) -> Tensor:
    return batch.roll(1, 1)


def test_modes_and_changed_inputs_are_conditions(tmp_path: Path) -> None:
    """They are told by name, and a comparison goes on only under the same ones."""
    model, x = network(), inputs()
    settings = {**QUICK, "methods": ["flexible", "svd"], "modes": tenflex.Cosine((2, 3), shape=(3, 4))}
    found = tenflex.compare(model, x, **settings, augment=shifted, folder=tmp_path / "new")
    assert [one.error for one in found.entries] == [None, None]
    saved = json.loads((tmp_path / "new" / "compare.json").read_text())["conditions"]
    assert saved["augment"] == f"{__name__}:shifted"
    assert saved["modes"] == {"family": "Cosine", "size": [2, 3], "shape": [3, 4]}
    again = tenflex.compare(model, x, **settings, augment=shifted, folder=tmp_path / "new")
    assert again.to_dict() == found.to_dict()
    with pytest.raises(ValueError, match="under other conditions"):
        tenflex.compare(model, x, **settings, folder=tmp_path / "new")
    with pytest.raises(TypeError, match="augment must be a function"):
        Conditions(augment="shifts")
