"""Tensors that stand in files where they are large are tensors like others."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import seeded

from tenflex import Block, compress
from tenflex.sampling.inputs import Reservoir, gather
from tenflex.scratch import PARTS, Rows, allowing, ordered, room
from tenflex.storage.arrays import read_arrays


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything stands in files, however small."""
    monkeypatch.setattr("tenflex.scratch.PARTS", 2**60)
    with allowing(0):
        yield


def network(m: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(m, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)).eval()


@pytest.mark.parametrize("most", [0, 10**6])
def test_a_room_is_a_tensor_whether_it_stands_in_a_file_or_not(most: int, tmp_path: Path, monkeypatch) -> None:
    """No file is left, neither while it is used nor after."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    like = torch.zeros(1, dtype=torch.float64)
    with allowing(PARTS * most):
        found, none = room((4, 3), like), room((5, 0, 3), like)
    found[1] = torch.arange(3.0)
    assert (found.shape, found.dtype, found.is_contiguous()) == ((4, 3), torch.float64, True)
    assert torch.equal(found[1], torch.arange(3, dtype=torch.float64))
    assert none.shape == (5, 0, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("most", [0, 100, 10**6])
def test_rows_become_one_tensor(dtype: torch.dtype, most: int) -> None:
    parts = [torch.arange(size * 6).view(size, 2, 3).to(dtype) for size in (3, 1, 5)]
    with allowing(PARTS * most):
        rows = Rows()
        for part in parts:
            rows.add(part)
        assert torch.equal(rows.joined(), torch.cat(parts))
        order = torch.randperm(9)
        assert torch.equal(ordered(torch.cat(parts), order), torch.cat(parts)[order])


def test_rows_that_are_never_joined_leave_no_open_file() -> None:
    def opened() -> set[str]:
        return {os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()}

    with allowing(0):
        rows = Rows()
    rows.add(torch.zeros(1000))
    assert any(name.endswith(".part (deleted)") for name in opened())
    del rows
    gc.collect()
    assert not any(name.endswith(".part (deleted)") for name in opened())


def test_a_disk_that_is_full_is_an_error_and_no_signal(monkeypatch) -> None:
    monkeypatch.setattr("tenflex.scratch.shutil.disk_usage", lambda folder: type("Usage", (), {"free": 2**20})())
    full = r"0.0 GiB are to stand in a file, .* set TMPDIR to a folder on a larger disk"
    with allowing(0), pytest.raises(ValueError, match=full):
        room((2**18,), torch.zeros(1, dtype=torch.float64))


def test_a_draw_is_the_same_from_files(request) -> None:
    x = torch.randn(1000, 4, generator=seeded(0))

    def drawn(most: int) -> torch.Tensor:
        held = Reservoir(most, 0)
        for batch in x.split(64):
            held.add(batch)
        return held.batch()

    expected = {most: drawn(most).clone() for most in (100, 2000)}
    request.getfixturevalue("in_files")
    assert all(torch.equal(drawn(most), found) for most, found in expected.items())


def test_an_array_in_a_file_is_read_in_parts(tmp_path: Path, monkeypatch) -> None:
    """It is drawn from as if it were in memory; nothing is written to it."""
    x = np.random.default_rng(0).standard_normal((600, 5))
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("tenflex.storage.arrays.MAPPED", 0)
    monkeypatch.setattr("tenflex.sampling.inputs.SLICE", 1000)
    model, mapped = network(5), read_arrays(tmp_path / "x.npy")
    for samples in (50, 1000):
        expected = gather(model, torch.from_numpy(x).float(), samples)
        for inputs in (mapped, np.load(tmp_path / "x.npy", mmap_mode="r")):
            assert torch.equal(gather(model, inputs, samples), expected)
    mapped.zero_()
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)


@pytest.mark.usefixtures("few_steps")
def test_a_layer_is_found_from_files_as_from_memory(request) -> None:
    model, x = network(6), torch.randn(400, 6, generator=seeded(0))

    def found() -> torch.Tensor:
        return compress(model, x, {"": Block(2)}, samples=400, views=0).model(x[:4])

    expected = found()
    request.getfixturevalue("in_files")
    assert torch.equal(found(), expected)
