"""Fixtures of all tests, and the rule that nothing global is left changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from tenflex.demo.digits import Digits, load_digits
from tenflex.demo.networks import LeNet300, lenet300
from tenflex.planning import held_out
from tenflex.solvers import BestSoFar, MultiStart, Refine, default
from tenflex.solvers.wrap import Inner

GLOBAL_SEED = 20210613
"""What the global generator of torch is seeded with before each test; the library itself must never seed it."""

# The same examples on each run, and no limit on the time of one: machines differ, and the first call is the slowest.
settings.register_profile("tenflex", deadline=None, derandomize=True)
settings.load_profile("tenflex")


def global_settings() -> dict[str, object]:
    """What the library must never change, by the name of the function that tells it."""
    return {
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.initial_seed()": torch.initial_seed(),
        "numpy.random.get_state()": [np.asarray(part).tolist() for part in np.random.get_state()],
    }


@pytest.fixture(autouse=True)
def global_state() -> Iterator[None]:
    """Fail a test that leaves a global setting changed; each test draws the same global random numbers.

    A test may draw from the global generator, as every `nn.Linear` does, so only seeding it is an error here:
    `unchanged_rng` is for calls that must not draw from it either.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(GLOBAL_SEED)
        before = global_settings()
        yield
        after = global_settings()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        pytest.fail(f"global state was changed: {', '.join(changed)}; in a test, use `generator` or fork_rng")


@pytest.fixture
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default recipe with two starts in place of ten: the same steps, for tests of what does not depend on luck."""
    monkeypatch.setattr(default, "STARTS", 2)


@contextmanager
def taking_few_steps() -> Iterator[None]:
    """Make the default recipe one of one start and ten iterations of each refinement."""

    def start(inner: Inner, starts: int, first: Inner | None = None) -> MultiStart:
        return MultiStart(inner, 1)

    def refine(iterations: int, **settings: Any) -> Refine:
        return Refine(10, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "MultiStart", start)
        patch.setattr(default, "Refine", refine)
        patch.setattr(held_out, "TRIAL", BestSoFar(Refine(10), of="outputs", patience=2))
        yield


@pytest.fixture
def few_steps() -> Iterator[None]:
    """The default recipe with one start and ten iterations of each refinement, for tests of what is around it."""
    with taking_few_steps():
        yield


@pytest.fixture(scope="session")
def within_few_steps() -> Callable[[], AbstractContextManager[None]]:
    """The same as a context, for what several tests share."""
    return taking_few_steps


@pytest.fixture
def unchanged_rng() -> Callable[[], AbstractContextManager[None]]:
    """A context that fails if a random number was drawn in it from the global generator of torch."""

    @contextmanager
    def check() -> Iterator[None]:
        before = torch.get_rng_state()
        yield
        if not torch.equal(before, torch.get_rng_state()):
            pytest.fail("random numbers were drawn from the global generator of torch")

    return check


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for each test, seeded with 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The shipped digits, loaded once."""
    return load_digits()


@pytest.fixture(scope="session")
def lenet() -> Iterator[LeNet300]:
    """The shipped network, loaded once; at the end it must be as it was, since originals are never modified."""
    model = lenet300()
    yield model
    assert not model.training
    torch.testing.assert_close(model.state_dict(), lenet300().state_dict(), rtol=0, atol=0)
