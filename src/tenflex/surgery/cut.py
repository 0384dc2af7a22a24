"""How a block is taken out of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, fx, nn

from tenflex.surgery.carry import Passed, Way, begin_, hide_, shadow
from tenflex.surgery.facts import Facts, is_count, is_list_of_text, read_fields, require_form
from tenflex.surgery.fused import leave_fused_
from tenflex.surgery.parts import MODULES, NUMBER, Divided, Parts, Several
from tenflex.surgery.paths import below, encloses, get_module, join, set_module_
from tenflex.surgery.region import Region, find_region
from tenflex.surgery.rewrite import block_alone
from tenflex.surgery.trace import trace


@dataclass(frozen=True)
class Cut:
    """How a block is taken out of a network: a plain value, found once by `find_cut`, that needs no input afterwards.

    A *chain* is a row of modules whose outputs arrive unchanged at the next one: the new module goes to the place of
    the first, and the others pass on what they are given. Otherwise functions stand between the modules: they are given
    something without numbers that carries what the new module gave to the last module (`tenflex.surgery.carry`). In
    both, every module around the block stays as it is, with its class, its forward pass, its arguments, whatever it
    returns, and its hooks. Only the block's own way is fixed: an input that would take another branch inside the block
    than the example did raises ValueError.

    Args:
        name: The name of the block, such as "fc1:fc3".
        first: The module where the block's input arrives; "" is the network itself.
        last: The module that the block's output leaves.
        passed: The other modules of the block, in the order of their calls: in a chain they become `nn.Identity`,
            otherwise `Passed`.
        parent: The module whose graph shows what the block alone computes; None for a chain.
        facts: What tracing the parent needs to know of its input; None for a chain.
        read: The parameters and buffers of modules around the block that only the block uses, which disappear; None if
            the graph must show them, as for files of earlier versions.
        functions: What is called between the modules and how, which must be the same in every forward pass; None if
            the first one will show it.
        parts: The tensors that leave the block, where there are several: its layer gives all of them in one row, which
            is divided again where they leave; or one with a single number for each sample; None for any other tensor.
        calls: How often the block is called in a forward pass, as a tower that two inputs share; only chains are called
            more than once.
        axis: Where the inputs of the network stand in what arrives at the block and leaves it: 0, or 1 where positions
            come first, as with `batch_first=False`.
    """

    name: str
    first: str
    last: str
    passed: tuple[str, ...] = ()
    parent: str | None = None
    facts: Facts | None = None
    read: tuple[str, ...] | None = None
    functions: tuple[str, ...] | None = None
    parts: Parts | None = None
    calls: int = 1
    axis: int = 0

    def __post_init__(self) -> None:
        if self.name not in (self.first, f"{self.first}:{self.last}"):
            raise ValueError(f"expected the name {self.first!r} or '{self.first}:{self.last}', got {self.name!r}")
        if (self.parent is None) != (self.facts is None):
            raise ValueError(f"expected both parent and facts (a graph) or neither (a chain), got {self!r}")
        if self.parent is None and (self.first, *self.passed)[-1] != self.last:
            raise ValueError(f"expected a chain that ends with {self.last!r}, got {(self.first, *self.passed)}")
        if self.parent is not None and not (encloses(self.parent, self.first) and encloses(self.parent, self.last)):
            raise ValueError(f"expected a parent that holds {self.first!r} and {self.last!r}, got {self.parent!r}")

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules of the block, the first one first."""
        return (self.first, *self.passed)

    @property
    def place(self) -> str:
        """Where the layer stands: inside of a module that divides its outputs, if one module gave several."""
        return join(self.first, "layer") if self._wraps else self.first

    @property
    def several(self) -> Parts | None:
        """The tensors that leave the block, if there are several."""
        return None if self.parts is None or self.parts.kind == NUMBER else self.parts

    @property
    def _wraps(self) -> bool:
        return self.parts is not None and self.parent is None and not self.passed

    def function(self, model: nn.Module) -> nn.Module:
        """The block alone, `(S, *in) -> (S, *out)`: it shares its parameters with the network, which is not modified.

        Of several tensors that leave it all numbers stand side by side.

        Raises:
            ValueError: if the network lacks its modules, or its parent is another than when the cut was found.
        """
        if self.parent is None:
            return Subnetwork([get_module(model, path) for path in self.modules], self.parts)
        region = self._region(model)
        if self.facts is None or region.traced.facts.digest != self.facts.digest:
            raise ValueError(
                f"expected the network in which {self.name!r} was found, got one whose module {self.parent!r} differs: "
                f"take the function from the original network"
            )
        return Subnetwork([block_alone(region)], self.parts)

    def replace_(self, model: nn.Module, layer: nn.Module) -> nn.Module:
        """Put `layer` in the place of the block, in place; returns the network, or `layer` in the place of all of it.

        If functions stand between the modules, `layer` is given a forward hook, and is no layer to call by itself then.

        Raises:
            TypeError: if `layer` is not a module.
            ValueError: if the network lacks the modules of the block.
        """
        if not isinstance(layer, nn.Module):
            raise TypeError(
                f"expected a torch.nn.Module to put in the place of {self.name!r}, got {type(layer).__name__}"
            )
        self._require_modules(model)
        if self.parent is None:
            model = self._replace_chain_(model, layer)
        else:
            self._replace_span_(model, layer)
        leave_fused_(model, self.first)
        return model

    def _replace_chain_(self, model: nn.Module, layer: nn.Module) -> nn.Module:
        several = self.parts if self._wraps else None
        model = set_module_(model, self.first, layer if several is None else Several(layer, several))
        for path in self.passed:
            parts = self.parts if path == self.last else None
            module = nn.Identity() if parts is None else Divided(parts)
            set_module_(model, path, module.train(layer.training))
        return model

    def _replace_span_(self, model: nn.Module, layer: nn.Module) -> None:
        read = self._region(model).own("get_attr") if self.read is None else self.read
        way, first = Way(self.name, self.functions), get_module(model, self.first)
        begin_(layer, first, way)
        set_module_(model, self.first, layer)
        for path in self.passed:
            module = shadow(get_module(model, path))
            set_module_(model, path, Passed(path, module, way, path == self.last, self.parts))
        for path in read:
            owner, _, name = path.rpartition(".")
            hide_(get_module(model, owner), name)

    def _require_modules(self, model: nn.Module) -> None:
        """Raise ValueError unless all modules of the block are there, before one is changed."""
        for path in self.modules:
            get_module(model, path)

    def _region(self, model: nn.Module) -> Region:
        """The block in the graph of its parent."""
        self._require_modules(model)
        parent = self.parent or ""
        traced = trace(get_module(model, parent), parent, (self.first, self.last), self.facts or Facts())
        return find_region(traced, below(self.first, parent), below(self.last, parent))

    def to_dict(self) -> dict[str, Any]:
        """The cut in values that JSON knows."""
        facts = None if self.facts is None else self.facts.to_dict()
        ends = {"name": self.name, "first": self.first, "last": self.last}
        names = {"passed": self.passed, "read": self.read, "functions": self.functions}
        listed = {name: None if one is None else list(one) for name, one in names.items()}
        parts = {} if self.parts is None else {"parts": self.parts.to_dict()}  # as files without were before
        others = {"calls": (self.calls, 1), "axis": (self.axis, 0)}
        unusual = {name: value for name, (value, usual) in others.items() if value != usual}
        return {**ends, **listed, "parent": self.parent, "facts": facts, **parts, **unusual}

    @staticmethod
    def from_dict(values: object) -> Cut:
        """The cut that `to_dict` wrote.

        Raises:
            ValueError: if the values have another form.
        """
        usual = {"read": None, "functions": None, "parts": None, "calls": 1, "axis": 0}
        read = read_fields("a cut", values, Cut, usual)
        for name in ("name", "first", "last"):
            require_form(name, read[name], isinstance(read[name], str), "a string")
        require_form("passed", read["passed"], is_list_of_text(read["passed"]), "a list of module names")
        for name in ("read", "functions"):
            good = read[name] is None or is_list_of_text(read[name])
            require_form(name, read[name], good, "a list of strings or None")
        named = read["parent"] is None or isinstance(read["parent"], str)
        require_form("parent", read["parent"], named, "a string or None")
        require_form("calls", read["calls"], is_count(read["calls"]), "a whole number of at least 1")
        require_form("axis", read["axis"], type(read["axis"]) is int and read["axis"] in (0, 1), "0 or 1")
        facts = None if read["facts"] is None else Facts.from_dict(read["facts"])
        own, functions = (None if read[name] is None else tuple(read[name]) for name in ("read", "functions"))
        parts = None if read["parts"] is None else Parts.from_dict(read["parts"])
        ends = read["name"], read["first"], read["last"]
        how = read["calls"], read["axis"]
        return Cut(*ends, tuple(read["passed"]), read["parent"], facts, own, functions, parts, *how)


class Subnetwork(nn.Module):
    """Modules one after another, on a copy of the input, so that none of them can change it in place.

    Args:
        modules: The modules, which stay part of the network that they come from.
        parts: The tensors that the last one gives, where there are several; they are joined.
    """

    def __init__(self, modules: Sequence[nn.Module], parts: Parts | None = None) -> None:
        super().__init__()
        self.parts = parts
        self.steps = nn.ModuleList(modules)
        self.training = self.steps.training = modules[0].training

    def forward(self, inputs: Float[Tensor, "S *in"]) -> Float[Tensor, "S *out"]:
        outputs: Any = inputs.clone()
        for step in self.steps:
            # Called as usual, a graph that fails would print where.
            outputs = step.forward(outputs) if isinstance(step, fx.GraphModule) else step(outputs)
        if self.parts is None:
            return outputs
        several = outputs if self.parts.kind == MODULES else self.parts.listed(outputs)
        return self.parts.joined(several)


def require_disjoint(cuts: Iterable[Cut]) -> None:
    """Raise ValueError if two cuts share a module, or a module of one lies inside a module of the other."""
    seen: list[Cut] = []
    for cut in cuts:
        for other in seen:
            pairs = [(one, two) for one in cut.modules for two in other.modules]
            shared = [one for one, two in pairs if encloses(one, two) or encloses(two, one)]
            if shared:
                raise ValueError(
                    f"expected blocks that do not overlap, got {other.name!r} and {cut.name!r}, which share "
                    f"{shared[0]!r}: leave one out"
                )
        seen.append(cut)
