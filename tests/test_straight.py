"""Folded networks have nothing left of the functions inside their blocks, or stay what they are."""

from __future__ import annotations

import copy
import pickle
import sys
import threading

import pytest
import torch
from planted import random
from torch import nn

import tenflex
from tenflex.nn import FoldedLayer
from tenflex.surgery.carry import Passed


class Network(nn.Module):
    """A block with a function inside, in a module of its own, with what a graph may stumble over around it.

    Args:
        looks: Whether the forward pass depends on numbers, so that there is no graph of it.
    """

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.inner, self.last, self.looks = Inner(looks), nn.Linear(3, 2), looks

    def forward(self, x):
        return self.last(self.inner(x))


class Inner(nn.Module):
    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks, self.names = looks, ("a", "b")
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x, scale=None):
        y = self.fc2(torch.tanh(self.fc1(x))) + self.shift
        if scale is not None:
            y = y * scale
        if self.looks and bool((y > 1e9).any()):
            y = -y
        return y


def folded_of(network: nn.Module, generator) -> tuple[tenflex.Compression, nn.Module]:
    x = random(generator, 60, 5).float()
    quick = tenflex.solvers.ConstrainedALS(1)
    result = tenflex.compress(network.eval(), x, {"inner.fc1:inner.fc2": tenflex.Block(2)}, solver=quick)
    return result, result.folded()


def test_nothing_is_left_inside_of_a_block(generator):
    result, folded = folded_of(Network(), generator)
    x = random(generator, 7, 5).float()
    torch.testing.assert_close(folded(x), result.model(x))
    assert not any(isinstance(one, Passed) for one in folded.modules())
    assert isinstance(folded.inner.fc1, FoldedLayer)
    assert folded.inner.names == ("a", "b")
    assert list(folded.state_dict()) == [one for one in folded.state_dict() if "shift" not in one]
    torch.testing.assert_close(copy.deepcopy(folded)(x), result.model(x))
    program = torch.export.export(folded, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.testing.assert_close(program.module()(x[:3]), result.model(x[:3]))


def test_other_inputs_than_those_it_was_read_with_are_refused(generator):
    _, folded = folded_of(Network(), generator)
    with pytest.raises(ValueError, match="scale has been specialized to have value None"):
        folded.inner(torch.ones(2, 5), torch.ones(1))


@pytest.mark.parametrize("way", ["by name", "with None", "both"])
def test_a_module_is_called_in_any_way(way, generator):
    class Called(Network):
        def forward(self, x):
            inner = {
                "by name": lambda: self.inner(x=x),
                "with None": lambda: self.inner(x, None),
                "both": lambda: self.inner(x, scale=None),
            }
            return self.last(inner[way]())

    result, folded = folded_of(Called(), generator)
    x = random(generator, 7, 5).float()
    torch.testing.assert_close(folded(x), result.model(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(folded.inner))(x=x), result.model.inner(x))


def test_a_block_whose_graph_cannot_be_called_stays_as_it_is(generator, monkeypatch):
    monkeypatch.setattr("tenflex.surgery.straight._gives", lambda *_: False)
    result, folded = folded_of(Network(), generator)
    x = random(generator, 7, 5).float()
    assert isinstance(folded.inner, Inner)
    torch.testing.assert_close(folded(x), result.model(x))


def test_other_threads_run_networks_meanwhile(generator):
    result, other, x = folded_of(Network(), generator)[0], nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4)
    expected, done, failed, calls = other(x), threading.Event(), [], 0

    def serve() -> None:
        nonlocal calls
        while not done.is_set():
            try:
                assert torch.equal(other(x), expected)
            except Exception as error:
                failed.append(error)
            calls += 1

    thread = threading.Thread(target=serve)
    thread.start()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            result.folded()
    finally:
        sys.setswitchinterval(before)
        done.set()
        thread.join()
    assert calls > 10
    assert not failed


def test_what_is_no_graph_stays(generator):
    result, folded = folded_of(Network(looks=True), generator)
    x = random(generator, 7, 5).float()
    torch.testing.assert_close(folded(x), result.model(x))
    assert isinstance(folded.inner, Inner)
