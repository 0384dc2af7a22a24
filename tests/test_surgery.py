"""Blocks are found, cut out and put back: the network must then give the same bits as before."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex.surgery import Cut, call, find_blocks, find_cut, require_disjoint
from tenflex.surgery.batch import arguments, each

pytestmark = [pytest.mark.usefixtures("few_steps"), pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")]


class MLP(nn.Module):
    """Functions between all layers, and a number of samples that is read at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 9), nn.Linear(9, 7), nn.Linear(7, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)).view(count, -1))


class Nested(nn.Module):
    """LeNet-5 in two containers, with in-place activations, a buffer that is not saved and an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.drop = nn.Dropout()
        self.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.Linear(6, 3))
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.note = "kept"

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.features(x), inplace=True), 2)
        return self.classifier(self.drop(x).view(x.size(0), -1)) * self.scale


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2, self.fc3 = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        h = F.relu(self.fc1(F.relu(stem)))
        return self.fc3(h + F.relu(self.fc2(h))) + stem


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Attention(nn.Module):
    """Control flow on shapes, stored tensors, and sizes of an outer tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.place = nn.Parameter(torch.randn(1, 9, 6))
        self.inner = nn.Parameter(torch.randn(8))
        self.register_buffer("mask", torch.ones(9, 9).tril(), persistent=False)

    def forward(self, x: Tensor, scale: float | None = None, *, flag: bool = True) -> Tensor:
        if x.dim() == 2:
            x = x[:, None]
        samples, length, width = x.shape
        assert length <= self.place.shape[1]
        assert width == 6
        h = x + self.place[:, :length]
        if scale is not None:
            h = h * scale
        h = self.query(h).view(*x.shape[:2], 8) + self.inner
        h = self.mask[:length, :length] @ torch.tanh(h)
        return self.out(h.reshape(samples, length, -1) if flag else h) + torch.tensor([1.0, 2, 3, 4, 5, 6])


class Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
        return {"out": self.attention(x, scale=2.0, flag=False) + shift}


class Further(nn.Module):
    """Arguments without a name in the signature, and a needed one for keywords alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, power: float = 1.0, *, sign: bool, **further: Any) -> Tensor:
        h = F.relu(self.fc1(x * further["scale"])) ** power
        return self.fc2(-h if sign else h) + (further["shift"] if further["mode"] == "shift" else 0)


class FurtherCaller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Further()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, sign=True, scale=x.mean(1, keepdim=True), shift=2.0, mode="shift", unused=None)


class Bare(nn.Module):
    """A function that works in place and whose result nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        F.relu_(h)
        return self.fc2(h)


class SharedActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.act(self.b(self.act(self.a(x)))))


class Alias(nn.Module):
    """An activation with two names, called by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)
        self.same = nn.ModuleList([self.act])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.same[0](self.fc1(x)))


class Encoder(nn.Module):
    """PyTorch's own encoder, whose fused kernels pass by submodules in eval mode."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **settings)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(6), Feed()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2
        return torch.tanh(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Half(), Half()
        self.left.fc3 = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.left(x)
        return self.right(h if h.shape[1] == 6 else -h) * (3 if h.shape[1] != 6 else 1)


class Row(nn.Module):
    """Six layers in one parent, with functions between."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.fc:
            x = F.relu(layer(x))
        return x


class Shorter(Row):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc[3](F.relu(self.fc[2](x)))


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 7), nn.Dropout(), nn.Linear(7, 4))


class Case(NamedTuple):
    """A network, a block of it, the shape of its input, whether a graph is needed, and whose parameters disappear."""

    make: Callable[[], nn.Module]
    block: str
    shape: tuple[int, ...]
    graph: bool
    gone: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.make.__name__}[{self.block}]"

    def inputs(self, samples: int = 4) -> Any:
        x = torch.randn(samples, *self.shape)
        return {"x": x, "shift": torch.randn(samples, 1, 6)} if self.make is Caller else x


CASES = [
    Case(sequential, "0:2", (6,), False, ("0", "2")),
    Case(sequential, "2:4", (6,), False, ("2", "4")),
    Case(sequential, "0:4", (6,), False, ("0", "2", "4")),
    Case(sequential, "4", (6,), False, ("4",)),
    Case(sequential, "", (6,), False, ("0", "2", "4")),
    Case(MLP, "fc1:fc3", (3, 4), True, ("fc1", "fc2", "fc3")),
    Case(MLP, "fc2:fc3", (3, 4), True, ("fc2", "fc3")),
    Case(MLP, "fc2", (3, 4), False, ("fc2",)),
    Case(Nested, "features.0:classifier.2", (1, 8, 8), True, ("features", "classifier.0", "classifier.2")),
    Case(Nested, "classifier.0:classifier.3", (1, 8, 8), False, ("classifier",)),
    Case(Nested, "drop:classifier.0", (1, 8, 8), True, ("classifier.0",)),
    Case(Nested, "features:classifier", (1, 8, 8), True, ("features", "classifier")),
    Case(Nested, "features.0:features.3", (1, 8, 8), False, ("features",)),
    Case(Nested, "features.1:classifier.0", (1, 8, 8), True, ("features.2", "features.3", "classifier.0")),
    Case(Residual, "fc1:fc3", (6,), True, ("fc1", "fc2", "fc3")),
    Case(Residual, "fc2:fc3", (6,), True, ("fc2", "fc3")),
    Case(Gated, "gate:down", (6,), True, ("gate", "up", "down")),
    Case(Attention, "query:out", (5, 6), True, ("query", "out", "inner")),
    Case(Caller, "attention.query:attention.out", (5, 6), True,
         ("attention.query", "attention.out", "attention.inner")),
    Case(FurtherCaller, "inner.fc1:inner.fc2", (6,), True, ("inner.fc1", "inner.fc2")),
    Case(Bare, "fc1:fc2", (6,), True, ("fc1", "fc2")),
    Case(SharedActivation, "a:c", (6,), False, ("a", "b", "c")),
    Case(SharedActivation, "a:b", (6,), True, ("a", "b")),
    Case(Alias, "fc1:fc2", (6,), True, ("fc1", "fc2")),
    Case(Encoder, "encoder.layers.1.linear1:encoder.layers.1.linear2", (5, 16), True,
         ("encoder.layers.1.linear1", "encoder.layers.1.linear2")),
    Case(Encoder, "encoder.layers.0.linear2", (5, 16), False, ("encoder.layers.0.linear2",)),
    Case(Stack, "layers.1.mlp", (5, 6), False, ("layers.1.mlp",)),
    Case(Stack, "layers.0.mlp.fc1:layers.0.mlp.fc2", (5, 6), True, ("layers.0.mlp",)),
]  # fmt: skip


def run(model: nn.Module, inputs: Any, *, fused: bool = False) -> Any:
    """The output; without fused kernels, which round differently, so that bits can be compared."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fused)
    with torch.no_grad():
        output = call(model, each(inputs, torch.clone))
    torch.backends.mha.set_fastpath_enabled(enabled)
    return output


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return torch.equal(one, other)


def replaced(model: nn.Module, cut: Cut, layer: nn.Module | None = None) -> nn.Module:
    """A copy of the model with a block replaced, by itself if there is no layer."""
    twin = copy.deepcopy(model)
    return cut.replace_(twin, cut.function(twin) if layer is None else layer)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_block_put_back_gives_the_same_bits(case: Case) -> None:
    model = case.make().eval()
    cut = find_cut(model, case.block, case.inputs())
    assert (cut.parent is not None) == case.graph
    again = replaced(model, cut)
    for samples in (4, 1, 7):
        inputs = case.inputs(samples)
        assert same_bits(run(again, inputs), run(model, inputs))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_replaced_network_is_copied_pickled_and_in_eval_mode(case: Case) -> None:
    model = case.make().eval()
    inputs = case.inputs()
    again = replaced(model, find_cut(model, case.block, inputs))
    assert not any(module.training for module in again.modules())
    for twin in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert same_bits(run(twin, inputs), run(model, inputs))
    twin = copy.deepcopy(again)
    assert list(twin.state_dict()) == list(again.state_dict())
    assert repr(twin) == repr(again)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_only_the_block_disappears(case: Case) -> None:
    model = case.make().eval()
    cut = find_cut(model, case.block, case.inputs())
    layer = nn.Bilinear(2, 3, 4)
    left = {name for name in model.state_dict() if not is_gone(name, case)}
    added = {f"{cut.first}.{name}".lstrip(".") for name in layer.state_dict()}
    assert set(replaced(model, cut, layer).state_dict()) == left | added
    own = {id(one) for name, one in model.named_parameters() if is_gone(name, case)}
    assert {id(one) for one in cut.function(model).parameters()} == own


def is_gone(name: str, case: Case) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in case.gone)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_cut_is_a_plain_value_that_needs_no_example(case: Case) -> None:
    model = case.make().eval()
    cut = find_cut(model, case.block, case.inputs())
    again = Cut.from_dict(json.loads(json.dumps(cut.to_dict())))
    assert again == cut
    assert hash(again) == hash(cut)
    other = case.make().eval()  # another process has other parameters
    inputs = case.inputs(3)
    assert same_bits(run(again.replace_(copy.deepcopy(other), again.function(other)), inputs), run(other, inputs))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_nothing_of_the_network_changes(case: Case, unchanged_rng: Callable[[], Any]) -> None:
    model, inputs = case.make().eval(), case.inputs()
    next(model.parameters()).requires_grad_(False)
    before = fingerprint(model)
    state, given = copy.deepcopy(model.state_dict()), each(inputs, torch.clone)
    with unchanged_rng():
        cut = find_cut(model, case.block, inputs)
        cut.function(model)
    assert fingerprint(model) == before
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert all(map(torch.equal, arguments(inputs)[0], arguments(given)[0]))


def test_buffers_that_a_forward_pass_changes_are_put_back() -> None:
    model, x = Counting().eval(), torch.randn(4, 6)
    find_cut(model, "fc1:fc2", x)
    assert model.calls.item() == 0
    run(model, x)
    assert model.calls.item() == 1


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc2(self.fc1(x))


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything of a network but the values of its tensors."""
    found: list[Any] = []
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        tensors = [(one, id(tensor), tensor.requires_grad) for one, tensor in module.named_parameters(recurse=False)]
        found.append((name, id(module), module.training, hooks, sorted(vars(module)), tensors))
    return found


def test_hooks_are_removed_after_an_error() -> None:
    model = MLP().eval()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"MLP fails on the input float32 \(4, 99\): RuntimeError: mat1 and mat2"):
        find_cut(model, "fc1:fc3", torch.randn(4, 99))
    assert fingerprint(model) == before


def test_several_spans_of_one_parent_in_any_order() -> None:
    model, x = Row().eval(), torch.randn(5, 6)
    names = find_blocks(model, ["fc.4:fc.5", "fc.0:fc.1", "fc.2:fc.3"])
    assert list(names) == ["fc.0:fc.1", "fc.2:fc.3", "fc.4:fc.5"]
    cuts = [find_cut(model, name, x) for name in names]
    require_disjoint(cuts)
    for order in (cuts, cuts[::-1]):
        again = copy.deepcopy(model)
        for cut in order:
            again = cut.replace_(again, cut.function(model))
        assert torch.equal(run(again, x), run(model, x))
        found = find_cut(again, "fc.0:fc.3", x)  # a network with layers in it can be cut again
        assert torch.equal(run(replaced(again, found), x), run(model, x))
        with pytest.raises(ValueError, match=r"'fc.2' is in the block 'fc.2:fc.3', which was replaced: name modules"):
            find_cut(again, "fc.0:fc.2", x)


def test_blocks_in_neighbouring_modules() -> None:
    model, x = Stack().eval(), torch.randn(2, 5, 6)
    inner = find_cut(model, "layers.1.mlp.fc1:layers.1.mlp.fc2", x)
    outer = find_cut(model, "layers.0.mlp.fc1:layers.0.mlp.fc2", x)
    again = replaced(replaced(model, inner), outer)
    assert torch.equal(run(again, x), run(model, x))


def test_blocks_inside_of_a_module_and_across_its_border_in_any_order() -> None:
    model, x = Halves().eval(), torch.randn(4, 6)
    across, within = find_cut(model, "left.fc2:right.fc1", x), find_cut(model, "right.fc2:right.fc3", x)
    for one, other in ((across, within), (within, across)):
        again = one.replace_(copy.deepcopy(model), one.function(model))
        again = other.replace_(again, other.function(model))
        assert torch.equal(run(again, x), run(model, x))


def test_function_is_taken_from_a_network_like_the_one_that_was_cut() -> None:
    model, x = Row().eval(), torch.randn(5, 6)
    first, second = find_cut(model, "fc.0:fc.1", x), find_cut(model, "fc.2:fc.3", x)
    expected = second.function(model)(x)
    assert torch.equal(second.function(replaced(model, first))(x), expected)
    with pytest.raises(ValueError, match="take the function from the original network"):
        second.function(Shorter().eval())


def test_arguments_that_were_constants_are_still_arguments() -> None:
    model = Caller().eval()
    x = torch.randn(2, 5, 6)
    cut = find_cut(model, "attention.query:attention.out", {"x": x, "shift": torch.zeros(2, 1, 6)})
    attention = replaced(model, cut).attention
    for scale in (2.0, 0.5, None):
        assert torch.equal(attention(x, scale, flag=False), model.attention(x, scale, flag=False))
    with pytest.raises(ValueError, match=r"expected 'attention.out' in the block .* got 'reshape'"):
        attention(x, flag=True)


def test_attributes_stay_with_the_owner() -> None:
    model, x = Nested().eval(), torch.randn(2, 1, 8, 8)
    again = copy.deepcopy(replaced(model, find_cut(model, "features.0:classifier.2", x)))
    assert again.note == "kept"
    assert "scale" not in again.state_dict()
    assert torch.equal(again.scale, model.scale)


def test_function_leaves_its_input_alone_and_can_be_differentiated() -> None:
    model = sequential().eval()
    function = find_cut(model, "1:4", torch.randn(3, 6)).function(model)
    x = torch.randn(3, 8)
    given = x.clone()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: function(one[None])[0]))(x)
    assert torch.equal(x, given)
    expected = (model[4].weight @ model[2].weight) * (x > 0)[:, None]
    torch.testing.assert_close(jacobian, expected)


@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"activation": "gelu"}], ids=str)
def test_encoder_layers_of_pytorch(settings: dict[str, Any]) -> None:
    model, x = Encoder(**settings).eval(), torch.randn(3, 5, 16)
    expected = run(model, x, fused=True)
    blocks = find_blocks(model, ["encoder.layers.*.linear1:encoder.layers.*.linear2"])
    assert len(blocks) == 3
    again = copy.deepcopy(model)
    for block in blocks:
        cut = find_cut(model, block, x)
        again = cut.replace_(again, cut.function(model))
    torch.testing.assert_close(run(again, x, fused=True), expected)
    assert torch.backends.mha.get_fastpath_enabled()


def test_fused_kernels_do_not_pass_by_a_replaced_module() -> None:
    model, x = Encoder().eval(), torch.randn(3, 5, 16)
    for block in ("encoder.layers.0.linear2", "encoder.layers.0.linear1:encoder.layers.0.linear2"):
        cut = find_cut(model, block, x)
        again = replaced(model, cut, Constant(24 if cut.parent is None else 16, 16))
        expected = run(replaced(model, cut, nn.Sequential(Constant(24, 16))), x, fused=False)
        torch.testing.assert_close(run(again, x, fused=True), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_with_padding() -> None:
    model, x = Encoder().eval(), torch.randn(3, 5, 16)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    for block in ("encoder.layers.0.linear2", "encoder.layers.0.linear1:encoder.layers.0.linear2"):
        again = replaced(model, find_cut(model, block, {"x": x, "padding": padding}))
        torch.testing.assert_close(run(again, (x, padding), fused=True), run(model, (x, padding), fused=True))


class Constant(nn.Linear):
    """What a kernel that reads its weights would take for another layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(*x.shape[:-1], self.out_features)


# What is refused


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.fc1(x)
        return self.fc2(h), h


class Later(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = self.fc1(x)
        return self.fc2(h) + h.mean()


class Size(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = self.fc1(x)
        return self.fc2(h) / h.shape[1]


class Outside(nn.Module):
    """A module that uses a tensor which it was not called with."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), Hidden()

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        self.fc2.context = torch.tanh(x)
        return self.fc2(h)


class Hidden(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.context


class Enters(Residual):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        return self.fc3(torch.tanh(skip) + self.fc2(F.relu(self.fc1(F.relu(skip)))))


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.block(h) + h


class Parallel(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc1(x) + self.fc2(x)


class Twice(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc1(F.relu(self.fc1(x)))


class Tied(Second):
    def __init__(self) -> None:
        super().__init__()
        self.fc2.weight = self.fc1.weight

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc2(F.relu(self.fc1(x)))


class Reused(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(F.relu(self.fc2(x)))))))


class ReadTwice(Second):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc2(self.fc1(x) * self.weight) * self.weight


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.named, self.table = nn.Bilinear(6, 6, 6), nn.Linear(6, 6), nn.Embedding(9, 6)
        self.recurrent, self.attention = nn.LSTM(6, 6), nn.MultiheadAttention(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(x, x) + self.named(input=x) + self.table(torch.arange(len(x)))
        return self.attention(x, x, x)[0] + self.recurrent(x)[0]


class Positional(Second):
    def forward(self, *all: Tensor) -> Tensor:  # type: ignore[override]
        return self.fc2(F.relu(self.fc1(all[0])))


class Settings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Configured()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, object())


class Configured(Second):
    def forward(self, x: Tensor, settings: object) -> Tensor:  # type: ignore[override]
        return self.fc2(F.relu(self.fc1(x)))


class OnSamples(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = F.relu(self.fc1(x))
        return self.fc2(h * 2 if x.shape[0] > 2 else h)


class OnData(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = F.relu(self.fc1(x))
        return self.fc2(h * 2 if h.sum() > 0 else h)


class Mixing(Second):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = self.fc1(x)
        return self.fc2(h - h.mean(0))


REFUSED = [
    (Residual, "fc1:fc2", r"other tensors cross its border: the result of 'relu' is used outside by 'add'\. Widen"),
    (Residual, "stem:fc3", r"the output of 'stem' is used outside by 'add'"),
    (Enters, "fc1:fc3", r"the result of 'tanh' is used inside by 'add'"),
    (Second, "fc1:fc2", r"the output of 'fc1' is returned by the network"),
    (Later, "fc1:fc2", r"the output of 'fc1' is used outside by 'mean'"),
    (Size, "fc1:fc2", r"the output of 'fc1' is used outside by 'shape'"),
    (Outside, "fc2", r"the result of 'tanh' is used inside by 'add' in 'fc2'"),
    (Overwritten, "block", r"perhaps it changes its input in place, and that is used again"),
    (Residual, "fc3:fc1", r"'fc1' runs before 'fc3': write 'fc1:fc3'"),
    (Parallel, "fc1:fc2", r"nothing that leaves 'fc1' arrives at 'fc2'"),
    (Twice, "fc2", r"'fc2' \(Linear\) is never called in the forward pass"),
    (Stack, "layers", r"'layers' \(ModuleList\) is never called .* it only holds others"),
    (Several, "attention.out_proj", r"never called .* its parent reads its parameters instead"),
    (Tied, "fc1", r"'fc1.weight' of 'fc1' is also 'fc2.weight', so that nothing would be saved: give one of them a"),
    (Reused, "fc1:fc3", r"'fc2' of 'fc1:fc3' is also used outside the block, so that nothing would be saved"),
    (ReadTwice, "fc1:fc2", r"'weight' of 'fc1:fc2' is also used outside the block"),
    (Several, "pair", r"'pair' is called with \(float32 \(4, 6\), float32 \(4, 6\)\)"),
    (Several, "named", r"'named' is called with \(input=float32 \(4, 6\)\)"),
    (Several, "table", r"what arrives at 'table' is int64 \(4,\): begin after the embedding"),
    (Several, "recurrent", r"'recurrent' returns a tuple of"),
    (SharedActivation, "act", r"'act' has none and there is nothing to compress"),
    (SharedActivation, "a:act", r"'act' was called 2 times: name a module around all the calls"),
    (sequential, "1", r"'1' has none and there is nothing to compress"),
    (Positional, "fc1:fc2", r"cannot be traced: it is called with further arguments \*all, which have no names"),
    (Settings, "inner.fc1:inner.fc2", r"cannot be traced: its argument settings=object is no tensor, number or string"),
    (OnSamples, "fc1:fc2", r"\(OnSamples\), cannot be traced: its control flow depends .*x\.shape\[0\] > 2"),
    (OnData, "fc1:fc2", r"cannot be traced: its control flow depends on data .*h\.sum\(\) > 0.*replace single"),
    (Mixing, "fc1:fc2", r"does not map the first sample alone to the same: choose a block that keeps samples apart"),
    (MLP, "fc1:fc9", r"expected the name of a module of MLP, got 'fc9'; did you mean 'fc"),
    (Nested, "features:features.0", r"'features.0' lies inside 'features'"),
]


@pytest.mark.parametrize(("make", "block", "message"), REFUSED, ids=lambda one: getattr(one, "__name__", str(one)[:24]))
def test_refused(make: Callable[[], nn.Module], block: str, message: str) -> None:
    model = make().eval()
    shape = {MLP: (4, 12), Stack: (4, 5, 6), Nested: (4, 1, 8, 8)}.get(make, (4, 6))
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        find_cut(model, block, torch.randn(shape))
    assert [entry[:4] for entry in fingerprint(model)] == [entry[:4] for entry in before]


def test_wrapped_networks_are_refused() -> None:
    model, x = sequential().eval(), torch.randn(2, 6)
    with pytest.raises(ValueError, match=r"pass model\.module"):
        find_cut(nn.DataParallel(model), "module.0", x)
    with pytest.raises(ValueError, match=r"pass model\._orig_mod"):
        find_cut(nn.ModuleDict({"_orig_mod": model}), "_orig_mod.0", x)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got function"):
        find_cut(F.relu, "0", x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'weight' has no shape yet"):
        find_cut(nn.LazyLinear(3), "", x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_modules_are_refused_but_may_lie_inside() -> None:
    script = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    x = torch.randn(2, 6)
    with pytest.raises(ValueError, match="got a ScriptModule"):
        find_cut(script, "0", x)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(script), nn.Linear(6, 6)).eval()
    assert torch.equal(run(replaced(model, find_cut(model, "0:2", x)), x), run(model, x))
    with pytest.raises(ValueError, match="perhaps it is a ScriptModule"):
        find_cut(model, "1.0", x)


@pytest.mark.parametrize("example", [3, "images", [], {"x": 3}, {1: torch.ones(2)}, (torch.ones(2), None)], ids=str)
def test_examples_that_are_no_tensors(example: Any) -> None:
    with pytest.raises(TypeError, match="expected a batch of network input"):
        find_cut(sequential(), "0", example)


def test_layers_that_are_no_modules() -> None:
    model = sequential().eval()
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module to put in the place of '0:2', got function"):
        find_cut(model, "0:2", torch.randn(2, 6)).replace_(model, F.relu)  # type: ignore[arg-type]


def test_another_architecture_is_refused_before_anything_changes() -> None:
    cut = find_cut(sequential().eval(), "0:4", torch.randn(2, 6))
    other = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    before = list(other)
    with pytest.raises(ValueError, match=r"expected the name of a module of Sequential, got '3'"):
        cut.replace_(other, nn.Linear(6, 4))
    assert list(other) == before


FACTS: dict[str, Any] = {"tensors": ["x"], "constants": {}, "answers": {}, "sizes": {}, "digest": ""}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fc2"}, r"expected the name 'fc1' or 'fc1:fc3', got 'fc2'"),
        ({"first": 3}, "expected first to be a string, got 3: was the file changed"),
        ({"passed": "fc2"}, "expected passed to be a list of module names"),
        ({"parent": None}, "expected both parent and facts"),
        ({"parent": "fc1"}, r"expected a parent that holds 'fc1' and 'fc3', got 'fc1'"),
        ({"parent": None, "facts": None, "passed": ["fc2"]}, "expected a chain that ends with 'fc3'"),
        ({"read": "gain"}, "expected read to be a list of strings or None"),
        ({"functions": [3]}, "expected functions to be a list of strings or None"),
        ({"facts": 3}, "expected facts with the entries"),
        ({"more": 3}, "expected a cut with the entries"),
        ({"facts": FACTS | {"sizes": {"x": [-1]}}}, "expected facts.sizes to be a mapping from names to values"),
        ({"facts": FACTS | {"constants": {"scale": []}}}, "expected facts.constants to be a mapping"),
        ({"facts": FACTS | {"answers": {"": "yes"}}}, "expected facts.answers to be a mapping"),
        ({"facts": FACTS | {"tensors": 3}}, "expected facts.tensors to be a list of names"),
        ({"facts": FACTS | {"digest": None}}, "expected facts.digest to be a string"),
    ],
)
def test_changed_files_are_refused(change: dict[str, Any], message: str) -> None:
    values = find_cut(MLP().eval(), "fc1:fc3", torch.randn(2, 12)).to_dict()
    with pytest.raises(ValueError, match=message):
        Cut.from_dict({**values, **change})


def test_overlapping_cuts() -> None:
    model, x = Row().eval(), torch.randn(2, 6)
    cuts = [find_cut(model, name, x) for name in ("fc.0:fc.3", "fc.1:fc.2", "fc.4:fc.5")]
    require_disjoint(cuts[::2])
    with pytest.raises(ValueError, match=r"got 'fc.0:fc.3' and 'fc.1:fc.2', which share 'fc.1'"):
        require_disjoint(cuts)


# Names and patterns


def test_blocks_come_in_the_order_of_the_network() -> None:
    model = Stack()
    assert find_blocks(model, ["layers.*.mlp"]) == {f"layers.{one}.mlp": "layers.*.mlp" for one in range(3)}
    assert list(find_blocks(model, ["layers.2.mlp", "layers.0.mlp"])) == ["layers.0.mlp", "layers.2.mlp"]
    assert list(find_blocks(model, ["layers.[!1].mlp"])) == ["layers.0.mlp", "layers.2.mlp"]
    spans = find_blocks(model, ["layers.?.norm:layers.?.mlp"])
    assert list(spans) == [f"layers.{one}.norm:layers.{one}.mlp" for one in range(3)]
    assert find_blocks(model, [""]) == {"": ""}


def test_wildcards_are_those_of_fnmatch():
    names = ("a", "^", "b", "[", "\\")
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
    for pattern in ("[^a]", "[!a]", "[[]", "[a-b]", "[\\]", "?"):
        assert set(find_blocks(model, [pattern])) == {name for name in names if fnmatchcase(name, pattern)}, pattern
    with pytest.raises(ValueError, match=r"expected wildcards as in .*, got 'fc\[3-1\]': bad character range"):
        find_blocks(model, ["fc[3-1]"])


def test_blocks_are_found_in_linear_time():
    calls = 0

    class Counted(nn.Sequential):
        def named_modules(self, *args, **kwargs):
            nonlocal calls
            calls += 1
            return super().named_modules(*args, **kwargs)

    model = Counted(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(20)))
    assert len(find_blocks(model, ["*.0:*.2"])) == 20
    assert calls == 1


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["layers.*.ffn"], r"no module matches 'layers.\*.ffn'; did you mean 'layers"),
        (["layers.3.mlp"], r"expected the name of a module of Stack, got 'layers.3.mlp'; did you mean 'layers"),
        (["layers.*.fc1:layers.*.fc3"], "no module matches"),
        (["layers.*.mlp:layers.2.mlp"], "expected the same wildcards on both sides"),
        (["layers.*.mlp", "layers.1.mlp"], r"'layers.1.mlp' \(from 'layers.\*.mlp'\) and 'layers.1.mlp' "),
        (["layers.1", "layers.*.mlp"], r"'layers.1' \(from 'layers.1'\) and 'layers.1.mlp' \(from 'layers.\*.mlp'\)"),
        (["layers.0.*"], r"expected blocks that do not overlap, got 'layers.0.mlp' .*`.` also matches dots"),
        (["layers.0.mlp.fc1:layers.0.mlp.fc2", "layers.0.mlp.fc2"], "expected blocks that do not overlap"),
        (["", "layers.0"], "expected blocks that do not overlap"),
    ],
    ids=str,
)
def test_patterns_that_are_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_blocks(Stack(), patterns)


@pytest.mark.parametrize("patterns", ["fc1", [3], ["fc1", None]], ids=str)
def test_patterns_that_are_no_list_of_strings(patterns: Any) -> None:
    with pytest.raises(TypeError, match="expected a list or a mapping of block names"):
        find_blocks(MLP(), patterns)


def test_only_the_first_few_samples_of_an_example_are_run() -> None:
    seen = []
    model = sequential().eval()
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    find_cut(model, "0:2", torch.randn(1000, 6))
    assert seen
    assert max(seen) < 100
