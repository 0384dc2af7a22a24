"""The demo: its numbers, what it writes, and that it checks what it wrote."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tenflex
from tenflex.cli import demo as demo_command
from tenflex.cli.app import app
from tenflex.demo import files
from tenflex.demo.again import fingerprint, require_same_bits
from tenflex.demo.digits import Digits
from tenflex.demo.files import require_demo_folder, write_demo
from tenflex.demo.networks import LeNet300, lenet300
from tenflex.demo.run import (
    SIZES,
    Attempt,
    Score,
    Size,
    Within,
    compress_sizes,
    compress_within,
    markdown_table,
    smallest_good,
)
from tenflex.evaluate.cost import stored_numbers
from tenflex.progress import Progress
from tenflex.solvers import ConstrainedALS

TINY = (Size(60, tenflex.Block(rank=5)), Size(90, tenflex.Block(rank=6, factor=3)))


@pytest.fixture(scope="module")
def few(digits: Digits) -> Digits:
    """The digits, with so few training images that none is calibrated on twice by chance."""
    return replace(digits, train_images=digits.train_images[:150], train_labels=digits.train_labels[:150])


@pytest.fixture(scope="module")
def attempts(
    lenet: LeNet300, few: Digits, within_few_steps: Callable[[], AbstractContextManager[None]]
) -> tuple[Attempt, ...]:
    with within_few_steps():
        return compress_sizes(lenet, few, TINY, seed=1)


def test_rows_tell_of_the_compressions(attempts: tuple[Attempt, ...], lenet: LeNet300, digits: Digits) -> None:
    for attempt, size in zip(attempts, TINY, strict=True):
        row, compression = attempt.row, attempt.compression
        measured = compression.evaluate(digits.test_images, digits.test_labels)
        assert row.size == size
        assert row.original == Score(266_610, 0.9535, 0.0)
        assert row.ours.accuracy == measured.accuracy
        assert row.ours.relative_error == measured.relative_error
        assert row.ours.parameters == stored_numbers(compression.model)
        assert row.ours.parameters - 784 < row.svd.parameters <= row.ours.parameters
        assert row.drop(row.ours) == pytest.approx(95.35 - 100 * row.ours.accuracy)
        assert compression.plan.seed == 1
        assert 0.2 < row.ours.accuracy < 0.95
        assert row.ours.accuracy > row.svd.accuracy  # far above, at so few numbers


def test_agreement_is_on_images_that_none_saw(attempts: tuple[Attempt, ...], lenet: LeNet300, few: Digits) -> None:
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    unseen = few.train_images[order[90:]]
    for one in attempts:
        assert one.row.agreement == one.compression.evaluate(unseen).agreement


@pytest.mark.usefixtures("few_steps")
def test_demo_is_reproducible(attempts: tuple[Attempt, ...], lenet: LeNet300, few: Digits) -> None:
    [again] = compress_sizes(lenet, few, TINY[:1], seed=1)  # held-out images differ, the network does not
    first = attempts[0].compression.model.state_dict()
    assert again.row.ours == attempts[0].row.ours
    assert all(torch.equal(one, first[name]) for name, one in again.compression.model.state_dict().items())


@pytest.fixture(scope="module")
def within(lenet: LeNet300, few: Digits) -> Within:
    return compress_within(lenet, few, "1%", seed=1, basis=tenflex.Monomial(2), solver=ConstrainedALS(2))


def test_a_budget_is_kept(within: Within, digits: Digits) -> None:
    measured = within.compression.evaluate(digits.test_images, digits.test_labels)
    assert within.score == Score(stored_numbers(within.compression.model), measured.accuracy, measured.relative_error)
    assert within.score.parameters <= 2666
    assert within.to_dict()["blocks"] == within.compression.plan.to_dict()["blocks"]


@pytest.mark.usefixtures("few_steps")
def test_progress_names_the_size(lenet: LeNet300, few: Digits) -> None:
    seen: list[Progress] = []
    compress_sizes(lenet, few, TINY[:1], on_progress=seen.append)
    assert {one.task for one in seen} == {"60 images, r = 5"}
    assert str(TINY[1]) == "90 images, r = 6, q = 3"


def test_images_must_be_left(lenet: LeNet300, few: Digits) -> None:
    with pytest.raises(ValueError, match=r"sizes must leave some of 150 training images held out, got 150 images"):
        compress_sizes(lenet, few, [Size(150, tenflex.Block(2))])


def made_up(attempt: Attempt, parameters: int, agreement: float) -> Attempt:
    row = replace(attempt.row, ours=Score(parameters, 0.9, 0.2), agreement=agreement)
    return replace(attempt, row=row)


def test_the_smallest_good_one_is_chosen(attempts: tuple[Attempt, ...]) -> None:
    small, medium, twin, large = (
        made_up(attempts[0], *one) for one in ((100, 0.94), (200, 0.96), (200, 0.97), (300, 0.99))
    )
    assert smallest_good([large, medium, twin, small]) is twin  # small is not good; twin agrees more than medium
    assert smallest_good([large, small], least_agreement=0.9) is small
    assert smallest_good([small, large], least_agreement=1.0) is large  # none is good: the nearest


def test_sizes_are_those_of_the_method() -> None:
    wanted = {(2000, 40, 10), (2000, 40, 15), (2000, 60, 15), (128, 40, 15), (128, 20, None)}
    assert {(one.images, one.block.rank, one.block.factor) for one in SIZES} == wanted


def test_markdown_is_a_table(attempts: tuple[Attempt, ...]) -> None:
    rows = [one.row for one in attempts]
    lines = markdown_table(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    columns = {name: [line[index] for line in cells[2:]] for index, name in enumerate(cells[0])}
    assert columns["parameters"] == ["266,610", *(f"{row.ours.parameters:,}" for row in rows)]
    assert columns["accuracy"] == ["95.35 %", *(f"**{100 * row.ours.accuracy:.2f} %**" for row in rows)]
    assert columns["flexible layer"] == ["original network", "r = 5", "r = 6, q = 3"]
    assert columns["kept"] == ["", "1.5 % (66x)", "0.94 % (106x)"]
    assert columns["SVD: drop"][1:] == [f"{row.drop(row.svd):.2f}" for row in rows]


def test_all_is_written_and_checked(attempts: tuple[Attempt, ...], digits: Digits, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    written = write_demo(folder, attempts, digits.test_images[:50], seed=1, least_agreement=0.5)
    pytest.importorskip("matplotlib")
    names = {"table.json", "table.md", "model", "accuracy.png", "activations.png", "convergence.png"}
    assert written.exported is not None
    assert written.exported.difference < 1e-4
    names |= {"small.c", "small.h"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in written.plots] == ["accuracy.png", "activations.png", "convergence.png"]
    table = json.loads((folder / "table.json").read_text())
    assert table == json.loads(json.dumps(written.table))
    assert table["rows"] == [one.row.to_dict() for one in attempts]
    assert table["rows"][0]["ours"]["accuracy"] == attempts[0].row.ours.accuracy
    assert table["seed"] == 1
    assert attempts[table["chosen"]] is written.chosen
    loaded = tenflex.load(folder / "model", trust="tenflex.demo.networks:LeNet300")
    assert fingerprint(loaded) == fingerprint(written.chosen.compression.model)
    with pytest.raises(RuntimeError, match="loaded in a new process gives other outputs than before"):
        require_same_bits(lenet300(), folder / "model")


def test_a_network_that_does_not_load_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"could not be loaded in a new process: FileNotFoundError: .* does not exist"
    ):
        require_same_bits(lenet300(), tmp_path)


OTHER = {"network": "", "block": "", "versions": {}, "rows": []}
"""The table of an earlier demo."""


def test_plots_may_be_missing(
    attempts: tuple[Attempt, ...], digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "require_same_bits", lambda *_: None)  # tested above
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setenv("PATH", "")  # no compiler either
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "table.json").write_text(json.dumps(OTHER))
    (tmp_path / "accuracy.png").write_text("of other numbers")
    (tmp_path / "small.c").write_text("of another network")
    written = write_demo(tmp_path, attempts, digits.test_images[:50], seed=1)
    assert written.plots == ()
    assert "pip install 'tenflex[plot]'" in str(written.no_plots)
    assert (written.exported, "compiler" in str(written.no_export)) == (None, True)
    assert {path.name for path in tmp_path.iterdir()} == {"table.json", "table.md", "model"}


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(ValueError, match="holds other files than an earlier demo: choose a new or empty folder"):
        require_demo_folder(tmp_path)
    with pytest.raises(ValueError, match="is a file: choose a folder for the demo to write to"):
        require_demo_folder(tmp_path / "table.md")
    require_demo_folder(tmp_path / "new")
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(ValueError, match="holds other files than an earlier demo"):
        require_demo_folder(tmp_path)
    (tmp_path / "table.json").write_text(json.dumps(OTHER))
    require_demo_folder(tmp_path)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, within: Within) -> None:
    """Make the command short: tiny sizes, a budget that was met before, and no second process."""
    monkeypatch.setattr(demo_command, "compress_within", lambda *_, **__: within)
    monkeypatch.setattr(demo_command, "SIZES", TINY)
    monkeypatch.setattr(files, "require_same_bits", lambda *_: None)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        app(["demo", *arguments], prog_name="tenflex")
    captured = capsys.readouterr()
    assert end.value.code is None or isinstance(end.value.code, int)
    return end.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize("width", [80, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("short", "few_steps")
def test_command_shows_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, within: Within, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run(capsys, str(tmp_path / "demo"))
    assert (code, err) == (0, "")
    assert "…" not in out  # nothing is cut off
    assert all(len(line) <= width for line in out.splitlines())
    assert re.search(r"\n *before +266,610 +95\.35 %", out)
    assert len(re.findall(r"\n *(?:60|90) +[56], [3-] ", out)) == 2
    assert "No network is good" in out
    assert "Saved, loaded in a new process, and checked: the same bits." in out
    out = " ".join(out.split())
    assert "budget='1%' from 128 images gave --block " in out
    assert f"keeps {within.score.parameters:,} numbers" in out
    assert "In C it takes" in out


@pytest.mark.usefixtures("short")
def test_command_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, attempts: tuple[Attempt, ...]
) -> None:
    monkeypatch.setattr(demo_command, "compress_sizes", lambda *_, **__: attempts)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, str(tmp_path / "demo"), "--seed", "1", "--json")
    printed = json.loads(out)
    assert code == 0
    assert printed["plots"] == []
    assert printed["exported"]["size"] > 0
    assert printed["within"]["budget"] == "1%"
    assert printed["rows"] == json.loads((tmp_path / "demo" / "table.json").read_text())["rows"]
    assert err.startswith("The plots were skipped: plots need matplotlib")


def test_command_fails_cleanly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, attempts: tuple[Attempt, ...]
) -> None:
    (tmp_path / "mine").write_text("")
    assert run(capsys, str(tmp_path))[0] == 2
    code, _, err = run(capsys, str(tmp_path / "mine" / "below"))
    assert code == 2
    assert "cannot be written: Not a directory" in err
    monkeypatch.setattr(demo_command, "SIZES", TINY[:1])
    monkeypatch.setattr(demo_command, "compress_sizes", lambda *_, **__: attempts)
    monkeypatch.setattr(demo_command, "compress_within", lambda *_, **__: None)
    monkeypatch.setattr(files, "require_same_bits", lambda *_: 1 / 0)
    assert run(capsys, str(tmp_path / "demo"))[0] == 1


@pytest.mark.slow
def test_whole_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(tmp_path / "demo"), "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert len(rows) == len(SIZES)
    for row in rows:
        assert row["ours"]["accuracy"] > row["svd"]["accuracy"]
    assert rows[0]["kept"] < 0.04
    assert rows[0]["ours"]["drop"] < 4
    assert rows[0]["svd"]["drop"] > 10
    assert json.loads(out)["within"]["parameters"] <= 0.05 * 266_610
