"""Fine-tuning: it comes closer to the original without labels, says so, and is the same each time."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tenflex
from tenflex import Block, Compression, LowRank, compress
from tenflex.evaluate.fidelity import fidelity
from tenflex.finetune import Answers, Tuning, divergence, trained_parameters
from tenflex.sampling.queries import changed, joined, mixed, noisy, spreads_of
from tenflex.split import groups_of_rows, split_samples
from tenflex.storage.network import CHANGED

pytestmark = pytest.mark.usefixtures("few_steps")


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Classifier().eval()


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small() -> Compression:
    return compress(made(), draws(300), {"body": Block(3)})


def test_it_comes_closer_to_the_original_and_says_so(small: Compression) -> None:
    before = {name: one.clone() for name, one in small.model.state_dict().items()}
    better = small.finetune(draws(300), steps=200)
    fresh = draws(1000, seed=7)
    assert better.evaluate(fresh).relative_error < 0.9 * small.evaluate(fresh).relative_error
    [told] = better.report.tunings
    assert told.after < told.before
    assert (told.inputs, told.judged) == (300, "held-out inputs that chose the steps")
    assert told.trial_steps >= 4 * 20
    assert better.report.after == small.report.after
    assert better.report.output_error < small.report.output_error
    assert "Fine-tuned to the original's answers as scores of classes on 300 inputs" in str(better.report)
    torch.testing.assert_close(small.model.state_dict(), before, rtol=0, atol=0)  # the first one stays
    assert torch.equal(better.original.state_dict()["head.weight"], made().state_dict()["head.weight"])


def test_the_same_bits_again(small: Compression) -> None:
    settings = {"steps": 30, "mix": 0.5, "noise": 0.1, "augment": lambda x: x + 0.1 * torch.randn_like(x)}
    one, two = (small.finetune(draws(300), **settings) for _ in range(2))
    torch.testing.assert_close(one.model.state_dict(), two.model.state_dict(), rtol=0, atol=0)
    other = small.finetune(draws(300), **settings, seed=1)
    assert not torch.equal(one.model(draws(9)), other.model(draws(9)))


def test_nothing_but_what_was_chosen_is_trained(small: Compression) -> None:
    for train, still in (
        ("replaced", ["head"]),
        (["body.maps.1.weight"], ["body.maps.0", "body.maps.1.bias", "body.activations", "head"]),
        ("all", []),
    ):
        better = small.finetune(draws(300), steps=60, rate=1e-3, train=train)
        for name, one in better.model.named_parameters():
            fixed = any(name.startswith(part) for part in still)
            assert torch.equal(one, small.model.get_parameter(name)) == fixed, (train, name)
            assert one.requires_grad
            assert one.grad is None


def test_an_original_with_other_weights_is_refused(small: Compression, tmp_path: Path) -> None:
    """Trained to answers of another network it would be ruined, and the report would not say so."""
    small.save(tmp_path / "small")
    other = made()
    with torch.no_grad():
        next(other.parameters())[0] += 0.1
    tenflex.load(tmp_path / "small", other)  # which needs the architecture alone
    with pytest.raises(ValueError, match=r"expected the network that .* was made of, got one with other weights"):
        Compression.load(tmp_path / "small", other)
    with pytest.raises(ValueError, match=r"with its weights, got one on the meta device"):
        Compression.load(tmp_path / "small", made().to("meta"))
    tenflex.save(tenflex.load(tmp_path / "small", other), tmp_path / "again")
    assert Compression.load(tmp_path / "again", made()).plan == small.plan
    with pytest.raises(ValueError, match="other weights"):
        Compression.load(tmp_path / "again", other)


def test_it_is_saved_loaded_and_tuned_again(small: Compression, tmp_path: Path) -> None:
    better = small.finetune(draws(100), steps=20, rate=1e-2)
    better.save(tmp_path / "small")
    again = Compression.load(tmp_path / "small", made())
    fresh = draws(50, seed=3)
    assert torch.equal(again.model(fresh), better.model(fresh))
    assert torch.equal(tenflex.load(tmp_path / "small", made())(fresh), better.model(fresh))
    assert again.report == better.report
    assert again.plan == better.plan
    one, two = (each.finetune(draws(100), steps=20, rate=1e-2) for each in (better, again))
    assert torch.equal(one.model(fresh), two.model(fresh))
    assert len(two.report.tunings) == 2
    two.save(tmp_path / "small")
    assert len(Compression.load(tmp_path / "small", made()).report.tunings) == 2


def test_a_loss_and_labels_of_the_users_own(small: Compression) -> None:
    x = draws(400)
    labels = (x[:, 0] > 0).long()

    def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, batch[1])

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), batch_size=64)
    better = small.finetune(loader, loss=loss, train="all", steps=150)
    fresh = draws(500, seed=5)
    right = (better.model(fresh).argmax(1) == (fresh[:, 0] > 0)).double().mean()
    assert right > 0.9
    assert better.report.tunings[0].goal == "a loss of the user's own"


@pytest.mark.parametrize("loss", [None, lambda outputs, batch: (outputs - batch[1]).square().mean()])
def test_batches_without_an_end_are_left(small: Compression, loss: Callable[..., Tensor] | None) -> None:
    x, taken = draws(64), []
    wanted = small.model(x).detach()

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while len(taken) < 1000:
            taken.append(1)
            yield x, wanted

    small.finetune(endless(), loss=loss, steps=2, rate=0.01, samples=20)
    assert len(taken) == 32  # 100 times 20 examples and what is left of a batch


def test_a_loop_of_the_users_own(small: Compression, tmp_path: Path) -> None:
    result = compress(made(), draws(300), {"body": Block(3)})
    optimiser = torch.optim.SGD(result.model.parameters(), 0.05)
    wanted = result.original(draws(300)).detach()
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = F.mse_loss(result.model(draws(300)), wanted)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    result.save(tmp_path / "small")
    assert torch.equal(tenflex.load(tmp_path / "small", made())(draws(9)), result.model(draws(9)))
    result.write_report(tmp_path / "report.html")
    again = Compression.load(tmp_path / "small", made())
    assert CHANGED not in result.report.warnings
    assert json.loads((tmp_path / "small" / "report.json").read_text())["warnings"][-1] == CHANGED
    assert escape(CHANGED) in (tmp_path / "report.html").read_text()
    assert CHANGED in " ".join(str(result).split())
    assert again.report.warnings == (*result.report.warnings, CHANGED)
    assert not again.finetune(draws(60), steps=1, rate=1e-3).report.changed


def test_other_precisions_are_no_training(small: Compression, tmp_path: Path) -> None:
    replace(small, model=copy.deepcopy(small.model).double()).save(tmp_path / "small")
    small.finetune(draws(60), steps=20, rate=1e-2).save(tmp_path / "better")
    for name in ("small", "better"):
        assert "changed" not in json.loads((tmp_path / name / "report.json").read_text())


def test_outputs_that_are_no_scores_have_the_relative_squared_error_alone() -> None:
    task = Answers(made(), draws(60), Tuning(temperature=0), lambda _: None)
    expected = made()(draws(60))
    found = expected + 0.3
    error = (found - expected).square().sum() / (expected - expected.mean(0)).square().sum()
    torch.testing.assert_close(task.distance({0: found}, {0: expected}), error)


@pytest.mark.parametrize("units", [30.0, 1e3, 1e9])
def test_outputs_in_large_units_are_not_taken_for_sharp_scores(units: float) -> None:
    """Two coordinates in pixels look like scores of two classes: then the answers count no more than they would."""
    model = made()
    with torch.no_grad():
        model.head.weight *= units
        model.head.bias *= units
    result = compress(model, draws(200), {"": Block(2)})
    before, after = (
        one.evaluate(draws(400, 1)).relative_error for one in (result, result.finetune(draws(200), steps=60))
    )
    assert after < 1.05 * before


def test_the_squared_error_does_not_rise_for_the_sake_of_classes() -> None:
    task = Answers(made(), draws(60), Tuning(), lambda _: None)
    better, worse = copy.deepcopy(made()), copy.deepcopy(made())
    with torch.no_grad():
        better.head.bias += 0.1
        worse.head.bias += 1.0
    assert task.chosen_on(better) < math.inf
    assert task.chosen_on(worse) == math.inf
    assert task.chosen_on(made()) < task.chosen_on(better)


def test_the_report_names_the_inputs_that_tell_the_error(small: Compression) -> None:
    others = 2 * draws(100, 3)
    tuned = small.finetune(others, steps=5)
    assert "inputs it was compressed with" in str(small.report)
    assert "inputs it was fine-tuned with" in " ".join(str(tuned.report).split())
    expected = fidelity(tuned.model, small.original, others).relative_error
    assert tuned.report.output_error == pytest.approx(expected, rel=1e-5)


def test_few_held_out_inputs_all_choose_and_changed_copies_of_them_too() -> None:
    few, many = (Answers(made(), draws(count), Tuning(noise=0.1), lambda _: None) for count in (100, 1000))
    assert torch.equal(few.choosing, torch.cat(few.split[1:]))
    assert torch.equal(many.choosing, many.split.validation)
    assert (few.judged, many.judged) == ("held-out inputs that chose the steps", "held-out inputs that chose nothing")
    for task in (few, many):
        rows = torch.cat([part for part, _ in task.looked_at])
        assert len(rows) >= 512
        torch.testing.assert_close(rows[: len(task.choosing)], task.inputs[task.choosing])
        torch.testing.assert_close(made()(rows), torch.cat([wanted[0] for _, wanted in task.looked_at]))
    fitted = Answers(made(), draws(6), Tuning(), lambda _: None)
    assert fitted.judged == "the inputs trained on, which flatters"


def test_divergence_is_that_of_torch_distributions() -> None:
    found, wanted = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    ours, theirs = (torch.distributions.Categorical(logits=one / 3) for one in (found, wanted))
    expected = 9 * torch.distributions.kl_divergence(theirs, ours).mean()
    torch.testing.assert_close(divergence(found, wanted, 3.0), expected)


def test_a_network_that_is_its_own_layer_has_all_parameters_trained() -> None:
    result = compress(made(), draws(200), {"": Block(3)})
    assert len(trained_parameters(result.model, "replaced")) == len(list(result.model.parameters()))


def test_a_class_of_the_users_own_is_no_new_layer_whatever_its_name() -> None:
    class FeedForward(nn.Linear):
        """As transformers often call theirs, and tenflex one of its layers."""

    model = nn.Sequential(made(), FeedForward(3, 3), FeedForward(3, 2)).eval()
    result = compress(model, draws(200), {"0.body": Block(3), "1": LowRank(1)})
    better = result.finetune(draws(200), steps=20)
    changed = {
        name
        for (name, one), other in zip(better.model.named_parameters(), result.model.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert changed
    assert all(name.startswith(("0.body.", "1.")) for name in changed)


def test_a_module_whose_layer_stands_elsewhere_has_nothing_to_train() -> None:
    result = compress(made(), draws(200), {"body.0:body.2": Block(3)})
    with pytest.raises(ValueError, match=r"the module 'body\.2' has no parameters, .* 'replaced' names the new layers"):
        result.finetune(draws(50), train=["body.2"])


def test_new_layers_and_others_are_trained_together(small: Compression) -> None:
    alone, head, both = (
        {id(one) for one in trained_parameters(small.model, train)}
        for train in ("replaced", "head", ["replaced", "head"])
    )
    assert both == alone | head
    assert not alone & head


@pytest.mark.parametrize("inputs", [[], (), [(draws(1), torch.zeros(1))]])
def test_too_few_inputs_for_a_loss(small: Compression, inputs: object) -> None:
    with pytest.raises(ValueError, match=r"expected at least 2 examples, got [01]: pass more inputs"):
        small.finetune(inputs, loss=lambda o, b: o.mean())


def test_a_network_that_gives_something_else_now_needs_a_loss(small: Compression) -> None:
    other = replace(small, model=copy.deepcopy(small.model))
    other.model.head = nn.Linear(8, 7)
    with pytest.raises(ValueError, match=r"outputs of the shapes \[\(3,\)\], as the original's, got \[\(7,\)\]"):
        other.finetune(draws(50))
    other.finetune(draws(50), loss=lambda o, b: o.square().mean(), train="head", steps=3, rate=1e-3)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"loss": lambda o, b: o.detach().mean()}, ValueError, "loss must depend on what is trained in a way"),
        ({"loss": lambda o, b: (o.argmax(1) != 0).float().mean()}, ValueError, "counts decisions"),
        ({"loss": lambda o, b: o.sum() * 1j}, TypeError, "one real number"),
        ({"train": None}, TypeError, "train must be 'replaced', 'all', or names"),
        ({"train": ["body", 3]}, TypeError, "train must be 'replaced', 'all', or names"),
        ({"step": 3}, TypeError, "finetune has no setting 'step'; did you mean 'steps'"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1, got 0"),
        ({"rate": -1.0}, ValueError, "rate must be a finite number above 0"),
        ({"train": "bodi"}, ValueError, "the network has no parameters 'bodi'; did you mean 'body'"),
        ({"train": []}, ValueError, "leaves nothing to train"),
        ({"mix": 2}, ValueError, "mix must be a share of at most 1"),
        ({"augment": 3}, TypeError, "augment must be a function"),
        ({"augment": lambda x: x[:1]}, ValueError, "augment must give inputs of the same shapes and dtypes"),
        ({"loss": lambda o, b: o, "mix": 0.5}, ValueError, "for which a loss with labels has no"),
        ({"seed": 2**70}, ValueError, "seed must be below"),
        ({"loss": lambda o, b: o.sum() * math.nan}, ValueError, "a finite number before any step, got inf on held-out"),
        ({"loss": lambda o, b: o}, TypeError, "loss must give a tensor with one real number, got float32"),
    ],
)
def test_bad_settings(small: Compression, settings: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        small.finetune(draws(50), **settings)


# --- queries ---


def test_mixes_lie_between_pairs_and_others_stay() -> None:
    x = draws(40)
    assert torch.equal(mixed(x, 0.0, torch.Generator().manual_seed(0)), x)
    found = mixed({"x": x, "kind": torch.arange(40)}, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(found["kind"], torch.arange(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other = x[order]
    weights = (found["x"] - other) / (x - other)
    moved = order != torch.arange(40)
    torch.testing.assert_close(weights[moved], weights[moved][:, :1].expand(-1, 6), rtol=1e-3, atol=1e-3)
    assert 0 <= weights[moved].min() <= weights[moved].max() <= 1


def test_noise_has_the_size_that_is_asked_for() -> None:
    x = draws(4000) * torch.tensor([1.0, 10.0, 0.0, 1.0, 1.0, 1.0])
    noise = noisy(x, spreads_of(x), 0.5, torch.Generator().manual_seed(0)) - x
    torch.testing.assert_close(noise.std(0), 0.5 * x.std(0), rtol=0.05, atol=1e-6)


def test_random_numbers_of_an_augment_follow_from_the_seed_alone() -> None:
    def shaken(x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    before = torch.get_rng_state()
    one, two, other = (changed(shaken, draws(5), seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_copy_is_of_the_group_of_its_origin() -> None:
    x = draws(30)
    x[4] = x[3]
    copies = torch.cat([x, x.flip(1), x + 1])
    copies[30 + 5] = x[6]  # a copy that is another input
    groups = joined(groups_of_rows([copies]), 30)
    assert torch.equal(groups[:30], groups[60:])
    assert groups[3] == groups[4]
    assert groups[5] == groups[6]
    assert len(set(groups.tolist())) == 28
    split = split_samples(groups, 0.3)
    uses = [set(groups[rows].tolist()) for rows in split]
    assert all(one.isdisjoint(other) for one in uses for other in uses if one is not other)


class Off(nn.Module):
    """A network that is wrong by one number for large inputs and by another one for others."""

    def __init__(self, network: nn.Module, large: float, others: float) -> None:
        super().__init__()
        self.network, self.large, self.others = network, large, others

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + torch.where(x[:, :1] > 50, self.large, self.others)


def test_changed_inputs_choose_no_network_that_is_much_worse_on_those_as_they_are() -> None:
    model = made()
    task = Answers(model, draws(150), Tuning(augment=lambda given: given + 100, temperature=0), lambda _: None)
    first = task.chosen_on(Off(model, large=10, others=0.1))
    assert task.chosen_on(Off(model, large=1, others=0.2)) == math.inf
    assert task.chosen_on(Off(model, large=1, others=0.1)) < first
