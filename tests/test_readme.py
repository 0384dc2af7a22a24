"""Everything in the README runs, and its table is the one that the demo made."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    if "again" in names:
        images = names["digits"].test_images
        assert torch.equal(names["again"](images), names["result"].model(images))
        assert names["result"].report.after.parameters == 9_090
    elif "better" in names:
        assert names["better"].report.after.parameters <= 0.05 * names["better"].report.before.parameters
        assert (tmp_path / "report.html").exists()
    elif "path" in names:
        assert names["path"].rank == 2
        assert names["solution"].output_error < 0.02
    else:
        assert names["solution"].output_error < 1e-12
        assert names["identify"](names["solution"]).trusted
        assert {"nodes.png", "solution.safetensors"} <= {path.name for path in tmp_path.iterdir()}


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits) -> None:
    import numpy as np

    from tenflex.cli.app import app

    monkeypatch.chdir(tmp_path)
    np.save("images.npy", digits.train_images[:128].numpy())
    np.save("test.npy", digits.test_images.numpy())
    np.save("labels.npy", digits.test_labels.numpy())
    block = next(one for one in SHELL if one.startswith("tenflex inspect"))
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [command[1] for command in commands] == ["inspect", "compress", "evaluate"]
    for command in commands:
        done = CliRunner().invoke(app, command[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "small" / "model.safetensors").exists()
    decouple = next(one for one in SHELL if one.startswith("tenflex decouple"))
    done = CliRunner().invoke(app, shlex.split(decouple)[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "springs" / "solution.safetensors").exists()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    assert {"demo", "test", "test-all", "check", "bench", "docs"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(\./([^)]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


RESULTS = ROOT / "benchmarks" / "results"


def test_table_is_the_recorded_one() -> None:
    """The figures in the README are those that `python -m benchmarks demo` recorded."""
    table = README.split("<!-- table: demo -->")[1].split("<!-- end -->")[0].strip()
    assert table == (RESULTS / "demo.md").read_text().strip()


@pytest.mark.slow
def test_recorded_table_is_true(digits, lenet) -> None:
    """Measured again, the accuracies are the recorded ones within a point: another machine rounds otherwise."""
    from tenflex.demo.run import compress_sizes

    recorded = json.loads((RESULTS / "demo.json").read_text())["rows"]
    again = [attempt.row.to_dict() for attempt in compress_sizes(lenet, digits)]
    assert [row["ours"]["parameters"] for row in again] == [row["ours"]["parameters"] for row in recorded]
    for now, then in zip(again, recorded, strict=True):
        for method in ("ours", "svd"):
            assert abs(now[method]["accuracy"] - then[method]["accuracy"]) < 0.01
