"""What a network keeps when blocks with functions between their modules are replaced: all but the blocks."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenflex import Block, FlexibleLayer, compress, load
from tenflex.evaluate.cost import cost
from tenflex.solvers import ConstrainedALS
from tenflex.surgery import Cut, find_cut
from tenflex.surgery.carry import Carried, Passed
from tenflex.surgery.twin import duplicate


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """Entries by name, by attribute and by place, as large libraries of transformers return them."""

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        for name, value in values.items():
            if value is not None:
                if not isinstance(value, Tensor) and not isinstance(value, tuple):
                    raise TypeError(f"{name} is no tensor")
                super().__setitem__(name, value)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class Classified(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None


class Base(nn.Module):
    """Methods, a property and attributes of a library's base class."""

    config: dict[str, int]

    @property
    def width(self) -> int:
        return self.config["width"]

    def generate(self, ids: Tensor) -> Tensor:
        return self(ids).logits.argmax(-1)


class Classifier(Base):
    """The root's own forward holds two spans, branches on sizes, on what is given, and on whether it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"width": 6, "classes": 3}
        self.table, self.norm, self.drop = nn.Embedding(11, 6), nn.LayerNorm(6), nn.Dropout(0.5)
        self.up, self.act, self.down = nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6)
        self.pool, self.classifier, self.aside = nn.Linear(6, 7), nn.Linear(7, 3), nn.Linear(6, 2)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        hidden: bool = False,
        as_tuple: bool = False,
    ) -> Any:
        h = self.norm(self.table(ids))
        if ids.shape[1] > 8:
            h = 2 * h - h.mean(1, keepdim=True)
        if len(ids) > 100:
            h = h + 1
        h = h + self.down(self.drop(F.relu(self.act(self.up(h)))))
        weights = torch.ones_like(ids) if mask is None else mask
        pooled = (h * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        x = F.dropout(torch.tanh(self.pool(pooled)), 0.5, self.training)
        logits = self.classifier(x.contiguous())
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if self.training and loss is not None:
            loss = loss + self.aside(pooled).square().mean()
        if as_tuple:
            return logits, h
        return Classified(loss, logits, (h,) if hidden else None)


SPANS = ("up:down", "pool:classifier")


def ids(samples: int, length: int = 5) -> Tensor:
    return torch.randint(11, (samples, length), generator=torch.Generator().manual_seed(samples + length))


def put_back(model: nn.Module, example: Any, *names: str) -> nn.Module:
    """A copy of the model with blocks replaced by themselves."""
    twin = copy.deepcopy(model)
    for name in names:
        cut = find_cut(model, name, example)
        assert cut.parent is not None
        twin = cut.replace_(twin, cut.function(model))
    return twin


def made(make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


@pytest.fixture
def classifier() -> Classifier:
    return made(Classifier)


@pytest.fixture
def again(classifier: Classifier) -> Classifier:
    twin = put_back(classifier, ids(4), *SPANS)
    assert type(twin) is Classifier
    return twin


@pytest.mark.parametrize("samples", [1, 4, 101])
@pytest.mark.parametrize("length", [2, 5, 12])
def test_branches_outside_of_blocks_are_taken_as_before(
    classifier: Classifier, again: Classifier, samples: int, length: int
) -> None:
    assert torch.equal(again(ids(samples, length)).logits, classifier(ids(samples, length)).logits)


def test_optional_arguments_and_outputs_of_a_class_are_kept(classifier: Classifier, again: Classifier) -> None:
    given = {"labels": torch.tensor([0, 2, 1, 1]), "mask": torch.tensor([[1, 1, 1, 0, 0]] * 4), "hidden": True}
    for chosen in ((), ("labels",), ("mask",), ("hidden",), tuple(given)):
        kwargs = {name: given[name] for name in chosen}
        found, expected = again(ids(4), **kwargs), classifier(ids(4), **kwargs)
        assert type(found) is Classified
        assert list(found) == list(expected)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found[0], expected[0])
        assert (found.loss is None) == ("labels" not in chosen)
        assert found.loss is None or torch.equal(found.loss, expected.loss)
    assert type(again(ids(4), as_tuple=True)) is tuple


def test_methods_properties_and_attributes_are_kept(classifier: Classifier, again: Classifier) -> None:
    assert isinstance(again, Base)
    assert again.width == 6
    assert again.config == classifier.config
    assert torch.equal(again.generate(ids(4, 12)), classifier.generate(ids(4, 12)))


def test_a_compressed_network_comes_back_with_all_that_it_kept(classifier: Classifier, tmp_path: Path) -> None:
    result = compress(classifier, ids(60), {name: Block(3) for name in SPANS}, samples=100, solver=ConstrainedALS(2))
    result.save(tmp_path / "small")
    loaded = load(tmp_path / "small", made(Classifier))
    flexible = [name for name, one in loaded.named_modules() if isinstance(one, FlexibleLayer)]
    assert flexible == ["up", "pool"]
    assert list(loaded.state_dict()) == list(result.model.state_dict())
    labels = torch.tensor([0, 2, 1, 1, 0, 0, 0, 1])
    for length in (5, 12):
        one, two = (model(ids(8, length), labels=labels, hidden=True) for model in (loaded, result.model))
        assert type(one) is type(two) is Classified
        assert torch.equal(one.logits, two.logits)
        assert torch.equal(one.loss, two.loss)
    assert torch.equal(loaded.generate(ids(4)), result.model.generate(ids(4)))
    saved = json.loads((tmp_path / "small" / "config.json").read_text())["replacements"]
    assert [Cut.from_dict(one["cut"]).functions for one in saved] == [
        ("act", "relu", "drop", "down"),
        ("tanh", "classifier"),
    ]


def test_a_compressed_network_can_be_trained_further(classifier: Classifier) -> None:
    blocks, solver = {name: Block(3) for name in SPANS}, ConstrainedALS(2)
    model = compress(classifier, ids(60), blocks, samples=100, solver=solver).model.train()
    loss = model(ids(4), labels=torch.tensor([0, 2, 1, 1])).loss
    loss.backward()
    layers = [one for one in model.modules() if isinstance(one, FlexibleLayer)]
    assert all(one.grad is not None for layer in layers for one in layer.parameters())
    assert model.aside.weight.grad is not None
    before = model.eval()(ids(4)).logits
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(ids(4)).logits, before)


class Pair(NamedTuple):
    out: Tensor
    size: int


@dataclass
class Result:
    out: Tensor
    note: str = "kept"


class Two(nn.Module):
    """Two layers with a function between; the cases below derive from it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.slope = 0.25

    def forward(self, x: Tensor) -> Any:
        return self.fc2(F.relu(self.fc1(x)))


class Named(Two):
    def forward(self, x: Tensor) -> Pair:
        return Pair(super().forward(x), len(x))


class Data(Two):
    def forward(self, x: Tensor) -> Result:
        return Result(super().forward(x))


class Attributes(Two):
    """Stored tensors, numbers and sizes between the modules, and numbers of the modules themselves."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.fc1(x + self.shift), self.slope) * self.gain
        assert h.dtype == x.dtype
        assert h.device == x.device
        assert h.shape[-1] == self.fc2.in_features == self.fc1.out_features
        assert self.fc2.weight.shape[1] == h.size(1)
        first, second = (1 - h).chunk(2, -1)
        h = torch.cat([2 / (1.5 + second.abs()), first**2], -1)
        h += 1
        h = h.masked_fill(self.gain > 1.2, 0) + torch.arange(8.0).to(h)
        return self.fc2(h.reshape(h.size(0), -1).relu_()) + self.shift


class Second(Two):
    """A branch that begins with what arrives at the block."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.fc2(torch.sigmoid(self.gate(h)) * F.silu(self.fc1(h)))


class Owner(nn.Module):
    """Blocks in nested owners, and across their borders."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"one": Two(), "two": Attributes()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.inner["one"](x)
        return {"x": x, "out": self.inner["two"](torch.tanh(h))}


class Unknown:
    """An output that is no container."""

    def __init__(self, out: Tensor) -> None:
        self.out = out


class Foreign(Two):
    """What comes after the block is no graph."""

    def forward(self, x: Tensor) -> Unknown:
        out = super().forward(x)
        if out.max() > 1e6:
            raise OverflowError
        return Unknown(out * (2 if out.sum().item() > 0 else 3))


PUT_BACK = [
    (Named, ("fc1:fc2",)),
    (Data, ("fc1:fc2",)),
    (Attributes, ("fc1:fc2",)),
    (Second, ("fc1:fc2",)),
    (Second, ("gate:fc2",)),
    (Foreign, ("fc1:fc2",)),
    (Owner, ("inner.one.fc1:inner.one.fc2", "inner.two.fc1:inner.two.fc2")),
    (Owner, ("inner.one.fc2:inner.two.fc1",)),
]


def parts(output: Any) -> list[Any]:
    """An output as a list."""
    if isinstance(output, Tensor):
        return [output]
    return (
        list(output)
        if isinstance(output, tuple)
        else list((output if isinstance(output, dict) else vars(output)).values())
    )


@pytest.mark.parametrize(
    ("make", "blocks"), PUT_BACK, ids=lambda one: " ".join(one) if isinstance(one, tuple) else one.__name__
)
def test_blocks_put_back_give_the_same_bits(make: Callable[[], nn.Module], blocks: tuple[str, ...]) -> None:
    model = made(make)
    twin = put_back(model, torch.randn(4, 6), *blocks)
    assert type(twin) is type(model)
    for samples in (4, 1, 7):
        x = torch.randn(samples, 6)
        with torch.no_grad():
            found, expected = twin(x), model(x)
        assert type(found) is type(expected)
        assert not any(isinstance(one, Carried) for one in parts(found))
        for one, other in zip(parts(found), parts(expected), strict=True):
            assert torch.equal(one, other) if isinstance(other, Tensor) else one == other


@pytest.mark.parametrize(
    ("make", "blocks"), PUT_BACK, ids=lambda one: " ".join(one) if isinstance(one, tuple) else one.__name__
)
def test_files_of_earlier_versions_are_replayed(make: Callable[[], nn.Module], blocks: tuple[str, ...]) -> None:
    model, x = made(make), torch.randn(5, 6)
    twin, expected = copy.deepcopy(model), put_back(model, x, *blocks)
    for name in blocks:
        cut = find_cut(model, name, x)
        values = {key: value for key, value in cut.to_dict().items() if key not in ("read", "functions")}
        twin = Cut.from_dict(json.loads(json.dumps(values))).replace_(twin, cut.function(model))
    assert list(twin.state_dict()) == list(expected.state_dict())
    for one, other in zip(parts(twin(x)), parts(expected(x)), strict=True):
        assert torch.equal(one, other) if isinstance(other, Tensor) else one == other


# A way through the block that its layer was not made for


class Ways(Two):
    """What happens between the modules depends on arguments and sizes."""

    def forward(
        self, x: Tensor, way: str = "", scale: float = 2.0, mask: Tensor | None = None, aside: Tensor | None = None
    ) -> Any:
        h = self.fc1(x)
        if way == "size" and x.shape[0] > 8:
            h = torch.sin(h)
        if way == "skip":
            return h
        h = h * scale
        if mask is not None:
            h = h.masked_fill(mask, 0)
        if self.training and way == "noise":
            h = h + torch.randn_like(h)
        if way != "straight":
            h = F.relu(h)
        if way == "early":
            return self.fc2(h), h
        return self.fc2(h if way != "other" else torch.ones(len(x), 8)) + (0 if way != "late" else h.mean())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"way": "size"}, r"expected 'mul\(_, 2.0\)' in the block 'fc1:fc2' after \[\].* got 'sin'.*inputs like it"),
        ({"scale": 3.0}, r"expected 'mul\(_, 2.0\)' .* got 'mul\(_, 3.0\)'"),
        ({"mask": torch.ones(8, dtype=torch.bool)}, r"expected 'relu' .* got 'masked_fill"),
        ({"way": "straight"}, r"expected 'relu' .* after \['mul\(_, 2.0\)'\].* got 'fc2'"),
        ({"way": "other"}, r"nothing arrives from the layer in its place"),
        ({"way": "late"}, r"nothing between the modules of the block 'fc1:fc2' is used after it, but 'mean'"),
    ],
    ids=str,
)
def test_another_way_through_a_block_is_refused(kwargs: dict[str, Any], message: str) -> None:
    model, x = made(Ways), torch.randn(9, 6)
    twin = put_back(model, torch.randn(4, 6), "fc1:fc2")
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            twin(x, **kwargs)
        assert torch.equal(twin(x), model(x))  # nothing is left of the pass that failed


def test_what_stands_between_the_modules_is_no_output() -> None:
    twin, x = put_back(made(Ways), torch.randn(4, 6), "fc1:fc2"), torch.randn(4, 6)
    for leaked in (twin(x, "skip"), twin(x, "early")[1]):
        assert leaked.shape == (4, 8)
        with pytest.raises(ValueError, match="expected"):
            (leaked + 1).tolist()


def test_functions_for_training_alone_are_refused_inside_a_block() -> None:
    model, x = made(Ways), torch.randn(4, 6)
    twin = put_back(model, x, "fc1:fc2").train()
    assert twin(x).requires_grad
    with pytest.raises(ValueError, match=r"expected 'relu' in the block 'fc1:fc2' .* got 'randn_like'"):
        twin(x, "noise")


def test_modules_of_a_block_cannot_be_called_alone() -> None:
    twin = put_back(made(Two), torch.randn(4, 6), "fc1:fc2")
    assert isinstance(twin.fc2, Passed)
    assert repr(twin.fc2) == "Passed(Linear, 'fc2')"
    with pytest.raises(ValueError, match="nothing arrives from the layer in its place"):
        twin.fc2(torch.randn(4, 8))
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = twin.fc2.nothing_here


# What is done with networks


def test_copies_threads_and_data_types() -> None:
    model = made(Attributes)
    twin = put_back(model, torch.randn(4, 6), "fc1:fc2")
    inputs = [torch.randn(one, 6) for one in range(1, 30)]
    with ThreadPoolExecutor(4) as pool:
        for found, x in zip(pool.map(copy.deepcopy(twin), inputs), inputs, strict=True):
            assert torch.equal(found, model(x))
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(copy.deepcopy(twin).double()(x), copy.deepcopy(model).double()(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(put_back(made(Two), inputs[3], "fc1:fc2")(inputs[5]), made(Two)(inputs[5]))


def test_hooks_of_blocks_are_gone(classifier: Classifier) -> None:
    """They would be given tensors without numbers."""
    seen: list[Tensor] = []
    for one in (classifier.up, classifier.act):
        one.register_forward_hook(lambda module, args, output: seen.append(output))
    twin = find_cut(classifier, "up:down", ids(4)).replace_(copy.deepcopy(classifier), nn.Linear(6, 6))
    seen.clear()
    assert twin.act(twin.up(torch.zeros(3, 5, 6))).shape == (3, 5, 9)
    assert twin(ids(4)).logits.shape == (4, 3)
    assert not seen


def test_copies_share_no_way_through_a_block(again: Classifier) -> None:
    twin = duplicate(again)
    ways = [[one.way for one in (*model.up._forward_hooks.values(), model.act)] for model in (again, twin)]
    assert ways[0][0] is ways[0][1]
    assert ways[1][0] is ways[1][1]
    assert ways[0][0] is not ways[1][0]
    assert torch.equal(twin(ids(4)).logits, again(ids(4)).logits)


def test_hooks_of_owners_stay() -> None:
    model, x = made(Owner), torch.randn(4, 6)
    seen: list[str] = []
    model.register_forward_hook(lambda *_: seen.append("root"))
    model.inner["one"].register_forward_hook(lambda *_: seen.append("inner"))
    twin = put_back(model, x, "inner.one.fc1:inner.one.fc2")
    seen.clear()
    twin(x)
    assert seen == ["inner", "root"]


@pytest.mark.parametrize("make", [Two, Attributes, Second], ids=lambda one: one.__name__)
def test_results_are_exported_and_compiled_as_one_graph(make: Callable[[], nn.Module]) -> None:
    model, x = made(make), torch.randn(5, 6)
    twin = put_back(model, torch.randn(4, 6), "fc1:fc2")
    exported = torch.export.export(twin, (x,), dynamic_shapes=[{0: torch.export.Dim("samples", min=2)}]).module()
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for inputs in (x, torch.randn(3, 6)):
        torch.testing.assert_close(exported(inputs), model(inputs))
        torch.testing.assert_close(compiled(inputs), model(inputs))


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.second, self.fc = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.conv(x))))
        return self.fc(x.view(x.size(0), -1))


def test_sizes_that_are_asked_cost_nothing() -> None:
    model, x = made(Sized), torch.randn(3, 1, 8, 8)
    cut = find_cut(model, "conv:fc", x)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Tanh(), nn.Linear(2, 4))
    expected = cost(layer, x)
    twin = cut.replace_(copy.deepcopy(model), layer)
    assert twin(x).shape == (3, 4)
    assert cost(twin, x) == expected
    assert list(twin.state_dict()) == ["conv.1.weight", "conv.1.bias", "conv.3.weight", "conv.3.bias"]
    assert [name for name, _ in twin.named_parameters()] == list(twin.state_dict())
