"""Networks as people have them: with hooks, caches, closures, old parametrizations, compiled, in several threads."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

import tenflex
from tenflex import Block, LowRank, Monomial, compress
from tenflex.coordinates import Downstream, OutputMetric
from tenflex.evaluate.comparison import compare_networks
from tenflex.evaluate.cost import cost
from tenflex.evaluate.fidelity import fidelity
from tenflex.evaluate.latency import latency
from tenflex.planning.survey import survey
from tenflex.sampling.capture import capture
from tenflex.solvers import ConstrainedALS
from tenflex.surgery import find_cut
from tenflex.surgery.reach import reachable
from tenflex.surgery.twin import copied

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
SPAN, ONE = {"fc1:fc2": Block(3)}, {"fc1": Block(3)}
PATCHED = nn.Module.__call__, nn.Module.__getattr__
QUICK: dict[str, Any] = {"solver": tenflex.solvers.ConstrainedALS(2), "basis": Monomial(2)}


class Net(nn.Module):
    """Three layers with functions between."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def run(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x.clone())


def quickly(model: nn.Module, blocks: dict[str, Block] = SPAN, x: Any = X) -> tenflex.Compression:
    return compress(model, x, blocks, **QUICK)


def same_layers(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def held_by(model: nn.Module) -> list[tuple[int, Any]]:
    """The identity of all that a network holds, and the numbers of its tensors."""
    found = [one for one in reachable(model) if type(one).__module__ != "builtins" or isinstance(one, (dict, list))]
    return [(id(one), one.detach().clone() if isinstance(one, Tensor) else len(vars(model))) for one in found]


def same_held(one: list[tuple[int, Any]], other: list[tuple[int, Any]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a[0] == b[0] and (not isinstance(a[1], Tensor) or torch.equal(a[1], b[1])) for a, b in pairs)


# --- functions of the original ---


def own_forward(model: Net) -> Net:
    model.forward = lambda x: Net.forward(model, x)  # type: ignore[method-assign]
    return model


def own_forward_inside(model: Net) -> Net:
    model.fc2.forward = partial(F.linear, weight=model.fc2.weight)  # type: ignore[method-assign]
    return model


def compiled_forward(model: Net) -> Net:
    model.forward = torch.compile(model.forward)  # type: ignore[method-assign]
    return model


def compiled_in_place(model: Net) -> Net:
    model.compile()
    return model


def compiled_inside(model: Net) -> Net:
    model.fc3 = torch.compile(model.fc3)  # type: ignore[assignment]
    return model


FORWARDS = {
    own_forward: r"the network \(Net\) has a `forward` of its own",
    own_forward_inside: r"'fc2' \(Linear\) has a `forward` of its own",
    compiled_forward: r"the network \(Net\) has a `forward` of its own",
    compiled_in_place: r"not compiled, but the network is \(torch\.compile\)",
    compiled_inside: r"not compiled, but 'fc3' is \(torch\.compile\)",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("change", "message"), FORWARDS.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_forward_that_a_copy_would_share_is_refused(change: Callable[[Net], Net], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quickly(change(Net().eval()))


class Calling(Net):
    """Calls what is kept as an attribute."""

    act: Any = staticmethod(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))

    def twice(self, x: Tensor) -> Tensor:
        return 2 * self.fc3.weight.sum() * x


class Helper:
    """No module, but it holds one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x)


def bound(model: Calling, extra: nn.Module) -> Any:
    return extra.forward


def bound_to_itself(model: Calling, extra: nn.Module) -> Any:
    return model.twice


def bound_partial(model: Calling, extra: nn.Module) -> Any:
    return partial(extra.forward)


def helper(model: Calling, extra: nn.Module) -> Any:
    return Helper(extra)


def closure(model: Calling, extra: nn.Module) -> Any:
    return lambda x: extra(x)


def closure_on_parameters(model: Calling, extra: nn.Module) -> Any:
    return lambda x: x @ extra.weight


def weak(model: Calling, extra: nn.Module) -> Any:
    return partial(lambda ref, x: ref()(x), weakref.ref(extra))


@contextmanager
def marked(*models: nn.Module) -> Iterator[set[str]]:
    """Which of several networks have modules that run meanwhile."""
    ran: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, index=index: ran.add(str(index)))
        for index, model in enumerate(models)
        for module in model.modules()
    ]
    yield ran
    for handle in handles:
        handle.remove()


def with_act(make: Callable[[Calling, nn.Module], Any]) -> Calling:
    model = Calling().eval()
    model.extra = nn.Linear(3, 3).requires_grad_(False)
    model.act = make(model, model.extra)
    return model.eval()


@pytest.mark.parametrize("make", [bound, bound_to_itself, bound_partial, helper], ids=lambda one: one.__name__)
def test_the_result_calls_no_module_of_the_original(make: Callable[[Calling, nn.Module], Any]) -> None:
    model = with_act(make)
    expected = run(model)
    smaller = quickly(model).model
    with marked(model, smaller) as ran:
        before = run(smaller)
    assert ran == {"1"}
    with torch.no_grad():
        for one in model.parameters():
            one.zero_()
    assert torch.equal(run(smaller), before)
    assert not torch.equal(run(model), expected)


@pytest.mark.parametrize(
    ("make", "named"), [(closure, "'extra'"), (closure_on_parameters, r"'extra\.weight'"), (weak, "'extra'")]
)
def test_functions_that_hold_on_to_the_original_are_refused(make: Callable[..., Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"but {named} of the original is still used by its copy.*closure"):
        quickly(with_act(make))


def test_a_method_of_a_replaced_module_that_is_kept_elsewhere_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Calling()).eval()
    model[1].fc1 = nn.Linear(3, 8).eval()
    model[1].act = model[0].forward
    with pytest.raises(ValueError, match=r"the parameter '0\.weight' is used by 'linear' in '1'"):
        quickly(model, {"0": Block(2)}, X[:, :3])


def test_functions_of_other_things_are_kept() -> None:
    table = torch.randn(3)
    model = Calling().eval()
    model.act = lambda x: x + table
    quickly(model)


# --- networks that keep what passes ---


class Keeping(Net):
    """Keeps tensors in every way there is, and makes a cache when first called."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None
        self.count = torch.zeros(())
        self.all: list[Tensor] = []
        self.named: dict[str, Any] = {"inner": {}}
        self.helper = Helper(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        self.cache = torch.ones(6) if self.cache is None else self.cache
        self.last = x
        hidden = self.fc1(x * self.cache)
        self.all.append(hidden)
        self.named["inner"][len(self.named)] = hidden
        self.count += 1
        self.helper.last = hidden
        return self.fc3(F.relu(self.fc2(F.relu(hidden))))


@pytest.mark.parametrize("used", [False, True], ids=["new", "used with gradients"])
@pytest.mark.parametrize("blocks", [SPAN, ONE, {"": Block(2)}], ids=["graph", "chain", "whole"])
def test_networks_may_keep_what_passes(used: bool, blocks: dict[str, Block]) -> None:
    model = Keeping().eval()
    if used:
        model(X[:3])
    before = held_by(model)
    compression = quickly(model, blocks)
    assert same_held(held_by(model), before)
    assert hasattr(model, "last") == used
    assert len(model.all) == used
    compression.evaluate(X)
    assert same_held(held_by(model), before)


def test_a_network_that_keeps_what_passes_gives_the_same_bits() -> None:
    for blocks in (SPAN, ONE):
        assert same_layers(quickly(Keeping().eval(), blocks).model, quickly(Net().eval(), blocks).model)


@pytest.mark.parametrize("measure", ["fidelity", "latency", "cost", "survey", "find_cut", "capture"])
def test_what_measures_leaves_attributes_alone(measure: str) -> None:
    model, other = Keeping().eval(), Net().eval()
    before = held_by(model)
    {
        "fidelity": lambda: fidelity(other, model, X),
        "latency": lambda: latency(model, other, X, seconds=1e-3),
        "cost": lambda: cost(model, X),
        "survey": lambda: survey(model, X),
        "find_cut": lambda: find_cut(model, "fc1:fc2", X),
        "capture": lambda: capture(model, [find_cut(other, "fc1", X)], [X]),
    }[measure]()
    assert same_held(held_by(model), before)
    assert model.cache is None
    copy.deepcopy(model)


def test_what_cannot_be_copied_is_named() -> None:
    model = Net().eval()
    model.fc2.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"TypeError: cannot pickle .* remove the attribute 'lock' of 'fc2'"):
        quickly(model)


# --- hooks ---


def test_hooks_that_are_gone_are_named() -> None:
    model = Net().eval()
    model.fc1.register_forward_hook(lambda *_: None)
    model.fc2.register_full_backward_hook(lambda *_: None)
    report = quickly(model).report
    assert report.hooked == ("fc1", "fc2")
    assert "hooks are gone with the modules that were replaced: fc1, fc2" in str(report)
    assert report.to_dict()["hooks_gone"] == ["fc1", "fc2"]
    inside = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 2)).eval()
    inside[0][1].register_forward_pre_hook(lambda *_: None)
    assert quickly(inside, {"0": Block(2)}).report.hooked == ("0.1",)
    assert quickly(Net().eval()).report.hooked == ()


class Observer:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def see(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen.append(output)


@pytest.mark.parametrize("blocks", [SPAN, ONE, {"fc2": Block(2)}], ids=["graph", "chain", "later chain"])
def test_hooks_on_modules_that_stay_go_on_working(blocks: dict[str, Block]) -> None:
    model, observer, closed = Net().eval(), Observer(), []
    model.fc3.register_forward_hook(observer.see)
    model.fc3.register_forward_hook(lambda module, args, output: closed.append(output))
    smaller = quickly(model, blocks).model
    assert all(type(one) is Tensor for one in observer.seen)
    observer.seen.clear(), closed.clear()
    output = run(smaller)
    assert torch.equal(observer.seen[0], output)
    assert torch.equal(closed[0], output)
    run(model)
    assert len(observer.seen) == len(closed) == 2


def test_hooks_of_modules_that_become_a_graph_are_refused() -> None:
    model = nn.Sequential(Net(), Net()).eval()
    model[0].fc3 = nn.Linear(5, 6).eval()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="'0' carries forward hooks, which a graph would lose"):
        quickly(model, {"0.fc2:1.fc2": Block(2)})


def test_a_hook_that_changes_the_input_of_a_block_is_part_of_it() -> None:
    doubling, plain = Net().eval(), Net().eval()
    doubling.fc1.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    with torch.no_grad():
        plain.fc1.weight.mul_(2)
    ours, theirs = (quickly(one, ONE).model for one in (doubling, plain))
    torch.testing.assert_close(run(ours), run(theirs), rtol=1e-4, atol=1e-4)


def test_backward_hooks_change_no_jacobian() -> None:
    model = Net().eval()
    model.fc2.register_full_backward_hook(lambda module, given, _: tuple(7 * one for one in given))
    assert same_layers(quickly(model).model, quickly(Net().eval()).model)


# --- inputs that are changed in place ---


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[:, 0] = 0
        return super().forward(x)


class Copying(Net):
    """The same, without changing anything."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([torch.zeros_like(x[:, :1]), 2 * x[:, 1:]], 1))


def test_the_tensors_of_the_caller_stay_as_they_were() -> None:
    inputs = {"x": X.clone()}
    compression = quickly(InPlace().eval(), {"fc2": Block(2)}, inputs)
    model, smaller, x = InPlace().eval(), compression.model, inputs["x"]
    compression.evaluate(x)
    compare_networks(model, smaller, x)
    fidelity(smaller, model, x)
    cost(model, x)
    survey(model, x)
    latency(model, smaller, x, seconds=1e-3)
    tenflex.sample(model, x)
    assert torch.equal(x, X)


@pytest.mark.parametrize("blocks", [{"fc2": Block(2)}, {"": Block(3)}], ids=str)
def test_every_pass_sees_a_fresh_copy(blocks: dict[str, Block]) -> None:
    one, other = (quickly(kind().eval(), blocks, X.clone()) for kind in (InPlace, Copying))
    torch.testing.assert_close(run(one.model), run(other.model))
    model = InPlace().eval()
    found, expected = tenflex.sample(model, X), tenflex.sample(Copying().eval(), X)
    torch.testing.assert_close(found.jacobians, expected.jacobians)
    torch.testing.assert_close(found.outputs, expected.outputs)
    assert fidelity(model, Copying().eval(), X.clone()).relative_error == 0


# --- other threads ---


def at_once(*functions: Callable[[], Any]) -> list[Any]:
    """What functions return that run in a thread each, and start together."""
    found: list[Any] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def work(index: int) -> None:
        barrier.wait()
        try:
            found[index] = functions[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(functions))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return found


def test_networks_of_other_threads_run_while_one_is_traced() -> None:
    other, expected, done = Net().eval(), run(Net().eval()), threading.Event()

    def serve() -> int:
        calls = 0
        while not done.is_set():
            assert torch.equal(run(other), expected)
            calls += 1
        return calls

    def cut() -> None:
        try:
            for _ in range(20):
                find_cut(Net().eval(), "fc1:fc3", X)
        finally:
            done.set()

    calls, cuts = at_once(serve, cut)
    assert cuts is None
    assert isinstance(calls, int), calls
    assert calls > 20


def test_compiled_functions_of_other_threads_run_while_one_is_traced() -> None:
    inside, after = threading.Event(), threading.Event()

    class Waiting(Net):
        def forward(self, x: Tensor) -> Tensor:
            if not isinstance(x, Tensor):  # it is being traced
                inside.set()
                after.wait(20)
            return super().forward(x)

    def serve() -> Tensor:
        compiled = torch.compile(lambda x: x + 1, backend="eager")
        inside.wait(20)
        try:
            return compiled(X)
        finally:
            after.set()

    served, cut = at_once(serve, lambda: find_cut(Waiting().eval(), "fc1:fc3", X))
    assert torch.equal(served, X + 1), served
    assert cut.parent == ""


@pytest.mark.parametrize("shared", [False, True], ids=["two networks", "one network"])
def test_two_compressions_at_once(shared: bool) -> None:
    model, expected = Keeping().eval(), quickly(Net().eval()).model
    models = (model, model) if shared else (model, Net().eval())
    before = held_by(model)
    found = at_once(*(partial(quickly, one) for one in models))
    for one in found:
        assert isinstance(one, tenflex.Compression), one
        assert same_layers(one.model, expected)
    assert same_held(held_by(model), before)
    assert (nn.Module.__call__, nn.Module.__getattr__) == PATCHED
    assert torch.backends.mha.get_fastpath_enabled()


# --- weights that a hook makes ---


def weight_normed(model: Net, name: str) -> None:
    nn.utils.weight_norm(getattr(model, name))


def spectral_normed(model: Net, name: str) -> None:
    nn.utils.spectral_norm(getattr(model, name))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [weight_normed, spectral_normed], ids=lambda one: one.__name__)
@pytest.mark.parametrize("name", ["fc1", "fc3"], ids=["replaced", "kept"])
def test_weights_that_a_hook_makes(change: Callable[[Net, str], None], name: str, tmp_path: Path) -> None:
    model = Net().eval()
    change(model, name)
    model.eval()(X)
    before = held_by(model)
    compression = quickly(model)
    assert same_held(held_by(model), before)
    assert compression.report.hooked == ()
    smaller = compression.model
    if name == "fc3":
        kept = dict(smaller.fc3.named_parameters())
        with torch.no_grad():
            torch.testing.assert_close(smaller.fc3(X[:, :5]), model.fc3(X[:, :5]))
            next(iter(kept.values())).mul_(2)  # the weight follows its own parameters
            assert not torch.equal(smaller.fc3(X[:, :5]), model.fc3(X[:, :5]))
    compression.save(tmp_path / "small")
    assert torch.equal(run(tenflex.load(tmp_path / "small", model)), run(smaller))


# --- inference mode ---


class Cached(Net):
    """A cache that is no buffer, made when first called."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = torch.linspace(1, 2, 8)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x) * self.cache))))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("blocks", [SPAN, ONE], ids=["graph", "chain"])
def test_the_same_bits_whatever_the_mode(mode: Any, blocks: dict[str, Block]) -> None:
    expected = quickly(Cached().eval(), blocks).model
    with mode():
        model = Cached().eval()
        run(model)
        inside = quickly(model, blocks, X.clone()).model
    outside = quickly(model, blocks).model
    for one in (inside, outside):
        assert same_layers(one, expected)
        one(X).sum().backward()  # it can be trained
    assert mode is torch.no_grad or model.cache.is_inference()


def test_measuring_time_leaves_no_cache_of_inference_mode() -> None:
    model = Cached().eval()
    latency(model, Net().eval(), X, seconds=1e-3)
    model(X).sum().backward()


# --- the door ---


def with_parameter(change: Callable[[Tensor], Tensor]) -> Net:
    model = Net().eval()
    model.fc2.weight = nn.Parameter(change(model.fc2.weight.detach()), requires_grad=False)
    return model


def with_buffer(buffer: Tensor) -> Net:
    model = Net().eval()
    model.register_buffer("table", buffer)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()).eval()


def scripted() -> Any:
    return torch.jit.script(nn.Sequential(nn.Linear(6, 3)).eval())


def jit_traced() -> Any:
    return torch.jit.trace(Net().eval(), X)


def exported() -> Any:
    return torch.export.export(Net().eval(), (X,))


def quantised() -> Any:
    return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})


def nested() -> Tensor:
    return torch.nested.nested_tensor([X[:2], X[:3]])


DOOR: dict[str, tuple[Callable[[], Any], str]] = {
    "compiled": (lambda: quickly(torch.compile(Net().eval())), r"result of torch\.compile: pass model\._orig_mod"),
    "meta": (lambda: quickly(Net().eval().to("meta")), r"'fc1\.weight' .* on the meta device"),
    "meta buffer": (lambda: quickly(with_buffer(torch.ones(2, device="meta"))), "'table' .* on the meta device"),
    "scripted": (lambda: quickly(scripted(), {"0": Block(2)}), "ScriptModule.*pass the module that it was made from"),
    "traced": (lambda: quickly(jit_traced()), "ScriptModule"),
    "exported": (lambda: quickly(exported()), "got an ExportedProgram: pass the module that was exported"),
    "exported module": (lambda: quickly(exported().module()), "torch.export made, at the network: pass the module"),
    "unflattened": (lambda: quickly(torch.export.unflatten(exported())), "torch.export made, at the network"),
    "quantised": (lambda: quickly(quantised()), r"'fc1' \(Linear\) is quantised: compress the network first"),
    "quantised buffer": (
        lambda: quickly(with_buffer(torch.quantize_per_tensor(X, 0.1, 0, torch.qint8))),
        r"'table' .* is quantised \(torch\.qint8\): use \.dequantize\(\)",
    ),
    "fp8": (lambda: quickly(with_parameter(lambda one: one.to(torch.float8_e4m3fn))), "float8_e4m3fn.* convert it"),
    "sparse parameter": (lambda: quickly(with_parameter(Tensor.to_sparse)), r"'fc2\.weight' .* is sparse"),
    "sparse buffer": (lambda: quickly(with_buffer(X.to_sparse_csr())), r"'table' .* \(torch\.sparse_csr\): convert"),
    "lazy": (lambda: quickly(lazy(), {"0": Block(2)}), r"'0\.weight' has no shape yet"),
    "lazy buffer": (lambda: quickly(lazy()[1:], {"0": Block(2)}), "has no shape yet"),
    "nested inputs": (lambda: quickly(Net().eval(), SPAN, nested()), "the inputs .* is a nested tensor: pad it"),
    "nested batch": (lambda: quickly(Net().eval(), SPAN, [nested()]), "batch 0 .* is a nested tensor: pad it"),
    "sparse inputs": (lambda: quickly(Net().eval(), SPAN, {"x": X.to_sparse()}), r"is sparse .*\.to_dense\(\)"),
    "meta inputs": (lambda: quickly(Net().eval(), SPAN, X.to("meta")), "on the meta device"),
    "fp8 inputs": (lambda: quickly(Net().eval(), SPAN, X.to(torch.float8_e5m2)), "float8_e5m2"),
    "nested to evaluate": (lambda: fidelity(Net().eval(), Net().eval(), nested()), "inputs .* nested tensor"),
    "sparse to inspect": (lambda: survey(Net().eval(), X.to_sparse()), "input tensor 0 .* is sparse"),
    "meta to inspect": (lambda: survey(Net().eval().to("meta"), X), "on the meta device"),
    "scripted to inspect": (lambda: survey(scripted(), X), "ScriptModule"),
    "scripted to inspect alone": (lambda: tenflex.inspect(scripted()), "ScriptModule"),
    "compiled to inspect alone": (lambda: tenflex.inspect(torch.compile(Net().eval())), "result of torch"),
    "lazy to inspect alone": (lambda: tenflex.inspect(lazy()), r"'0\.weight' has no shape yet"),
    "no module to inspect": (lambda: tenflex.inspect("network"), r"expected a torch\.nn\.Module, got str"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("call", "message"), DOOR.values(), ids=DOOR.keys())
def test_refused_at_the_door(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_network_without_numbers_can_be_looked_at_alone() -> None:
    assert tenflex.inspect(Net().to("meta")) == tenflex.inspect(Net())


def test_refused_before_any_pass() -> None:
    passes: list[int] = []

    class Counted(Net):
        def forward(self, x: Tensor) -> Tensor:
            passes.append(len(x))
            return super().forward(x)

    model = Counted().eval()
    model.fc2.forward = partial(F.linear, weight=model.fc2.weight)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="a `forward` of its own"):
        quickly(model)
    assert passes == []


@pytest.mark.parametrize("blocks", [{"fc1:fc2": Block(3, factor=2)}, ONE], ids=str)
def test_the_default_device_is_the_users(blocks: dict[str, Block]) -> None:
    model, settings = Net().eval(), {**QUICK, "basis": tenflex.Smooth(tenflex.BSpline(4))}
    expected = compress(model, X, blocks, **settings).model
    torch.set_default_device("meta")
    try:
        compression = compress(model, X, blocks, **settings)
        compression.evaluate(X)
        survey(model, X)
        compare_networks(model, compression.model, X)
        texts = [str(one) for one in compression.solutions.values()]
    finally:
        torch.set_default_device(None)
    assert same_layers(compression.model, expected)
    assert all(texts)


def test_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quickly(Keeping().eval())


def test_copies_share_nothing() -> None:
    model = Keeping().eval()
    new = copied(model, X)
    ours = {id(one) for one in reachable(new) if isinstance(one, (Tensor, nn.Module, dict, list))}
    theirs = {id(one) for one in reachable(model) if isinstance(one, (Tensor, nn.Module, dict, list))}
    assert not ours & theirs


class Keyed(nn.Module):
    """Blocks whose names patterns cannot tell from spans and wildcards."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 30), nn.Tanh()) for name in ("a:b", "c*")})
        self.last = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rows["a:b"](x) + self.rows["c*"](x))


def test_keys_that_look_like_spans_and_wildcards_are_left_out() -> None:
    names = [one.name for one in survey(Keyed().eval(), X).candidates]
    assert {"", "last", "last.0"} < set(names)
    assert not any(key in name for key in ("a:b", "c*") for name in names)


class Experts(nn.Module):
    """Each input is sent to one of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first, out = x[:, 0] > 0, x.new_zeros(len(x), 3)
        out[first], out[~first] = self.experts[0](x[first]), self.experts[1](x[~first])
        return out


def test_experts_are_told_from_blocks_that_all_inputs_pass() -> None:
    with pytest.raises(ValueError, match=r"block 'experts\.0': expected rows of each of 16 inputs .* name the module"):
        quickly(Experts().eval(), {"experts.0": Block(2)})
    obstacles = [one.obstacle for one in survey(Experts().eval(), X[:16]).candidates if "experts." in one.name]
    assert all(obstacles)
    with pytest.raises(ValueError, match=r"never called in the forward pass of the 7 inputs .* go another way"):
        find_cut(Experts().eval(), "experts.2", X[:7])


class Frames(nn.Module):
    """A block of frames, in rows of one input after another or, time first, of one moment after another."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.frame = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3))
        self.head = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "inputs first":
            return self.head(self.frame(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1))
        if self.order == "moments first":
            return self.head(self.frame(x.transpose(0, 1).flatten(0, 1)).unflatten(0, x.shape[1::-1]).mean(0))
        return self.head(sum(self.frame(torch.cat([x[:, 0], x[:, 1]])).chunk(2)))


@pytest.mark.parametrize("order", ["moments first", "joined"])
def test_rows_that_do_not_come_input_by_input_are_refused(order: str) -> None:
    """They would be held out apart from rows of their own input, and errors on them flatter."""
    frames = torch.randn(80, 4, 6, generator=torch.Generator().manual_seed(0))
    quickly(Frames("inputs first").eval(), {"frame": Block(2)}, frames)
    model = Frames(order).eval()
    with pytest.raises(ValueError, match=r"block 'frame': expected the rows of an input to arrive one after another"):
        quickly(model, {"frame": Block(2)}, frames)
    [told] = [one.obstacle for one in tenflex.inspect(model, frames).candidates if one.name == "frame"]
    assert "expected the rows of an input to arrive one after another" in str(told)
    planned = tenflex.compress(model, frames, budget="85%", basis=Monomial(2), solver=ConstrainedALS(2))
    assert not any(name.startswith("frame") for name in planned.plan.blocks)


class InHalf(nn.Module):
    """Layers in half precision by autocast, on numbers of single precision and back to them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.body(x)
        return y.float()


@pytest.mark.parametrize("kind", ["autocast", "scripted"])
def test_a_budget_for_networks_with_parts_of_other_kinds(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rest = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 3))
        scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Tanh()))
        model = InHalf().eval() if kind == "autocast" else nn.Sequential(scripted, rest).eval()
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    assert tenflex.inspect(model, x).candidates
    result = compress(model, x, budget="70%", basis=Monomial(2), solver=ConstrainedALS(2))
    assert result.report.after.parameters <= 0.7 * result.report.before.parameters
    assert result.evaluate(x).relative_error < 0.6


class Encoder(nn.Module):
    """A transformer with positions first, as PyTorch has them unless told otherwise, or with inputs first."""

    def __init__(self, inputs_first: bool) -> None:
        super().__init__()
        self.inputs_first = inputs_first
        layer = nn.TransformerEncoderLayer(6, 2, 24, 0.0, batch_first=inputs_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inputs_first else x.transpose(0, 1)
        return self.head(self.layers(x).mean(1 if self.inputs_first else 0))


@pytest.mark.parametrize("positions", [5, 16])  # 16 is how many inputs a network is tried with
@pytest.mark.parametrize("metric", [None, Downstream()])
def test_positions_before_inputs_are_the_same_as_after_them(positions: int, metric: OutputMetric | None) -> None:
    """The same rows are drawn and held out, with the same sums behind the blocks and the same metric."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = Encoder(True).eval(), Encoder(False).eval()
    second.load_state_dict(first.state_dict())
    x, fresh = (torch.randn(60, positions, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    torch.testing.assert_close(first(x), second(x))
    blocks = {f"layers.layers.{place}.linear1:layers.layers.{place}.linear2": Block(4) for place in (0, 1)}
    settings = {"basis": Monomial(2), "solver": ConstrainedALS(2), "metric": metric}
    one, other = (compress(model, x, blocks, **settings) for model in (first, second))
    assert [cut.cut.axis for cut in (*one.replacements, *other.replacements)] == [0, 0, 1, 1]
    assert [str(block.sampled) for block in one.report.blocks] == [str(block.sampled) for block in other.report.blocks]
    torch.testing.assert_close(one.model(fresh), other.model(fresh), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(one.report.blocks, other.report.blocks, strict=True):
        assert ours.output_error == pytest.approx(theirs.output_error, rel=1e-4)


def test_a_network_with_positions_first_is_surveyed_planned_and_saved(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Encoder(False).eval()
    x = torch.randn(80, 5, 6, generator=torch.Generator().manual_seed(0))
    assert any(one.name.endswith("linear2") and one.obstacle is None for one in tenflex.inspect(model, x).candidates)
    result = compress(model, x, budget="75%", basis=Monomial(2), solver=ConstrainedALS(2))
    assert any("linear1" in name for name in result.plan.blocks)
    result.save(tmp_path / "small")
    back = tenflex.Compression.load(tmp_path / "small", model)
    assert torch.equal(back.model(x), result.model(x))
    assert [one.cut for one in back.replacements] == [one.cut for one in result.replacements]


class Double(Net):
    """Computed in single precision, given in double."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(1e3 * x).double()


def test_outputs_are_judged_by_the_precision_that_they_were_computed_in() -> None:
    x = torch.cat([X] * 8)
    assert quickly(Double().eval(), x=x).model(x).dtype == torch.float64


class OfComplex(Net):
    """Complex numbers by their parts."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.view_as_real(x).flatten(1))


def test_a_budget_for_complex_inputs() -> None:
    x = torch.view_as_complex(torch.randn(100, 3, 2, generator=torch.Generator().manual_seed(0)))
    assert compress(OfComplex().eval(), x, budget="90%").report.after.parameters <= 0.9 * 124


class Mixed(nn.Module):
    """Half the precision first, and single precision then."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8).bfloat16(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.bfloat16()).float())


def test_a_block_that_ends_in_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a:b' is given torch\.bfloat16 and gives torch\.float32: name a block that"):
        quickly(Mixed().eval(), {"a:b": Block(2)})


class Pair(NamedTuple):
    """Two outputs by name."""

    one: Tensor
    other: Tensor


class Named(nn.Module):
    """A call by name, and an output of a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Pair:
        found = self.inner(input=x)
        return Pair(found, 2 * found)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("inner", r"one tensor, without a name, as in block\(x\), but 'inner' is called with \(input="),
        ("", "returns a Pair of .*, which is a class of its own: .* or return a plain one"),
    ],
)
def test_what_is_named_is_told(block: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quickly(Named().eval(), {block: Block(2)})


def test_parametrized_layers_have_no_thin_ones() -> None:
    model = Net()
    orthogonal(model.fc2)
    with pytest.raises(ValueError, match=r"remove the parametrization first \(torch\.nn\.utils\.parametrize"):
        compress(model.eval(), X, {"fc2": LowRank(1)})


class OfNumbers(nn.Module):
    """A block that is given a number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.inner = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), nn.Sequential(Rows(), nn.Linear(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.score(x))


class Rows(nn.Module):
    """Numbers as rows of one."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None]


def test_blocks_of_numbers_without_an_axis_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"what arrives at 'inner' is float32 \(16,\): begin where numbers have become"
    ):
        quickly(OfNumbers().eval(), {"inner": Block(2)})
