"""Layers and starts of a block's own nodes: recognised, kept, refitted, refined; mended sums and metrics of outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from planted import seeded
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex import Block, BSpline, compress, load
from tenflex.coordinates import Downstream, Fisher, Sensitivity
from tenflex.evaluate.cost import cost
from tenflex.kept import Own, descent
from tenflex.kept.choose import Moments, eliminated, kept_nodes
from tenflex.kept.descent import Frame, Projected, Rows, error_of, influences, refined
from tenflex.kept.recognise import own_nodes
from tenflex.kept.start import kept_factors
from tenflex.nn import Elementwise, FeedForward, layer_from_dict, layer_to_dict
from tenflex.nn.elementwise import FUNCTIONS, recognised
from tenflex.planning.plan import Plan
from tenflex.sampling.metric import metric_root
from tenflex.surgery import find_cut


class SwiGLU(nn.Module):
    """A gated feed-forward part, its gate and what it gates in two layers or in one."""

    def __init__(self, together: bool = False) -> None:
        super().__init__()
        self.together = together
        self.gate = nn.Linear(6, 24 if together else 12, bias=False)
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.together:
            up, gate = self.gate(x).chunk(2, -1)
            return self.down(F.silu(gate) * up)
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Transposed(nn.Module):
    """An affine layer whose weight stands the other way round, as in some transformers."""

    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(m, n) / m**0.5), nn.Parameter(torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Trunk(nn.Module):
    """Heads on one trunk, which stand in the output in another order than that in which they are called."""

    def __init__(self, heads: int = 2, inputs: int = 6) -> None:
        super().__init__()
        self.trunk = nn.Linear(inputs, 12)
        self.heads = nn.ModuleList(nn.Linear(12, 2 + one) for one in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.trunk(x))
        return torch.cat([one(h) for one in self.heads][::-1], -1)


def mlp(*widths: int, function: Callable[[], nn.Module] = nn.GELU) -> nn.Sequential:
    layers = [one for m, n in pairwise(widths) for one in (nn.Linear(m, n), function())]
    return nn.Sequential(*layers[:-1])


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()


def points(count: int, width: int = 6, seed: int = 1) -> Tensor:
    mixed = torch.randn(width, width, generator=seeded(9), dtype=torch.float64)
    return torch.randn(count, width, generator=seeded(seed), dtype=torch.float64) @ mixed + 0.3


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "gelu": (lambda: mlp(6, 12, 3), (12,), "gelu"),
    "relu": (lambda: mlp(6, 12, 3, function=nn.ReLU), (12,), "relu"),
    "tanh approximation": (lambda: mlp(6, 12, 3, function=lambda: nn.GELU("tanh")), (12,), "gelu_tanh"),
    "slope": (lambda: mlp(6, 12, 3, function=lambda: nn.LeakyReLU(0.2)), (12,), "leaky_relu"),
    "alpha": (lambda: mlp(6, 12, 3, function=lambda: nn.ELU(0.7)), (12,), "elu"),
    "two layers": (lambda: mlp(6, 12, 9, 3), (12, 9), "gelu"),
    "gated": (SwiGLU, (12,), "silu"),
    "gated together": (lambda: SwiGLU(together=True), (12,), "silu"),
    "GLU": (lambda: nn.Sequential(nn.Linear(6, 24), nn.GLU(), nn.Linear(12, 3)), (12,), "sigmoid"),
    "transposed": (lambda: nn.Sequential(Transposed(6, 12), nn.SiLU(), Transposed(12, 3)), (12,), "silu"),
    "images": (lambda: nn.Sequential(nn.Flatten(), *mlp(6, 12, 3)), (12,), "gelu"),
    "heads": (lambda: Trunk(3), (12,), "gelu"),
    "many heads": (lambda: Trunk(9), (12,), "gelu"),
    "heads on two layers": (lambda: nn.Sequential(nn.Linear(6, 9), nn.GELU(), Trunk(inputs=9)), (9, 12), "gelu"),
}


@pytest.mark.parametrize(("make", "widths", "name"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_recognised_and_all_their_nodes_make_the_same(
    make: Callable[[], nn.Module], widths: tuple[int, ...], name: str
) -> None:
    block, x = made(make), points(80)
    shaped = x.view(80, 2, 3) if isinstance(block[0] if isinstance(block, nn.Sequential) else None, nn.Flatten) else x
    nodes = own_nodes(block, shaped)
    assert nodes is not None
    assert (nodes.widths, nodes.stages[0].function.name) == (widths, name)
    y = block(shaped).detach()
    torch.testing.assert_close(nodes.outputs(x), y)
    torch.testing.assert_close(kept_nodes(nodes, widths, x, y).outputs(x), y)
    layer = FeedForward.from_nodes(nodes)
    torch.testing.assert_close(layer(x), y)
    empty = layer_from_dict(layer_to_dict(layer)).double()
    empty.load_state_dict(layer.state_dict())
    assert torch.equal(empty(x), layer(x))


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "one linear map": lambda: nn.Linear(6, 3),
    "two linear maps": lambda: nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)),
    "normalised": lambda: nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)),
    "activation last": lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3), nn.ReLU()),
    "softmax": lambda: nn.Sequential(nn.Linear(6, 12), nn.Softmax(-1), nn.Linear(12, 3)),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_blocks_are_not(make: Callable[[], nn.Module]) -> None:
    assert own_nodes(made(make), points(80)) is None


@pytest.mark.parametrize("name", [one for one in FUNCTIONS if one != "identity"])
def test_functions_are_told_apart_by_what_they_do(name: str) -> None:
    t = 3 * torch.randn(60, 4, generator=seeded(0))
    found = recognised(t, FUNCTIONS[name](t))
    assert found is not None
    torch.testing.assert_close(found(t), FUNCTIONS[name](t))
    assert recognised(t, FUNCTIONS[name](t) + 0.01 * t.square()) is None


def test_elimination_is_that_of_the_formula() -> None:
    """Without one node the best map of the others has an error that is higher by what chose it."""
    H, Y = torch.randn(200, 7, generator=seeded(0)).double(), torch.randn(200, 3, generator=seeded(1)).double()
    H[:, 4] = H[:, :3].sum(1) + 0.5 * H[:, 4]
    Y = Y + 0.5 * H[:, 1:4] - H[:, 4:]
    moments = Moments.of(lambda one: one, lambda one: one, H, Y)
    left = eliminated(moments, torch.zeros(7, 3, dtype=torch.float64), 6)

    def error(kept: list[int]) -> float:
        ones = torch.cat([H[:, kept], torch.ones(200, 1, dtype=torch.float64)], 1)
        return float((Y - ones @ torch.linalg.lstsq(ones, Y).solution).square().sum())

    errors = [error([k for k in range(7) if k != gone]) for gone in range(7)]
    gone = int(torch.tensor(errors).argmin())
    assert left.tolist() == [k for k in range(7) if k != gone]


def test_a_metric_of_the_outputs_decides_which_nodes_stay() -> None:
    """Two nodes that make an output each: the one of the output that counts is kept."""
    block = made(lambda: mlp(2, 2, 2))
    with torch.no_grad():
        for linear in (block[0], block[2]):
            linear.weight.copy_(torch.eye(2))
    nodes, x = own_nodes(block, points(60, 2)), points(60, 2)
    for k in range(2):
        metric = torch.diag(torch.tensor([1.0, 100.0])[[k, 1 - k]].double())
        kept = kept_nodes(nodes, (1,), x, block(x).detach(), metric)
        assert kept.stages[0].V[0].argmax() == 1 - k


@pytest.mark.parametrize("make", [lambda: mlp(6, 8, 3), lambda: mlp(6, 8, 5, 3), SwiGLU], ids=["one", "two", "gated"])
def test_gradient_of_the_projected_error_is_that_of_differences(make: Callable[[], nn.Module]) -> None:
    block, x = made(make), points(50)
    y = made(lambda: mlp(6, 9, block(x).shape[1]), seed=3)(x).detach()
    rows = Rows(x, y)
    frame = Frame.of(rows, None)
    problem = replace(Projected.at(frame.rows(rows), frame.narrow(own_nodes(block, x))), held=3.0)
    parameters = [one.detach().add(0.1).requires_grad_() for one in problem.parameters()]
    problem.loss(parameters)
    gradients = [one.grad.clone() for one in parameters]
    ways = [torch.randn(one.shape, generator=seeded(k), dtype=torch.float64) for k, one in enumerate(parameters)]
    step = 1e-5

    def moved(by: float) -> float:
        return problem.loss(
            [(one + by * way).detach().requires_grad_() for one, way in zip(parameters, ways, strict=True)]
        )

    slope = sum(float((one * way).sum()) for one, way in zip(gradients, ways, strict=True))
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_frame_leads_there_and_back() -> None:
    block, x = made(lambda: mlp(6, 8, 5, 3)), points(50)
    nodes, rows = own_nodes(block, x), Rows(x, block(x).detach())
    frame = Frame.of(rows, torch.diag(torch.tensor([1.0, 2.0, 3.0])).double())
    inside = frame.rows(rows)
    torch.testing.assert_close(frame.narrow(nodes).outputs(inside.x), inside.y)
    torch.testing.assert_close(frame.expand(frame.narrow(nodes)).outputs(x), rows.y)
    assert float(inside.y.square().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("make", [lambda: mlp(6, 8, 3), lambda: mlp(6, 8, 5, 3), SwiGLU], ids=["one", "two", "gated"])
def test_influences_are_what_the_outputs_change_with_what_arrives_at_nodes(make: Callable[[], nn.Module]) -> None:
    block, x = made(make), points(400)
    nodes = own_nodes(block, x)
    first = nodes.stages[0]
    for which, found in enumerate(influences(nodes, x)):
        step = 1e-6
        for node in range(first.width):
            shift = first.shift[which].clone()
            shift[node] += step
            moved = replace(first, shift=(*first.shift[:which], shift, *first.shift[which + 1 :]))
            change = (replace(nodes, stages=(moved, *nodes.stages[1:])).outputs(x) - nodes.outputs(x)) / step
            assert float(found[node]) == pytest.approx(float(change.square().sum(1).mean().sqrt()), rel=0.15)


def test_nodes_move_the_less_the_more_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = made(lambda: mlp(6, 12, 3)), points(200)
    y = made(lambda: mlp(6, 9, 3), seed=3)(x).detach()
    start = kept_nodes(own_nodes(block, x), (4,), x, y)
    moved = []
    for held in (0.0, 10.0, 1e3, 1e7):
        monkeypatch.setattr(descent, "HELD", (held,))
        found = refined(start, Rows(x, y), None)
        moved.append(float((found.stages[0].V[0] - start.stages[0].V[0]).norm()))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-3 * moved[0]


@pytest.mark.parametrize("make", [lambda: mlp(6, 12, 3), lambda: mlp(6, 12, 8, 3)], ids=["one", "two"])
def test_own_nodes_do_not_depend_on_the_units_of_inputs(make: Callable[[], nn.Module]) -> None:
    block, x = made(make), points(200)
    units = torch.logspace(-6, 6, 6, dtype=torch.float64)
    other = copy.deepcopy(block)
    with torch.no_grad():
        next(one for one in other.modules() if isinstance(one, nn.Linear)).weight.div_(units)
    ranks = tuple(one // 2 for one in own_nodes(block, x).widths)
    asked = {"": Block(ranks if len(ranks) > 1 else ranks[0], basis=Own())}
    here, there = compress(block, x, asked).model, compress(other, x * units, asked).model
    torch.testing.assert_close(there(x * units), here(x), rtol=1e-4, atol=1e-4)


def test_refinement_finds_planted_nodes() -> None:
    """A block of twelve nodes, which three make as well: a rotation of none of its own."""
    x = points(400)
    planted = made(lambda: mlp(6, 3, 4), seed=2)
    y = planted(x).detach()
    nodes = own_nodes(made(lambda: mlp(6, 12, 4)), x)
    start = kept_nodes(nodes, (3,), x, y)
    frame = Frame.of(Rows(x, y), None)
    before, after = (
        error_of(frame.narrow(one), frame.rows(Rows(x, y)))
        for one in (start, refined(start, Rows(x, y), None, iterations=300))
    )
    assert after < 0.05 * before


def test_the_best_layers_that_were_seen_are_kept() -> None:
    """Where validation samples are other ones altogether, nothing is better than the start."""
    block, x = made(lambda: mlp(6, 12, 3)), points(100)
    nodes, y = own_nodes(block, x), block(x).detach()
    start = kept_nodes(nodes, (4,), x, y)
    far = 5 * points(40, seed=5)
    noise = torch.randn(100, 3, generator=seeded(3), dtype=torch.float64)
    found = refined(start, Rows(x, y + 3 * noise), Rows(far, start.outputs(far)))
    torch.testing.assert_close(found.outputs(far), start.outputs(far))


def test_kept_nodes_are_flexible_layers_to_start_from() -> None:
    block, x = made(lambda: mlp(6, 12, 3)), points(300)
    y = block(x).detach()
    factors = kept_factors(own_nodes(block, x), (12,), BSpline(30), x, y)
    assert float((factors.outputs(x) - y).norm() / (y - y.mean(0)).norm()) < 0.02
    with pytest.raises(ValueError, match="two directions each"):
        kept_factors(own_nodes(made(SwiGLU), x), (12,), BSpline(10), x, x)


class Residual(nn.Module):
    """A residual block, its sum written in one of several ways."""

    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        self.way = way
        self.norm, self.mlp = nn.LayerNorm(6), mlp(6, 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.mlp(self.norm(x)), 0.1, self.training)
        if self.way == "in place":
            x = x.clone()
            x += y
            return x
        return y + x if self.way == "turned" else x + y


class Network(nn.Module):
    """Residual blocks on the positions of a sequence, and a classifier."""

    def __init__(self, *ways: str) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*map(Residual, ways or ("plain",) * 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(2 * x).mean(1))


def sequences(count: int = 100) -> Tensor:
    return points(5 * count).view(count, 5, 6)


def test_all_own_nodes_leave_the_network_as_it_is(tmp_path: Path) -> None:
    model, x = made(Network), sequences()
    result = compress(model, x, {"blocks.*.mlp": Block(16, basis=Own())})
    torch.testing.assert_close(result.model(x), model(x))
    assert result.report.after.parameters == cost(model, x).parameters
    assert result.solutions == {}
    assert max(one.output_error + one.jacobian_error for one in result.report.blocks) < 1e-6
    result.save(tmp_path)
    again = load(tmp_path, made(Network, seed=4))
    assert torch.equal(again(x), result.model(x))
    assert Plan.from_dict(result.plan.to_dict()) == result.plan


def test_a_layer_of_own_nodes_has_the_size_and_the_operations_of_its_nodes() -> None:
    model, x = made(Network), sequences()
    result = compress(model, x, {"blocks.1.mlp": Block(4, basis=Own())}, samples=300)
    block = result.report.blocks[0]
    assert block.after.parameters == 4 * 6 + 4 + 4 * 6 + 6
    assert block.after.macs * 16 == block.before.macs * 4
    assert block.after.activation_operations * 4 == block.before.activation_operations
    assert 0 < block.output_error < 1


@pytest.mark.parametrize("way", ["plain", "turned", "in place"])
def test_later_blocks_mend_what_earlier_ones_lost(way: str) -> None:
    """The blocks' own errors are those of the sums, which are less when mended."""
    model, x, fresh = made(lambda: Network(*[way] * 3)), sequences(200), points(1000, seed=8).view(200, 5, 6)
    blocks = {"blocks.*.mlp": Block(5, basis=Own())}

    def lost(mend: bool) -> float:
        found = compress(model, x, blocks, mend=mend).model
        with torch.no_grad():
            sums = [one.blocks(2 * fresh) for one in (model, found)]
        return float((sums[1] - sums[0]).norm() / sums[0].norm())

    assert lost(True) < 0.97 * lost(False)


def test_mending_asks_for_the_sum_of_the_original() -> None:
    """What the target of the second block lacks is what the first one lost, exactly."""
    from tenflex.compress import arriving_now
    from tenflex.sampling.capture import capture
    from tenflex.sampling.skips import Skips

    model, smaller, x = made(Network), made(Network), sequences(30)
    with torch.no_grad():
        smaller.blocks[0].mlp[2].weight.mul_(0.5)
    cut = find_cut(model, "blocks.1.mlp", x)
    with Skips(model, [cut]) as around:
        leaving = capture(model, [cut], [x])[cut.name][1]
    arriving, wanted = arriving_now(smaller, cut, [x], leaving, around)
    torch.testing.assert_close(smaller.blocks[0](2 * x) + wanted, model.blocks[1](model.blocks[0](2 * x)))
    torch.testing.assert_close(arriving, smaller.blocks[1].norm(smaller.blocks[0](2 * x)))
    assert not any(one._forward_hooks for one in model.modules())


def test_without_a_sum_there_is_nothing_to_mend() -> None:
    model, x = made(lambda: nn.Sequential(mlp(6, 16, 6), nn.Tanh(), mlp(6, 16, 6), nn.Tanh())), points(200)
    blocks = {name: Block(8, basis=Own()) for name in "02"}
    found = [compress(model, x, blocks, mend=mend).model(x) for mend in (True, False)]
    assert torch.equal(*found)


def test_fisher_metric_of_the_logits_is_that_of_the_softened_answers() -> None:
    model, x = made(lambda: mlp(6, 16, 3)), points(256)
    root = metric_root(model, find_cut(model, "", x), [x], Fisher(1e-9, temperature=2.0), lambda y: y)
    p = (model(x) / 2).softmax(1).detach()
    M = torch.diag(p.mean(0)) - p.mT @ p / len(p)
    M = M / M.diagonal().mean()
    assert float((root @ root - M).norm() / M.norm()) < 0.1  # eight draws an example


def test_downstream_metric_is_that_of_the_jacobian_of_what_follows() -> None:
    model, x = made(Network), sequences(256)
    root = metric_root(model, find_cut(model, "blocks.2.mlp", x), [x], Downstream(1e-9), lambda y: y.flatten(0, -2))
    M = model.head.weight.mT @ model.head.weight
    M = (M / M.diagonal().mean()).detach()
    assert float((root @ root - M).norm() / M.norm()) < 0.1


@pytest.mark.parametrize("basis", [None, Own()], ids=["flexible", "own"])
def test_outputs_that_nothing_uses_count_nearly_nothing(basis: Own | None) -> None:
    """The head reads two of six outputs: their error falls when the others are given up."""
    model, x = made(Network), sequences(60)
    with torch.no_grad():
        model.head.weight[:, 2:] = 0.0
    blocks = {"blocks.2.mlp": Block(3, basis=basis)}

    def lost(metric: Downstream | None) -> float:
        found = compress(model, x, blocks, metric=metric, samples=200, lost_energy=0.0).model
        with torch.no_grad():
            return float((found(x) - model(x)).norm() / (model(x) - model(x).mean(0)).norm())

    assert lost(Downstream()) < 0.9 * lost(None)


def test_the_start_with_the_least_validation_error_is_taken() -> None:
    """Coupling and shrinkage are given: trials of them, which come after, may turn the order round."""
    model, x, given = made(lambda: mlp(6, 16, 4)), points(60), {"coupling": 3.0, "coordinates": Sensitivity(1.0)}
    errors = {
        start: compress(model, x, {"": Block(3, basis=BSpline(5), start=start)}, **given).solutions[""].validation_error
        for start in ("cpd", "kept", None)
    }
    assert errors[None] == min(errors["cpd"], errors["kept"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(4, basis=Own(), factor=2), "full maps, got factor"),
        (lambda: Block(4, basis=Own(), start="cpd"), "start from them"),
        (lambda: Block(4, start="own"), "start must be 'cpd' or 'kept'"),
        (lambda: Fisher(temperature=0), "temperature must be a finite number above 0"),
        (lambda: Downstream(0.0), "ridge must be a finite number above 0"),
        (lambda: Elementwise("rely"), "no activation function is called 'rely'.*relu"),
        (lambda: Elementwise("elu"), "the setting of elu must be a finite number"),
        (lambda: Elementwise("relu", 2.0), "relu has no setting"),
        (lambda: FeedForward((3,), (3,), (4, 4), (Elementwise("relu"),)), "one function and one gated"),
        (lambda: layer_from_dict({"kind": "FeedForward", "nodes": [3]}), "a feed-forward layer has the settings"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_blocks_of_another_form_are_refused_before_any_work() -> None:
    model, x = made(Network), sequences(20)
    with pytest.raises(ValueError, match=r"block 'blocks.1': basis=Own\(\) needs a block of linear maps"):
        compress(model, x, {"blocks.1": Block(4, basis=Own())})
    with pytest.raises(ValueError, match="rank must be at most the block's own nodes, 16, got 17"):
        compress(model, x, {"blocks.1.mlp": Block(17, basis=Own())})
    with pytest.raises(TypeError, match=r"metric must be Fisher\(\) or Downstream\(\)"):
        compress(model, x, {"blocks.1.mlp": Block(4)}, metric="fisher")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nodes_of_half_precision_are_found_in_single(dtype: torch.dtype) -> None:
    block = made(lambda: mlp(6, 12, 3)).to(dtype)
    kept = compress(block, points(200).to(dtype), {"": Block(12, basis=Own())})
    assert {one.dtype for one in kept.model.parameters()} == {dtype}
    x = points(50, seed=3).to(dtype)
    torch.testing.assert_close(kept.model(x), block(x), rtol=0.05, atol=0.05)
