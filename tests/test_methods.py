"""The registry of methods: one contract for all of them, and what students are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tenflex.baselines import Training, group_pruning
from tenflex.baselines.linear import thin
from tenflex.baselines.training import (
    InUnits,
    Lesson,
    finetune,
    judge,
    judge_beside,
    loss_of,
    mixed,
    next_rate,
    proportional,
    train,
)
from tenflex.evaluate.cost import stored_numbers
from tenflex.evaluate.fidelity import fidelity, predict
from tenflex.methods import METHODS, Given, students
from tenflex.methods.registry import find_methods, seeing_modes, sized
from tenflex.methods.students import (
    ACTIVATIONS,
    Asked,
    Shape,
    Student,
    distilled,
    folded_,
    kan_layers,
    kan_size,
    layers_of,
    placed_,
    student_size,
)
from tenflex.modes import Cosine
from tenflex.nn.multilinear import ModeProduct
from tenflex.planning import planner
from tenflex.planning.sizes import block_size

pytestmark = pytest.mark.usefixtures("few_steps")

QUICK = Training(steps=40, batch=32, rates=(2e-2,))


class Network(nn.Module):
    """Two blocks, the second after a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(16, 24)
        self.fc2 = nn.Linear(24, 20)
        self.fc3 = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x).tanh()).relu())


def network() -> Network:
    return Network().eval()


def inputs(count: int = 48) -> Tensor:
    return torch.randn(count, 6) @ torch.randn(6, 16) / 2


@pytest.mark.parametrize("name", METHODS)
def test_contract(
    name: str, unchanged_rng: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "MOST_SOLVES", 2)  # of a budget, for which as many would take half a minute
    model, x = network(), inputs()
    labels = predict(model, x).argmax(1)
    before, kept = copy.deepcopy(model.state_dict()), x.clone()
    given = Given(model, x, 500, labels=labels, training=QUICK)
    with unchanged_rng():
        smaller, again = METHODS[name](given), METHODS[name](given)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert x.equal(kept)
    torch.testing.assert_close(predict(smaller, x), predict(again, x), rtol=0, atol=0)
    assert not any(one._forward_pre_hooks or one._forward_hooks for one in model.modules())
    assert not any(one.training for one in (*smaller.modules(), *model.modules()))
    assert {one.dtype for one in smaller.parameters()} == {torch.float32}
    assert not {one.data_ptr() for one in model.parameters()} & {one.data_ptr() for one in smaller.parameters()}
    assert stored_numbers(smaller) <= 500
    assert name == "affine" or stored_numbers(smaller) > 400
    assert name in ("scratch", "torch-pruning") or fidelity(smaller, model, x).relative_error < 0.95
    assert all(one.grad is None for one in model.parameters())


@pytest.mark.parametrize("name", ["flexible", "svd", "asymmetric-svd", "student-jacobians", "student-kan"])
def test_blocks(name: str) -> None:
    """Only the named block changes; the rest of the network counts."""
    model, x = network(), inputs()
    rest = stored_numbers(model.fc1)
    smaller = METHODS[name](Given(model, x, rest + 160, ("fc2:fc3",), training=QUICK))
    assert rest < stored_numbers(smaller) <= rest + 160
    torch.testing.assert_close(smaller.fc1.state_dict(), model.fc1.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"numbers already, more than 100"):
        METHODS[name](Given(model, x, 100, ("fc2:fc3",), training=QUICK))


def test_labels_are_asked_for() -> None:
    with pytest.raises(ValueError, match="scratch needs labels"):
        METHODS["scratch"](Given(network(), inputs(), 300))


def test_names() -> None:
    assert [one.name for one in find_methods(["svd", "student"])] == ["svd", "student"]
    with pytest.raises(ValueError, match="there is no method 'studant'; did you mean 'student'"):
        find_methods(["studant"])
    with pytest.raises(TypeError, match=r"write \['svd'\]"):
        find_methods("svd")
    with pytest.raises(ValueError, match="once, and at least one"):
        find_methods(["svd", "svd"])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("factor", [None, 3])
def test_sizes_of_students(name: str, factor: int | None) -> None:
    middle = layers_of(11, 4, Shape(7, factor), name)
    student = Student((11,), (4,), middle)
    assert stored_numbers(student) == student_size(11, 4, name)(7, factor)
    assert student(torch.zeros(2, 11)).shape == (2, 4)


def test_sizes_of_kan_students() -> None:
    assert stored_numbers(nn.Sequential(*kan_layers(11, 4, Shape(3, None), "kan"))) == kan_size(11, 4)(3, None)


@pytest.mark.parametrize(("m", "n", "most"), [(784, 10, 13_330), (64, 64, 2_000), (20, 3, 300)])
def test_sizes_of_ours(m: int, n: int, most: int) -> None:
    block = sized((m,), n, most)
    assert 0.8 * most < block_size(block, m, n) <= most


@pytest.mark.parametrize("name", ["flexible", "svd", "asymmetric-svd", "node-dropping", "student", "scratch"])
def test_modes_are_given_to_all(name: str) -> None:
    """As many numbers, of which none tell of what the modes leave out: outputs do not depend on that."""
    model, x = network(), inputs()
    labels, modes = predict(model, x).argmax(1), Cosine((3, 3), shape=(4, 4))
    smaller = METHODS[name](Given(model, x, 300, labels=labels, training=QUICK, modes=modes))
    assert 200 < stored_numbers(smaller) <= 300
    told = ModeProduct(modes).multilinear
    left_out = x - told.widen(told.narrow(x))
    assert left_out.norm() > 0.1 * x.norm()
    torch.testing.assert_close(predict(smaller, x - left_out), predict(smaller, x), rtol=1e-3, atol=1e-4)


def test_modes_are_for_their_inputs_alone() -> None:
    model, x = network(), inputs()
    with pytest.raises(ValueError, match=r"such as shape=\(28, 28\)"):
        Given(model, x, 300, modes=Cosine(3))
    with pytest.raises(TypeError, match="modes must be such as Cosine"):
        Given(model, x, 300, modes=3)  # type: ignore[arg-type]
    other = Given(model, x, 300, modes=Cosine(3, shape=(5, 5)))
    assert seeing_modes(other) is other


@pytest.mark.parametrize("name", ["flexible", "svd", "asymmetric-svd", "node-dropping"])
def test_all_look_at_changed_inputs(name: str) -> None:
    """Where copies are the inputs turned round, every method fits both: it is as if both were given."""
    model, x = network(), inputs()
    asked: list[int] = []

    def turned(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return batch.flip(1)

    smaller = METHODS[name](Given(model, x, 500, training=replace(QUICK, augment=turned)))
    assert set(asked) == {48}
    alone = METHODS[name](Given(model, x, 500, training=QUICK))
    there = x.flip(1)
    assert fidelity(smaller, model, there).relative_error < 0.8 * fidelity(alone, model, there).relative_error


def test_pruning_keeps_the_largest_nodes() -> None:
    """Of nodes of which half do nothing, that half goes, and the function stays."""
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        model[0].weight[::2] = 0
        model[0].bias[::2] = 0
        model[2].weight[:, ::2] = 0
    smaller = group_pruning(model, torch.randn(4, 6), 10 * 7 + 33)
    assert stored_numbers(smaller) == 103
    x = torch.randn(20, 6)
    torch.testing.assert_close(predict(smaller, x), predict(model, x))
    with pytest.raises(ValueError, match="at no ratio of pruned nodes does it store at most 2"):
        group_pruning(model, x, 2)


def test_shapes_of_students() -> None:
    student = Student((2, 3), (2, 2), layers_of(6, 4, Shape(5, None), "relu"))
    assert student(torch.zeros(7, 2, 3)).shape == (7, 2, 2)


@pytest.mark.parametrize("name", ["relu", "spline", "maxout"])
def test_activations_are_given_unit_variance(name: str) -> None:
    lesson = Lesson.of(network(), 10 * inputs() + 3)
    student = placed_(Student((16,), (3,), layers_of(16, 3, Shape(6, 4), name)), lesson)
    arriving = student.middle[:2](lesson.inputs)
    torch.testing.assert_close(arriving.mean(0), torch.zeros(arriving.shape[1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(arriving.std(0, correction=0), torch.ones(arriving.shape[1]), rtol=1e-4, atol=0)


class AtPositions(nn.Module):
    """A block that acts at every position alike, and a sum over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


@pytest.mark.parametrize("name", ["flexible", "student"])
def test_a_block_of_positions_is_sized_and_taught_by_them(name: str) -> None:
    """The size that is allowed is used, and the smaller network takes sequences of other lengths."""
    model = AtPositions().eval()
    smaller = METHODS[name](Given(model, torch.randn(30, 5, 6), 300, blocks=("block",), training=QUICK))
    assert 250 < stored_numbers(smaller) <= 300
    assert smaller(torch.randn(4, 9, 6)).shape == (4, 3)


def test_a_block_of_patches_is_sized_by_them() -> None:
    """Two convolutions see 5 x 5 pixels of a channel each: no more than these are the inputs of the flexible one."""
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3), nn.Flatten(), nn.Linear(4 * 64, 3))
    given = Given(model.eval(), torch.randn(40, 1, 12, 12), 1020, blocks=("0:2",), training=QUICK)
    smaller = METHODS["flexible"](given)
    assert 990 < stored_numbers(smaller) <= 1020
    assert smaller(torch.randn(2, 1, 12, 12)).shape == (2, 3)


def test_training_never_makes_it_worse_and_keeps_the_start() -> None:
    model, x = network(), inputs()
    student = Student((16,), (3,), layers_of(16, 3, Shape(8, None), "relu"))
    before = copy.deepcopy(student.state_dict())
    lesson = Lesson.of(model, x)
    better = train(student, lesson, QUICK)
    torch.testing.assert_close(dict(student.state_dict()), dict(before), rtol=0, atol=0)
    assert judge(better, lesson) < 0.7 * judge(student, lesson)
    exact = train(model, lesson, Training(steps=3, rates=(1.0,)))
    assert exact is model  # nothing is better than the original itself


@pytest.mark.parametrize("best", [1e-6, 3e-4, 1e-3, 2e-2, 1.0])
def test_rates_are_searched_beyond_the_ends(best: float) -> None:
    """Whatever rate is best of all, one within a factor of two of it is tried, or eight rates are."""
    losses: dict[float, float] = {}
    while (rate := next_rate((1e-3, 4e-3), losses)) is not None:
        losses[rate] = abs(math.log(rate / best))
    assert min(losses.values()) <= math.log(2.01)
    assert list(losses)[:2] == [1e-3, 4e-3]
    assert len(losses) <= 8


def test_one_rate_is_not_searched_and_divergence_leads_down() -> None:
    assert next_rate((0.1,), {}) == 0.1
    assert next_rate((0.1,), {0.1: 1.0}) is None
    assert next_rate((0.4, 0.1), {0.4: math.inf, 0.1: math.inf}) == pytest.approx(0.025)


def test_training_beside_the_optimum_goes_on() -> None:
    """A network a little off the original is brought closer, though the rates that are given first are too large."""
    model, x = network(), inputs(300)
    start = copy.deepcopy(model)
    with torch.no_grad():
        for one in start.parameters():
            one.mul_(1 + 2e-3)
    lesson = Lesson.of(model, x)
    better = train(start, lesson, Training(steps=60, rates=(0.1, 0.4)))
    assert judge(better, lesson) < 0.7 * judge(start, lesson)


def test_fine_tuning_is_judged_by_other_inputs() -> None:
    """What the given inputs teach is kept where the other ones say that it is better, and only there."""
    model, x = network(), inputs(200)
    smaller = Student((16,), (3,), layers_of(16, 3, Shape(8, None), "relu"))
    lesson, other = Lesson.of(model, x[:150]), Lesson.of(model, x[150:])
    tuned = finetune(smaller, lesson, other, QUICK)
    assert judge(tuned, other) < 0.8 * judge(smaller, other)
    assert judge(tuned, lesson) < 0.8 * judge(smaller, lesson)
    contrary = Lesson.of(smaller, x[150:])  # whose answers the smaller network gives already
    assert finetune(smaller, lesson, contrary, QUICK) is smaller


def test_a_perfect_student_has_no_loss() -> None:
    model, x = network(), inputs()
    lesson = Lesson.of(model, x, classes=True)
    for training in (Training(), Training(augmented=True), Training(jacobians=2.0), Training(augment=lambda x: x + 1)):
        assert loss_of(model, lesson, training, torch.Generator().manual_seed(0)).item() < 1e-8


def test_the_jacobian_term_is_the_error_along_a_direction() -> None:
    """On average over directions, of the whole Jacobian."""
    student, teacher = nn.Linear(16, 3, bias=False).eval(), nn.Linear(16, 3, bias=False).eval()
    lesson = Lesson.of(teacher, inputs(400))
    generator = torch.Generator().manual_seed(0)
    plain, with_jacobians = (
        sum(loss_of(student, lesson, Training(batch=400, jacobians=weight), generator).item() for _ in range(40)) / 40
        for weight in (1e-9, 1.0)
    )
    expected = (student.weight - teacher.weight).square().sum() / teacher.weight.square().sum()
    assert with_jacobians - plain == pytest.approx(expected.item(), rel=0.15)


def in_units(x: Tensor, scale: float, offset: float, outputs: int = 1) -> nn.Module:
    """The same network with its outputs in other units; those for x have mean 0 and variance 1 in the first ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, outputs))
    model = model.double().eval()
    with torch.no_grad():
        y = model(x)
        share = scale / (y - y.mean(0)).square().mean().sqrt()
        model[4].weight *= share
        model[4].bias.sub_(y.mean(0)).mul_(share).add_(offset)
    return model


@pytest.mark.parametrize("name", ["student", "student-jacobians", "student-augmented", "student-spline", "student-kan"])
def test_students_do_not_depend_on_the_units_of_outputs(name: str) -> None:
    x, training = inputs(200).double(), replace(QUICK, rates=(5e-3, 2e-2))
    errors = []
    for scale, offset in ((1, 0), (1000, 100), (1e-3, -4)):
        model = in_units(x, scale, offset)
        smaller = METHODS[name](Given(model, x[:150], 300, training=training))
        assert 200 < stored_numbers(smaller) <= 300
        errors.append(fidelity(smaller, model, x[150:]).relative_error)
    assert errors[0] < 0.95
    assert errors[1:] == pytest.approx([errors[0]] * 2, rel=1e-3)


def test_students_of_several_outputs_start_in_their_units() -> None:
    """They may be scores, which are brought to usual units: errors are about the same."""
    x, training, errors = inputs(200).double(), replace(QUICK, steps=100), list[float]()
    for scale, offset in ((1, 0), (1000, 1e5), (1e-3, 1)):
        model = in_units(x, scale, offset, outputs=3)
        smaller = METHODS["student"](Given(model, x[:150], 300, training=training))
        errors.append(fidelity(smaller, model, x[150:]).relative_error)
    assert max(errors) < 0.9
    assert max(errors) < 1.3 * min(errors)


def test_students_do_not_depend_on_the_units_of_inputs() -> None:
    """As those of outputs, where all inputs have the same ones."""
    x, errors = torch.randn(200, 16, dtype=torch.float64), []
    for scale in (1, 1e4, 1e-4):
        model, there = in_units(x, 1, 0), scale * x
        with torch.no_grad():
            model[0].weight /= scale
        smaller = METHODS["student"](Given(model, there[:150], 300, training=replace(QUICK, rates=(5e-3, 2e-2))))
        errors.append(fidelity(smaller, model, there[150:]).relative_error)
    assert errors[0] < 0.95
    assert errors[1:] == pytest.approx([errors[0]] * 2, rel=0.1)  # at first they vary by almost 1


@pytest.mark.parametrize("scale", [1, 3, 9])
def test_scores_of_classes_are_taught_as_they_are(scale: float) -> None:
    x = inputs(200).double()
    lesson = Lesson.of(in_units(x, 1.01 * scale, scale, outputs=4), x, classes=True)
    mean, spread = lesson.units
    assert not mean.any()
    assert spread == 1
    assert lesson.scale == 1
    labelled = replace(lesson, labels=lesson.outputs.argmax(1), classes=False)
    assert [one.unique().tolist() for one in labelled.units] == [[0.0], [1.0]]


@pytest.mark.parametrize("units", [1e2, 1e4])
def test_outputs_in_large_units_are_not_taught_as_sharp_scores(units: float) -> None:
    """As fine-tuning of a result has it: they count no more than scores do that spread by ten."""
    x = inputs(200).double()
    lesson = Lesson.of(in_units(x, units, 0, outputs=2), x, classes=True)
    usual = Lesson.of(in_units(x, units / lesson.scale, 0, outputs=2), x, classes=True)
    found = lesson.outputs * 0.8
    assert usual.scale == pytest.approx(1)
    theirs = usual.loss(usual.outputs * 0.8, usual.outputs, None).item()
    assert lesson.loss(found, lesson.outputs, None).item() == pytest.approx(theirs)


@pytest.mark.parametrize("name", ["relu", "maxout", "kan"])
def test_units_are_folded_into_the_last_map(name: str) -> None:
    layers = kan_layers if name == "kan" else layers_of
    student = Student((6,), (2, 2), layers(6, 4, Shape(5, None), name)).double()
    x = 5 * torch.randn(30, 6, dtype=torch.float64)  # beyond the knots of B-splines, too
    inside = InUnits(student, torch.randn(2, 2, dtype=torch.float64), *torch.tensor([30.0, 7.0], dtype=torch.float64))
    expected = predict(inside, x)
    assert folded_(inside) is student
    torch.testing.assert_close(predict(student, x), expected)


def test_fine_tuning_does_not_depend_on_the_units_of_outputs() -> None:
    x, errors, training = torch.randn(200, 16, dtype=torch.float64), [], replace(QUICK, rates=(1e-3, 5e-3))
    for scale, offset in ((1, 0), (1000, 100), (1e-3, 0)):
        model = in_units(x, scale, offset)
        smaller = METHODS["svd"](Given(model, x[:100], 300))
        tuned = finetune(smaller, Lesson.of(model, x[:100]), Lesson.of(model, x[100:150]), training)
        assert stored_numbers(tuned) == stored_numbers(smaller)
        errors.append(fidelity(tuned, model, x[150:]).relative_error)
        assert errors[-1] < 0.95 * fidelity(smaller, model, x[150:]).relative_error
    assert errors[1:] == pytest.approx([errors[0]] * 2, rel=1e-3)


def test_units_of_outputs_are_in_the_last_numbers() -> None:
    model, x = network(), inputs()
    assert proportional(model, x) == ["fc3.weight", "fc3.bias"]
    weight = model.fc3.weight.detach()
    model.fc3 = thin(torch.eye(20), weight, model.fc3.bias.detach(), like=model.fc3)
    assert proportional(model, x) == ["fc3.inner.weight", "fc3.outer.bias"]
    assert proportional(nn.Sequential(model, nn.Softmax(1)).eval(), x) == []
    before = copy.deepcopy(model.state_dict())
    proportional(model, x)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_shares_of_classes_are_not_bought_with_errors() -> None:
    """Other sums of scores are the same shares, and larger errors."""
    model, x = network(), inputs()
    lesson = Lesson.of(model, x, classes=True)
    start, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        start.fc3.bias[0] += 1
        other.fc3.bias += 1
    assert judge(other, lesson) > 0
    assert judge_beside(other, start, lesson) == math.inf
    assert judge_beside(start, other, lesson) == judge(start, lesson)
    assert judge_beside(other, start, replace(lesson, classes=False)) < math.inf


def test_the_chosen_student_is_taught_at_rates_beyond_the_given_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), inputs()
    tried: list[float] = []

    def watch(student: nn.Module, lesson: Lesson, training: Training) -> nn.Module:
        tried.extend(training.rates)
        return train(student, lesson, training)

    monkeypatch.setattr(students, "train", watch)
    distilled(Lesson.of(model, x), Asked(300, "relu"), Training(steps=40, rates=(1e-4, 4e-4)))
    assert set(tried[:4]) == {1e-4, 4e-4}
    assert tried[4:7] == pytest.approx([1.6e-3, 6.4e-3, 2.56e-2])
    assert tried[-1] > 1e-3
    assert len(tried) <= 4 + 6 + 1


def test_queries_are_beside_the_inputs() -> None:
    x = torch.zeros(500, 4)
    x[:, 0] = torch.linspace(-1, 1, 500)
    queries = mixed(x, torch.Generator().manual_seed(0))
    assert queries[:, 1:].abs().max() == 0  # what never varies stays
    assert 0.2 < (queries[:, 0] - x[:, 0]).std() < 1
    assert queries[:, 0].abs().max() < 2.5


def test_bad_training() -> None:
    with pytest.raises(ValueError, match="rates must hold at least one rate"):
        Training(rates=())
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        Training(steps=0)
    with pytest.raises(ValueError, match=r"eval mode"):
        Given(network().train(), inputs(), 100)
