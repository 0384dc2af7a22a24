"""How long a block will take is told before its first sample, and of hours it is warned."""

from __future__ import annotations

import pytest
import torch
from planted import seeded
from torch import nn

from tenflex import Block, compress
from tenflex.blocks.estimate import expected_seconds, seconds_of
from tenflex.progress import Progress
from tenflex.shown import in_words


def network(m: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(m, 30), nn.Tanh(), nn.Linear(30, n)).eval()


def test_more_samples_nodes_views_and_layers_take_longer() -> None:
    model, x = network(8, 6), torch.randn(400, 8, generator=seeded(0))
    small = min(expected_seconds(model, x, 6, Block(4), 0, 340) for _ in range(3))  # others may be at work meanwhile
    assert small < expected_seconds(model, x, 6, Block(4), 0, 34_000, 40_000)
    assert small < expected_seconds(model, x, 6, Block(400), 0, 340)
    assert small < expected_seconds(model, x, 6, Block(4), 6, 34_000, 40_000)
    assert small < expected_seconds(model, x, 6, Block((4, 4, 4, 4)), 0, 340)


def test_seconds_are_those_of_the_quickest_of_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 5.0, 7.0, 7.0, 11.0])
    monkeypatch.setattr("tenflex.blocks.estimate.time.perf_counter", lambda: next(times))
    called: list[int] = []
    assert seconds_of(lambda: called.append(1)) == 2.0
    assert len(called) == 4


def test_it_is_told_before_the_first_sample_and_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenflex.blocks.sampled.expected_seconds", lambda *args: 7200.0)
    told: list[Progress] = []
    with pytest.warns(UserWarning, match=r"block 'network' will take about 2.0 hours: fewer samples, a lower rank"):
        compress(network(5, 3), torch.randn(60, 5, generator=seeded(0)), {"": Block(2)}, on_progress=told.append)
    stages = [one.stage for one in told]
    assert stages.index("estimate") < stages.index("sample")
    assert [one.seconds for one in told if one.seconds is not None] == [7200.0]


def test_times_in_words() -> None:
    assert [in_words(one) for one in (0.1, 59.0, 90.0, 5400.0)] == ["1 s", "59 s", "1.5 min", "1.5 hours"]
