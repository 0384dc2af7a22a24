"""The original is sampled at changed copies of the inputs too, and held-out errors stay honest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tenflex import Block, Monomial, compress
from tenflex.blocks.rows import groups_in
from tenflex.compress import with_changed
from tenflex.coordinates import Whiten


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def shaken(x: Tensor) -> Tensor:
    return x + 0.5 * torch.randn_like(x)


def test_copies_are_sampled_and_held_out_with_their_origins() -> None:
    result = compress(made(), draws(40), {"": Block(2)}, augment=shaken, copies=3, basis=Monomial(3))
    problem = result.solutions[""].problem
    x = problem.samples.original_inputs
    expected = torch.cat(with_changed(draws(40), shaken, result.plan))
    distances, places = torch.cdist(x, expected.double()).min(1)
    assert distances.max() < 1e-3
    assert sorted(places.tolist()) == list(range(160))
    torch.testing.assert_close(expected[:40], draws(40))
    assert (expected[40:].view(3, 40, 5) - draws(40)).std().item() == pytest.approx(0.5, rel=0.1)
    origins = [set((places[rows] % 40).tolist()) for rows in problem.split]
    assert all(one.isdisjoint(other) for one in origins for other in origins if one is not other)
    assert all(origins)
    assert result.plan.copies == 3


def test_copies_help_where_inputs_are_few() -> None:
    """Where coordinates do not shrink: with shrinkage, changes in all directions are there in closed form."""
    fresh = 1.2 * draws(500, seed=9)
    settings = {"basis": Monomial(3), "coordinates": Whiten(), "coupling": 3.0}
    plain, more = (
        compress(made(), draws(24), {"": Block(3)}, augment=augment, copies=copies, **settings)
        for augment, copies in ((None, 0), (shaken, 8))
    )
    assert more.evaluate(fresh).relative_error < 0.8 * plain.evaluate(fresh).relative_error


def test_fidelity_is_that_of_the_inputs_themselves() -> None:
    result = compress(made(), draws(40), {"": Block(2)}, augment=shaken, basis=Monomial(3))
    assert result.report.fidelity == result.evaluate(draws(40))


def test_the_same_bits_again() -> None:
    one, two = (compress(made(), draws(40), {"": Block(2)}, augment=shaken, basis=Monomial(3)) for _ in range(2))
    assert torch.equal(one.model(draws(9)), two.model(draws(9)))


def test_positions_of_a_copy_belong_to_the_group_of_its_origin() -> None:
    batch = draws(30)
    groups = groups_in([batch, batch + 1, batch + 2])
    assert torch.equal(groups, torch.arange(30).repeat(3))


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="copies=2 needs an augment that makes them"):
        compress(made(), draws(40), {"": Block(2)}, copies=2)
    with pytest.raises(TypeError, match="augment must be a function"):
        compress(made(), draws(40), {"": Block(2)}, augment="shift")
    with pytest.raises(ValueError, match="augment must give inputs of the same shapes and dtypes"):
        compress(made(), draws(40), {"": Block(2)}, augment=lambda x: x.double())
    with pytest.raises(ValueError, match="what augment gives must be finite"):
        compress(made(), draws(40), {"": Block(2)}, augment=lambda x: x / 0)
