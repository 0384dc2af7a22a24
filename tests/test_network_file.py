"""The file of a compressed network: nothing of others is lost, what is shared stays shared, what changed is refused."""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import tenflex
from tenflex import Block, Compression, FlexibleLayer, Monomial, compress, load
from tenflex.evaluate.cost import cost, stored_numbers
from tenflex.solvers import ConstrainedALS
from tenflex.storage.files import read_file

pytestmark = pytest.mark.usefixtures("few_steps")

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
FRESH = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A head, a body with a function between its layers, and a tail."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.bend, self.tail = nn.Linear(6, 6), Body(), nn.Sigmoid(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.bend(self.body(self.head(x))))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


BODY = {"body.fc1:body.fc2": Block(2)}
HEAD = {"head": Block(2)}


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    """The same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        return kind().eval()


def small(model: nn.Module, inputs: Tensor = X, blocks: dict[str, Block] | None = None) -> Compression:
    return compress(model, inputs, blocks or BODY, basis=Monomial(2), solver=ConstrainedALS(1))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def header(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["tenflex"])


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """The same file with a change."""
    config, tensors = header(folder), load_file(folder / "model.safetensors")
    change(config, tensors)
    config.pop("digest", None)  # as if it had been written so
    save_file(tensors, folder / "model.safetensors", metadata={"tenflex": json.dumps(config)})


@pytest.fixture(scope="module")
def result() -> Compression:
    return small(made(Net))


@pytest.fixture
def folder(result: Compression, tmp_path: Path) -> Path:
    result.save(tmp_path / "small")
    return tmp_path / "small"


# --- nothing of others is ever overwritten ---


def test_the_checkpoint_of_another_program_is_left_alone(result: Compression, tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors was not written by tenflex and would be overwritten"):
        result.save(tmp_path)
    with pytest.raises(ValueError, match=r"was not written by tenflex"):
        next(iter(result.solutions.values())).save(tmp_path / "model.safetensors")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.json", "report.json"])
@pytest.mark.parametrize("text", ['{"architectures": []}', "[1]", "no JSON", "[" * 100_000])
def test_other_files_beside_an_earlier_result_are_left_alone(
    folder: Path, result: Compression, name: str, text: str
) -> None:
    (folder / name).write_text(text)
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"{name} was not written by tenflex"):
        result.save(folder)
    assert contents(folder) == before


def test_earlier_results_are_ours(result: Compression, folder: Path, tmp_path: Path) -> None:
    earlier = Path(__file__).parent / "earlier" / "networks" / "both_float32" / "model.safetensors"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.safetensors").write_bytes(earlier.read_bytes())
    for one in (folder, tmp_path / "old"):
        result.save(one)
        assert torch.equal(load(one, made(Net))(FRESH), result.model(FRESH))


# --- what is shared stays shared ---


class Tied(nn.Module):
    """An embedding that is also the head, a module at two places, and a buffer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(11, 6), Body(), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.mix = self.again = nn.Linear(4, 4)
        self.out = nn.Linear(4, 6)
        self.register_buffer("scale", torch.arange(4.0) + 1)
        self.other = nn.Module()
        self.other.register_buffer("scale", self.scale)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.body(self.embed(x))) * self.scale
        return self.head(self.out(self.again(x) / self.other.scale))


class Untied(Tied):
    """Is tied by whoever trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(torch.zeros(11, 6))


def tokens(count: int) -> Tensor:
    return torch.randint(11, (count, 3), generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("blocks", [BODY, {"body": Block(2)}], ids=["graph", "chain"])
@pytest.mark.parametrize("architecture", [Tied, Untied])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shared_weights_are_saved_once_and_loaded_shared(
    blocks: dict[str, Block], architecture: type[nn.Module], device: str, tmp_path: Path
) -> None:
    result = small(made(Tied), tokens(30), blocks)
    result.save(tmp_path)
    with torch.device(device):
        empty = made(architecture)
    again = load(tmp_path, empty)
    assert torch.equal(again(tokens(9)), result.model(tokens(9)))
    assert again.head.weight is again.embed.weight
    assert again.mix is again.again
    assert again.scale.data_ptr() == again.other.scale.data_ptr()
    saved = load_file(tmp_path / "model.safetensors")
    assert not {"head.weight", "again.weight", "other.scale"} & saved.keys()
    assert header(tmp_path)["aliases"]["head.weight"] == "embed.weight"
    numbers = sum(one.numel() for one in saved.values())
    assert numbers == stored_numbers(again) == stored_numbers(result.model) == result.report.after.parameters


def test_files_with_a_copy_for_every_name_are_loaded_shared(tmp_path: Path) -> None:
    """As the format `tenflex/2` had them."""
    result = small(made(Tied), tokens(30))
    result.save(tmp_path)

    def before(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        config["format"] = "tenflex/2"
        tensors.update({name: tensors[other].clone() for name, other in config.pop("aliases").items()})
        for name in ("extras", "identity"):
            config.pop(name)

    rewrite(tmp_path, before)
    again = load(tmp_path, made(Tied))
    assert torch.equal(again(tokens(9)), result.model(tokens(9)))
    assert again.head.weight is again.embed.weight
    assert again.mix is again.again


# --- the meta device ---


class Normed(nn.Module):
    """Beside the block, a batch norm with its counts in the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(6, 8), nn.Linear(8, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc2(F.relu(self.fc1(x))))


def test_batch_norm_on_the_meta_device(tmp_path: Path) -> None:
    model = made(Normed)
    model.norm.running_mean.add_(0.3)
    result = small(model, blocks={"fc1:fc2": Block(2)})
    result.save(tmp_path)
    with torch.device("meta"):
        empty = Normed()
    again = load(tmp_path, empty)
    assert torch.equal(again(FRESH), result.model(FRESH))
    assert not any(one.is_meta for one in (*again.parameters(), *again.buffers()))


class Waves(Net):
    """Frequencies in a buffer and in an attribute, neither of which is in a state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rates", torch.linspace(0.5, 2, 6), persistent=False)
        self.offset = torch.linspace(-1, 1, 6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.rates + self.offset)


def test_what_no_file_holds_is_not_left_on_the_meta_device(tmp_path: Path) -> None:
    small(made(Waves)).save(tmp_path)
    with torch.device("meta"):
        empty = Waves()
    with pytest.raises(ValueError, match=r"does not hold 'rates', which is in no state_dict, .*make the model without"):
        load(tmp_path, empty)


# --- state outside of the state_dict ---


def faster(model: Any) -> None:
    model.rates.mul_(2)


def shifted(model: Any) -> None:
    model.offset = model.offset + 1


@pytest.mark.parametrize(("change", "name"), [(faster, "rates"), (shifted, "offset")])
@pytest.mark.parametrize("blocks", [BODY, HEAD, {"body.fc1:bend": Block(2)}], ids=["graph", "module", "wide graph"])
def test_tensors_outside_of_the_state_are_compared(
    change: Callable[[Any], None], name: str, blocks: dict[str, Block], tmp_path: Path
) -> None:
    model = made(Waves)
    change(model)
    result = small(model, blocks=blocks)
    result.save(tmp_path)
    with pytest.raises(ValueError, match=rf"'{name}', which is in no state_dict and so not in the file, has other"):
        load(tmp_path, made(Waves))
    same = made(Waves)
    change(same)
    assert torch.equal(load(tmp_path, same)(FRESH), result.model(FRESH))


def test_rounding_is_no_change(tmp_path: Path) -> None:
    result = small(made(Waves))
    result.save(tmp_path)
    close = made(Waves)
    close.rates.mul_(1 + 2e-7)
    close.offset = close.offset + 1e-8
    assert load(tmp_path, close)(FRESH).shape == (20, 3)


class Remembering(Net):
    """Keeps what it saw last, and how often it was called, and makes a table when it is first needed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last, self.table = 0, None, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        if self.table is None:
            self.table = torch.linspace(1, 2, 6)
        return super().forward(x * self.table)


def test_what_a_forward_pass_leaves_behind_is_no_change(tmp_path: Path) -> None:
    result = small(made(Remembering), blocks=HEAD)
    result.model(FRESH)
    seen = result.model.last
    result.save(tmp_path)
    assert result.model.last is seen
    used = made(Remembering)
    used(X[:7])
    for architecture in (made(Remembering), used):
        assert torch.equal(load(tmp_path, architecture)(FRESH), result.model(FRESH))


class Reading(Net):
    """Around the block, parameters and buffers that it alone reads, and what a forward pass keeps of its inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ReadingBody()


class ReadingBody(Body):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.kept = nn.Parameter(torch.linspace(-1, 1, 8)), None
        self.register_buffer("offset", torch.linspace(0, 1, 8))
        self.register_buffer("table", torch.linspace(1, 2, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [torch.tanh(self.fc1(x) * F.softplus(self.gain) + self.offset * self.table)]
        return self.fc2(self.kept[0])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_gone_with_a_block_is_in_no_file_and_not_missed(device: str, tmp_path: Path) -> None:
    result = small(made(Reading))
    expected = result.model(FRESH)
    result.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not {"body.gain", "body.offset", "body.table"} & saved.keys()
    with torch.device(device):
        empty = made(Reading)
    for architecture in (empty, result.model, load(tmp_path, empty)):
        assert torch.equal(load(tmp_path, architecture)(FRESH), expected)


def test_what_a_pass_keeps_of_a_block_that_is_gone_is_no_part_of_the_network(tmp_path: Path) -> None:
    """Neither for copies, nor for files, nor for what is put back after a pass."""
    result = small(made(Reading))
    expected = result.model(FRESH)
    left = result.model.body.kept[0]
    assert left.shape == (20, 8)
    assert torch.equal(copy.deepcopy(result.model)(FRESH), expected)
    torch.save(result.model, tmp_path / "all.pt")
    assert torch.load(tmp_path / "all.pt", weights_only=False).body.kept[0].shape == (20, 8)
    assert result.evaluate(FRESH).relative_error > 0
    assert cost(result.model, FRESH) == result.report.after
    assert result.model.body.kept[0] is left
    assert not small(result.model, blocks=HEAD).report.hooked
    assert not small(result.model, blocks={"body": Block(2)}).report.hooked


class Recurrent(nn.Module):
    """An LSTM keeps its weights in a list as well, and weight norm makes one in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.recurrent, self.out = nn.Linear(6, 5), nn.LSTM(5, 4, batch_first=True), Body()
        with torch.no_grad():
            self.normed = nn.utils.weight_norm(nn.Linear(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.normed(self.recurrent(self.head(x))[0]))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_are_held_twice_or_made_anew_are_no_change(tmp_path: Path) -> None:
    sequences = torch.randn(12, 3, 6, generator=torch.Generator().manual_seed(2))
    model = made(Recurrent)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(1.5)
        model(sequences)
    result = small(model, sequences, HEAD)
    result.save(tmp_path)
    assert torch.equal(load(tmp_path, made(Recurrent))(sequences), result.model(sequences))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.encoder, self.tail = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.encoder(x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_encoder_of_torch(device: str, tmp_path: Path) -> None:
    sequences = torch.randn(12, 3, 6, generator=torch.Generator().manual_seed(2))
    result = small(made(Encoder), sequences, {"encoder.layers.0.linear1:encoder.layers.0.linear2": Block(2)})
    result.save(tmp_path)
    with torch.device(device):
        empty = Encoder()
    assert torch.equal(load(tmp_path, empty)(sequences), result.model(sequences))


# --- what was compressed is what is loaded ---


class Louder(Net):
    def forward(self, x: Tensor) -> Tensor:
        return 100 * super().forward(x)


class Bent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bend = nn.Tanh()


class Skewed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = SkewedBody()


class SkewedBody(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5


class Normalized(Net):
    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.bend = nn.LayerNorm(4, eps=eps)


class Scaled(Net):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


# name: (what was compressed, what it is loaded into, a part of the message)
CHANGED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "forward": (
        Net,
        Louder,
        r"outputs for the same inputs are others, by [\d.]+ of .* the network, whose forward pass",
    ),
    "activation": (Net, Bent, r"'bend' is nn\.Tanh, was nn\.Sigmoid"),
    "forward of a part": (Net, Skewed, r"the first module whose output differs is 'body' \(SkewedBody\)"),
    "setting": (Normalized, lambda: Normalized(1e-6), r"'bend' \(nn.LayerNorm\) has eps=1e-06, had 1e-05"),
    "number": (Scaled, lambda: Scaled(3.0), r"the network \(Scaled\) has scale=3\.0, had 1\.0"),
}


@pytest.mark.parametrize("blocks", [HEAD, BODY], ids=["module", "graph"])
@pytest.mark.parametrize(("before", "after", "message"), CHANGED.values(), ids=CHANGED.keys())
def test_another_architecture_is_refused(
    before: Callable[[], nn.Module],
    after: Callable[[], nn.Module],
    message: str,
    blocks: dict[str, Block],
    tmp_path: Path,
) -> None:
    small(made(before), blocks=blocks).save(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, made(after))
    assert "is not the one that was compressed" in str(caught.value)
    load(tmp_path, made(before))


def test_names_in_the_code_are_free(folder: Path, result: Compression) -> None:
    class Renamed(Net):
        """The same under another name, with dropout that does nothing in eval mode."""

        def forward(self, x: Tensor) -> Tensor:
            h = self.head(x)
            return F.dropout(self.tail(self.bend(self.body(h))), 0.3, self.training)

    assert torch.equal(load(folder, made(Renamed))(FRESH), result.model(FRESH))


def test_the_same_architecture_loads_in_another_process(folder: Path, result: Compression, tmp_path: Path) -> None:
    torch.save(result.model(FRESH), tmp_path / "outputs.pt")
    code = (
        "import sys, torch, tenflex; sys.path.insert(0, sys.argv[3]); import test_network_file as here; "
        "out = tenflex.load(sys.argv[1], here.Net())(here.FRESH); "
        "sys.exit(0 if torch.equal(out, torch.load(sys.argv[2], weights_only=True)) else 1)"
    )
    arguments = [folder, tmp_path / "outputs.pt", Path(__file__).parent]
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=dict(os.environ))


def test_no_data_are_in_the_file(folder: Path) -> None:
    form = header(folder)["identity"]["probe"]
    assert form == {"args": [[[2, 6], "float32", X[:2].min().item(), X[:2].max().item()]], "kwargs": {}}


class Choosy(Net):
    """Takes no other inputs than those of the test, so that it cannot be tried with made-up ones."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x[:, :, None] == X.flatten()).any(2).all():
            raise RuntimeError("unknown inputs")
        return super().forward(x)


def test_networks_that_take_no_made_up_inputs(tmp_path: Path) -> None:
    result = small(made(Choosy), blocks=HEAD)
    result.save(tmp_path)
    assert header(tmp_path)["identity"]["probe"] is None
    assert torch.equal(load(tmp_path, made(Choosy))(X), result.model(X))
    with pytest.raises(ValueError, match=r"'bend' is nn\.Tanh, was nn\.Sigmoid"):
        load(tmp_path, made(Bent))


# --- further state ---


class Counting(nn.Module):
    """Has state of its own kind."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return x


class OneWay(nn.Module):
    def get_extra_state(self) -> Any:
        return 3

    def forward(self, x: Tensor) -> Tensor:
        return x


def with_state(one: nn.Module, place: str = "tail") -> nn.Module:
    def make() -> nn.Module:
        parts = OrderedDict(head=nn.Linear(6, 6), bend=nn.Tanh(), tail=nn.Linear(6, 3))
        parts[place] = nn.Sequential(OrderedDict(linear=parts[place], more=one))
        return nn.Sequential(parts)

    return made(make)


STATES = [3, "text", None, [1, (2.5, "a")], {"a": {"b": torch.ones(2, 3)}, "c": [torch.zeros(0)]}, torch.arange(4)]


@pytest.mark.parametrize("state", STATES, ids=lambda one: type(one).__name__)
def test_further_state_comes_back(state: Any, tmp_path: Path) -> None:
    result = small(with_state(Counting(state)), blocks=HEAD)
    result.save(tmp_path)
    again = load(tmp_path, with_state(Counting("nothing")))
    torch.testing.assert_close(again.tail.more.state, state, rtol=0, atol=0) if isinstance(state, Tensor) else None
    assert repr(again.tail.more.state) == repr(state)
    saved = sum(one.numel() for one in load_file(tmp_path / "model.safetensors").values() if one.is_floating_point())
    assert saved == result.report.after.parameters


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (Counting({"a": {1, 2}}), r"'tail\.more\._extra_state\.a' holds set, which cannot be saved without pickle"),
        (Counting(b"bytes"), r"'tail\.more\._extra_state' holds bytes"),
        (OneWay(), r"'tail\.more' \(OneWay\) has get_extra_state and no set_extra_state"),
    ],
)
def test_further_state_that_cannot_come_back_is_refused_before_any_work(one: nn.Module, message: str) -> None:
    seen: list[object] = []
    with pytest.raises((TypeError, ValueError), match=message):
        compress(with_state(one), X, HEAD, on_progress=seen.append)
    assert seen == []
    small(with_state(one, "head"), blocks=HEAD)  # gone with its block


def test_further_state_that_changed_since_leaves_nothing_behind(tmp_path: Path) -> None:
    result = small(with_state(Counting(1)), blocks=HEAD)
    result.model.tail.more.state = {1, 2}
    with pytest.raises(TypeError, match="cannot be saved without pickle"):
        result.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# --- several rounds ---


ROUNDS = {
    "apart": [BODY, HEAD],
    "other way round": [HEAD, BODY],
    "one inside the other": [HEAD, {"": Block(3)}],
    "graph inside": [BODY, {"body": Block(2)}],
    "three": [BODY, HEAD, {"tail": Block(2)}],
    "the same again": [HEAD, HEAD],
}


@cache
def first_round(name: str) -> Compression:
    """The same for all that goes on from it."""
    return small(made(Net), blocks={name: Block(2)})


@pytest.mark.parametrize("between", ["at once", "from disk", "copied"])
@pytest.mark.parametrize("rounds", ROUNDS.values(), ids=ROUNDS.keys())
def test_a_compressed_network_is_compressed_again(rounds: list[dict[str, Block]], between: str, tmp_path: Path) -> None:
    model = made(Net)
    for number, blocks in enumerate(rounds):
        result = small(model, blocks=blocks) if number else first_round(*blocks)
        model = result.model
        if between == "from disk":
            result.save(tmp_path / f"round{number}")
            model = load(tmp_path / f"round{number}", made(Net))
        elif between == "copied":
            model = copy.deepcopy(model)
    result.save(tmp_path / "small")
    again = load(tmp_path / "small", made(Net))
    assert torch.equal(again(FRESH), result.model(FRESH))
    assert any(isinstance(one, FlexibleLayer) for one in again.modules())
    first = first_round(*rounds[0]).model
    assert torch.equal(load(tmp_path / "small", first)(FRESH), result.model(FRESH))


def test_a_network_that_was_compressed_in_another_way_is_refused(folder: Path) -> None:
    other = small(made(Net), blocks=HEAD)
    with pytest.raises(ValueError, match="has been compressed in another way: pass the original architecture"):
        load(folder, other.model)


# --- damaged files ---


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


HUGE = 10**12


def set_layer(**values: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda config, tensors: config["replacements"][0]["layer"].update(values)


def set_basis(**values: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda config, tensors: config["replacements"][0]["layer"]["basis"][0].update(values)


def set_probe(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    config["identity"]["probe"]["args"][0][0] = [HUGE, 6]


def to_whole(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors["tail.weight"] = tensors["tail.weight"].view(torch.int32)


TAMPERED: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], None]] = {
    "rank": set_layer(rank=[HUGE]),
    "rank of 400 digits": set_layer(rank=[10**400]),
    "rank of 5000 digits": lambda config, tensors: config.update(more="x"),
    "inputs": set_layer(in_shape=[HUGE, HUGE, HUGE]),
    "outputs": set_layer(out_shape=[HUGE]),
    "factor": set_layer(factor=HUGE),
    "degree": set_basis(degree=HUGE),
    "knots": set_basis(family="BSpline", count=HUGE, degree=3),
    "probe": set_probe,
    "whole numbers": to_whole,
    "deep layer": set_layer(basis=deep(900)),
    "deep identity": lambda config, tensors: config.update(identity=deep(900)),
    "deep extras": lambda config, tensors: config["extras"].update({"tail._extra_state": {"list": [deep(900)]}}),
    "no mapping": lambda config, tensors: config.update(replacements=[3]),
    "alias of nothing": lambda config, tensors: config["aliases"].update({"tail.weight": "nothing"}),
    "alias of a list": lambda config, tensors: config["aliases"].update({"x": ["tail.weight"]}),
    "identity": lambda config, tensors: config.update(identity={"modules": 3}),
    "responses": lambda config, tensors: config["identity"].update(responses=[["", [1, 2]]]),
    "module path": lambda config, tensors: config["replacements"][0]["cut"].update(parent="tail"),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED.keys())
def test_tampered_files_are_refused_before_anything_is_allocated(
    change: Callable[[dict[str, Any], dict[str, Tensor]], None], folder: Path
) -> None:
    rewrite(folder, change)
    if change is TAMPERED["rank of 5000 digits"]:
        text = json.dumps(header(folder)).replace('"x"', "1" * 5000)
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors, folder / "model.safetensors", metadata={"tenflex": text})
    with pytest.raises(ValueError, match=r"damaged|expected a model of the architecture") as caught:
        load(folder, made(Net))
    assert str(folder) in str(caught.value) or "cannot be replaced" in str(caught.value)


def test_brackets_without_end(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(2)}, path, metadata={"tenflex": "[" * 200_000})
    with pytest.raises(ValueError, match=r"model\.safetensors has a damaged header .*: save the network again"):
        load(tmp_path, made(Net))
    with pytest.raises(ValueError, match=r"has a damaged header .*: save it again"):
        read_file(path, "a file", "it")


# --- a full disk ---


@pytest.mark.parametrize("most", [200, 1000, 3000])
def test_a_full_disk_leaves_the_previous_result(result: Compression, folder: Path, most: int) -> None:
    """A limit to the size of files stands for a disk that is full after so many bytes."""
    before = contents(folder)
    assert max(map(len, before.values())) > most
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(OSError, match=r"."):
            result.save(folder)
        solution = next(iter(result.solutions.values()))
        with pytest.raises(OSError, match=r"."):
            solution.save(folder.parent / "solution.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    assert torch.equal(load(folder, made(Net))(FRESH), result.model(FRESH))


def test_all_files_are_written_before_the_first_takes_its_place(
    result: Compression, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)

    def full(value: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tenflex.storage.network.as_json", full)
    with pytest.raises(OSError, match="No space left"):
        result.save(folder)
    assert contents(folder) == before


def test_the_loaded_network_can_be_saved_by_tenflex_alone(folder: Path) -> None:
    """Nothing in the file is a pickle: it is a header of JSON, and tensors."""
    assert set(load_file(folder / "model.safetensors")) == set(load(folder, made(Net)).state_dict())
    assert tenflex.load(folder, made(Net)).training is False


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Linear(6, 6), Body(), nn.Linear(6, 6)
        self.widen = nn.Linear(4, 6)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.widen(self.body(self.embedding(x))))


def test_a_loaded_network_is_saved_again(tmp_path: Path) -> None:
    """With the same bits, ties and settings; `load` reads it with the original architecture."""
    result = small(made(Shared))
    result.save(tmp_path / "first")
    tenflex.save(load(tmp_path / "first", made(Shared)), tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    again = load(tmp_path / "second", made(Shared))
    assert again.head.weight is again.embedding.weight


def test_a_network_that_was_trained_further_is_saved(tmp_path: Path) -> None:
    result = small(made(Shared))
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1)
    result.model(X).square().mean().backward()
    optimizer.step()
    tenflex.save(result.model, tmp_path / "tuned")
    again = load(tmp_path / "tuned", made(Shared))
    assert torch.equal(again(FRESH), result.model(FRESH))
    assert json.loads((tmp_path / "tuned/report.json").read_text()) == result.report.to_dict()
    (tmp_path / "tuned/report.json").unlink()
    tenflex.save(load(tmp_path / "tuned", made(Shared)), tmp_path / "again")
    assert json.loads((tmp_path / "again/report.json").read_text()) == {}


SETTINGS = "model: shop:net\ninputs: x.npy\nblocks:\n  fc1: {rank: 2}\nout: small\n"


def test_settings_of_another_result_go(tmp_path: Path) -> None:
    """They would repeat that one; those of the same plan stay, and so does what is not ours."""
    result = small(made(Shared))
    for name, text in (("ours", SETTINGS), ("theirs", "learning_rate: 3\n")):
        result.save(tmp_path / name)
        (tmp_path / name / "run.yaml").write_text(text)
        result.finetune(X, steps=2, rate=1e-3).save(tmp_path / name)
        assert (tmp_path / name / "run.yaml").read_text() == text
        other = tenflex.compress(made(Shared), X, replace(result.plan, seed=result.plan.seed + 1))
        other.save(tmp_path / name)
        assert (tmp_path / name / "run.yaml").is_file() == (name == "theirs")


def test_other_networks_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a compressed network, .* save an ordinary network as its state_d"):
        tenflex.save(made(Shared), tmp_path / "small")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got dict"):
        tenflex.save({}, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


CALLED: list[str] = []
"""The factories that ran."""


def factory() -> nn.Module:
    CALLED.append("factory")
    return Net()


def other_factory() -> nn.Module:
    CALLED.append("other")
    return Shared()


def number() -> int:
    return 3


HERE = f"{__name__}:factory"


@pytest.fixture
def named(result: Compression, tmp_path: Path) -> Path:
    result.save(tmp_path / "named", made_by=factory)
    CALLED.clear()
    return tmp_path / "named"


@pytest.mark.parametrize("trust", [HERE, __name__, ["some.other", HERE]])
def test_a_trusted_name_stands_for_the_architecture(trust: Any, named: Path, result: Compression) -> None:
    """With the same bits, and without a number drawn from the user's generator; what is saved again keeps the name."""
    before = torch.random.get_rng_state()
    loaded = load(named, trust=trust)
    assert torch.equal(loaded(FRESH), result.model(FRESH))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert CALLED == ["factory"]
    tenflex.save(loaded, named.parent / "again")
    assert header(named.parent / "again")["made_by"] == HERE
    assert json.loads((named.parent / "again/config.json").read_text())["made_by"] == HERE


@pytest.mark.parametrize("trust", [None, [], "", "some.other", f"{__name__}:other_factory", __name__[:-1], HERE + "s"])
def test_nothing_runs_that_was_not_named(trust: Any, named: Path) -> None:
    with pytest.raises(ValueError, match=rf"says that {HERE} makes its architecture, which is code that would run"):
        load(named, trust=trust)
    assert CALLED == []


def test_a_package_that_is_trusted_covers_its_modules(result: Compression, tmp_path: Path) -> None:
    result.save(tmp_path / "small", made_by="os.path:join")
    with pytest.raises(ValueError, match=r"os.path:join could not make the architecture: TypeError"):
        load(tmp_path / "small", trust="os")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{__name__}:other_factory", "cannot be replaced in this model|does not have|has no weights"),
        (f"{__name__}:missing", "there is no such module or function here"),
        ("no_such_module:factory", "there is no such module or function here"),
    ],
)
def test_names_that_do_not_lead_to_the_architecture(
    name: str, message: str, result: Compression, tmp_path: Path
) -> None:
    result.save(tmp_path / "small", made_by=name)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "small", trust=name)


def test_a_name_that_makes_something_else(result: Compression, tmp_path: Path) -> None:
    result.save(tmp_path / "small", made_by=number)
    with pytest.raises(TypeError, match=r"number returned int: expected a torch.nn.Module"):
        load(tmp_path / "small", trust=__name__)


def test_only_names_that_others_can_import_are_saved(result: Compression, tmp_path: Path) -> None:
    def local() -> nn.Module:
        return Net()

    for one in (local, lambda: Net(), "no colon", "two:colons:here"):
        with pytest.raises(ValueError, match=r"made_by"):
            result.save(tmp_path / "small", made_by=one)
    with pytest.raises(TypeError, match=r"made_by must be a function that makes the network or its name, got 3"):
        result.save(tmp_path / "small", made_by=3)
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_a_model_is_asked_for(folder: Path, named: Path) -> None:
    with pytest.raises(ValueError, match=r"does not name what makes its architecture: pass the model as tenflex.load"):
        load(folder, trust=__name__)
    with pytest.raises(ValueError, match=r"trust is for loading without a model"):
        load(named, made(Net), trust=__name__)
    with pytest.raises(TypeError, match=r"trust must be names"):
        load(named, trust=[factory])


def test_names_stay_through_fine_tuning_and_another_compression(named: Path, tmp_path: Path) -> None:
    original = made(Net)
    again = Compression.load(named, original)
    again.save(tmp_path / "again")
    assert header(tmp_path / "again")["made_by"] == HERE
    both = compress(again.model, X, {"head": Block(2)}, basis=Monomial(2), solver=ConstrainedALS(3))
    both.save(tmp_path / "both")
    assert torch.equal(load(tmp_path / "both", trust=HERE)(FRESH), both.model(FRESH))


# --- what forward passes read of modules ---


class Causal(nn.Module):
    """Pads its convolutions by what they say of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.Conv1d(1 if k == 0 else 4, 4, 2, dilation=2**k) for k in range(2))
        self.last = nn.Conv1d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.rows:
            x = torch.tanh(one(F.pad(x, (one.dilation[0], 0))))
        return self.last(x)


def test_a_block_whose_modules_are_asked_for_their_settings(tmp_path: Path) -> None:
    x = torch.randn(40, 1, 12, generator=torch.Generator().manual_seed(0))
    result = small(made(Causal), x, {"rows.0:rows.1": Block(2)})
    assert result.model.rows[0].dilation == (1,)
    result.save(tmp_path / "small")
    assert torch.equal(load(tmp_path / "small", made(Causal))(x), result.model(x))
