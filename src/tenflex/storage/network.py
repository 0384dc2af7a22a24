"""Compressed networks on disk, read without pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenflex._version import __version__
from tenflex.checks import near_names
from tenflex.nn import layer_from_dict
from tenflex.storage.earlier import renamed, tied_alike
from tenflex.storage.factory import Factory, architecture, name_of
from tenflex.storage.files import (
    CONFIG,
    DETAILS,
    PAGE,
    REPORT,
    SETTINGS,
    WEIGHTS,
    all_beside,
    are_settings,
    as_json,
    page_of,
    read_file,
    report_mark,
    require_own_folder,
    write_tensors,
)
from tenflex.storage.fingerprint import Sums, distance, fingerprint, read_fingerprint, same_sums, slack, sums_of
from tenflex.storage.identity import differences, identity_of
from tenflex.storage.probe import Probe
from tenflex.storage.state import Stored, hidden_tensors, is_extra, same_bits
from tenflex.surgery import Cut
from tenflex.surgery.twin import duplicate

FORMAT, SECOND_FORMAT, FIRST_FORMAT = "tenflex/3", "tenflex/2", "tenflex/1"

EXPECTED = "expected a model of the architecture that was compressed"

MADE = "tenflex_made"
"""The attribute in which a compressed network remembers how it was made, for when it is compressed or saved again."""

CHANGED = (
    "the weights have changed since all this was measured: the errors are those of before, and result.evaluate or "
    "`tenflex evaluate` tells those of now"
)
"""The warning of a report whose network was trained on in a loop of the user's own."""

DAMAGE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What is raised on values of the wrong kind or size; RuntimeError is the parent of RecursionError."""


@dataclass(frozen=True)
class Replacement:
    """Where a layer stands in the place of a block.

    Args:
        cut: How the block was taken out.
        layer: The settings of the layer, as `layer_to_dict` gives them.
    """

    cut: Cut
    layer: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"cut": self.cut.to_dict(), "layer": dict(self.layer)}

    @classmethod
    def from_dict(cls, saved: Any) -> Replacement:
        """The replacement that `to_dict` described; the layer's settings are checked when it is made."""
        if not isinstance(saved, Mapping) or set(saved) != {"cut", "layer"}:
            raise ValueError(f"a replacement has a cut and a layer, got {saved!r}")
        return cls(Cut.from_dict(saved["cut"]), saved["layer"])


@dataclass(frozen=True)
class Made:
    """How a compressed network came about.

    Args:
        placed: The replacements that made it of its original architecture, in order.
        plan: The settings of the last compression, in values that JSON knows.
        report: Its report, likewise.
        probe: The form of its inputs.
        details: What else its page shows, likewise.
        made_by: The name of the function that makes its original architecture, `package.module:function`, if known.
        weights: The sums of the weights that the report is of; None where they are not known.
        original: The fingerprint of the original's weights; None where it is not known.
    """

    placed: tuple[Replacement, ...]
    plan: Mapping[str, Any]
    report: Mapping[str, Any]
    probe: Probe | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    made_by: str | None = None
    weights: Sums | None = None
    original: Sequence[float] | None = None

    def now(self, model: nn.Module) -> Made:
        """The same, with a report that says so if the weights of the network are no longer those that it is of."""
        if not self.report or self.weights is None or same_sums(self.weights, sums_of(model)):
            return self
        warnings = [one for one in self.report.get("warnings", ()) if one != CHANGED]
        return replace(self, report={**self.report, "warnings": [*warnings, CHANGED], "changed": True})

    def by(self, factory: Factory | None) -> Made:
        """The same, with a function that makes the architecture; None for the one that is known."""
        return self if factory is None else replace(self, made_by=name_of(factory))


def made_by(model: nn.Module) -> str | None:
    """The name of the function that makes the original architecture of a compressed network, if it is known."""
    made: Made | None = vars(model).get(MADE)
    return None if made is None else made.made_by


def placed_in(model: nn.Module) -> tuple[Replacement, ...]:
    """The replacements that made a network of its original architecture, in order; none in one that is no result."""
    made: Made | None = vars(model).get(MADE)
    return () if made is None else made.placed


def weights_in(model: nn.Module) -> Sums | None:
    """The sums of the weights that a compressed network had when its report was made; None if that is not known."""
    made: Made | None = vars(model).get(MADE)
    return None if made is None else made.weights


def original_in(model: nn.Module) -> Sequence[float] | None:
    """The fingerprint of the weights of the network that a compressed one was made of; None if that is not known."""
    made: Made | None = vars(model).get(MADE)
    return None if made is None else made.original


def details_in(model: nn.Module) -> Mapping[str, Any]:
    """What the page of a compressed network shows besides; nothing where that is not known."""
    made: Made | None = vars(model).get(MADE)
    return {} if made is None else made.details


def remember_(model: nn.Module, made: Made) -> None:
    """Let a network know how it was made, in place, with a report that is of its weights as they are."""
    vars(model)[MADE] = replace(made, weights=sums_of(model))


def save(model: nn.Module, folder: str | Path, *, made_by: Factory | None = None) -> None:
    """Save a compressed network again: one that was loaded, or trained further in a loop of one's own.

    Ties between weights are kept, and the report that is written is that of the compression: what training has changed
    since, `tenflex evaluate` tells.

    Args:
        model: The network of a compression, or what `load` gave.
        folder: Where to save, as `Compression.save` does.
        made_by: What makes the original architecture, as for `Compression.save`; what is known of it stays if left
            out.

    Raises:
        OSError: if the folder cannot be made or written.
        TypeError: if `model` is not a module, a layer is made of a basis or modes of your own that no `add_` made
            known, or what a module's `get_extra_state` gives cannot be stored.
        ValueError: if it is no compressed network, or the folder holds other files than a previous result.

    Example:
        >>> compress(model, inputs, {"": Block(rank=3)}).save("small")
        >>> smaller = load("small", model)  # and a training loop of one's own
        >>> save(smaller, "again")
        >>> torch.equal(load("again", model)(inputs), smaller(inputs))
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    made = vars(model).get(MADE)
    if not isinstance(made, Made):
        raise ValueError(
            "expected a compressed network, the model of a compression or what tenflex.load gave, got another one: "
            "save an ordinary network as its state_dict"
        )
    save_compressed(folder, model, made.by(made_by))


WHAT = "plan", "original", "replacements"
"""What tells a result from another one, but for the numbers of its layers."""


def save_compressed(folder: str | Path, model: nn.Module, made: Made) -> None:
    """Write a compressed network.

    `model.safetensors` holds the weights and, in its header, the configuration: it alone is read again. All files are
    written out before the first is put in its place, by one rename, so there is the previous result or the new one and
    never half of each. `config.json`, `report.json` and `details.json` are for people and other programs. The page of
    another result, which was here before, goes, and so do the settings that made it.
    """
    folder = Path(folder)
    require_own_folder(folder)
    require_known(made.placed)
    state = Stored.of(model)
    config = {
        "format": FORMAT,
        "versions": {"tenflex": __version__, "torch": torch.__version__},
        "plan": dict(made.plan),
        **({} if made.made_by is None else {"made_by": made.made_by}),
        **({} if made.original is None else {"original": list(made.original)}),
        "replacements": [one.to_dict() for one in made.placed],
        "aliases": dict(state.aliases),
        "extras": dict(state.extras),
    }
    report = dict(made.report)
    before = read_beside(folder / CONFIG)
    header = {**config, "identity": identity_of(model, made.probe), "report": report}
    folder.mkdir(parents=True, exist_ok=True)
    names = WEIGHTS, CONFIG, REPORT, DETAILS
    with all_beside(*(folder / name for name in names)) as (weights, settings, numbers, details):
        write_tensors(weights, state.tensors, header)
        settings.write_text(as_json(config), encoding="utf-8")
        numbers.write_text(as_json(dict(made.report)), encoding="utf-8")
        details.write_text(as_json(dict(made.details)), encoding="utf-8")
    if page_of(folder / PAGE) not in (None, report_mark(made.report)):
        (folder / PAGE).unlink()
    now = json.loads(as_json(config))
    if any(before.get(one) != now.get(one) for one in WHAT) and are_settings(folder / SETTINGS):
        (folder / SETTINGS).unlink()


def load(folder: str | Path, model: nn.Module | None = None, *, trust: str | Iterable[str] | None = None) -> nn.Module:
    """A saved compressed network, with the same bits, in this or another process.

    What is not in the file comes from the architecture, and is compared with what was there when the file was written:
    the classes and settings of modules, tensors that are in no state_dict, and what the network does with made-up
    inputs.

    Args:
        folder: Where `Compression.save` wrote it.
        model: A network of the original architecture; only its structure is used, and it is not changed. It may be on
            the meta device. Left out where the file names what makes it, and `trust` covers that name.
        trust: The function that may be called to make the architecture, "shop.models:classifier", or the module or
            package that it is from, "shop.models"; or several. The name in a file alone runs nothing: whoever wrote the
            file could have named any function of any module that is installed.

    Returns:
        A new module in eval mode, on the CPU.

    Raises:
        FileNotFoundError: if there is no result in `folder`.
        TypeError: if `model` is not a module.
        ValueError: if the file is damaged, of another program, or of another architecture, or names a function that
            is not trusted or does not work.

    Example:
        >>> result = compress(model, inputs, {"": Block(rank=3)})
        >>> result.save("small")
        >>> torch.equal(load("small", model)(inputs), result.model(inputs))
        True
        >>> lenet = tenflex.demo.networks.lenet300()
        >>> result = compress(lenet, torch.rand(60, 784), {"fc1": LowRank(2)})
        >>> result.save("lenet", made_by="tenflex.demo.networks:LeNet300")
        >>> type(load("lenet", trust="tenflex.demo.networks")).__name__
        'LeNet300'
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module of the original architecture, got {type(model).__name__}")
    if model is not None and trust is not None:
        raise ValueError("trust is for loading without a model: expected one of the two, got both; leave one out")
    folder = Path(folder)
    config, tensors = read(folder / WEIGHTS)
    placed = _placed(config, folder)
    model = architecture(config.get("made_by"), trust, folder) if model is None else model
    smaller = _replaced(model, placed)
    state = _state(config, tensors, smaller, folder)
    require_fitting(smaller, state, folder)
    fill_(smaller, state, folder)
    smaller = _complete(smaller.eval(), folder)
    if "identity" in config:
        _require_same(smaller, config["identity"], folder)
    report, details = read_beside(folder / REPORT), read_beside(folder / DETAILS)
    told = config.get("plan", {}), report, _probe(config), details, config.get("made_by")
    remember_(smaller, Made(placed, *told, original=config.get("original")))
    return smaller


def read_beside(path: Path) -> dict[str, Any]:
    """What a file beside a network tells; nothing where it is gone or not readable, for the network does without."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _probe(config: Mapping[str, Any]) -> Probe | None:
    saved = config.get("identity", {}).get("probe")
    return None if saved is None else Probe.from_dict(saved)


def weights_of(original: nn.Module) -> list[float]:
    """A few numbers that tell the weights of an original from others."""
    state = original.state_dict(keep_vars=True).values()
    return fingerprint(*(one for one in state if isinstance(one, Tensor) and one.is_floating_point()))


def require_same_weights(folder: str | Path, original: nn.Module) -> None:
    """Raise ValueError if the network that a saved one is compared with is not the one that it was made of.

    Files of earlier versions do not tell.
    """
    told = read(Path(folder) / WEIGHTS)[0].get("original")
    if told is None:
        return
    if any(one.is_meta for one in original.state_dict(keep_vars=True).values() if isinstance(one, Tensor)):
        raise ValueError(
            f"expected the network that {folder} was made of, with its weights, got one on the meta device"
        )
    kind = next((one.dtype for one in original.parameters() if one.is_floating_point()), torch.float32)
    if not distance(read_fingerprint("the original's weights", told), weights_of(original)) <= slack(kind):
        raise ValueError(
            f"expected the network that {folder} was made of, got one with other weights, so that nothing it is "
            f"compared with or trained to would be right: load its weights first (--weights on the command line)"
        )


def read_told(folder: str | Path) -> tuple[Any, Any, Any]:
    """The plan, the report and the form of the inputs that a file tells of its network, as plain values.

    Raises:
        ValueError: if the file is damaged, or of a version that did not keep the report.
    """
    config, _ = read(Path(folder) / WEIGHTS)
    if "report" not in config:
        raise ValueError(f"{folder} was written by a version that kept no report with it: compress the network again")
    identity = config.get("identity")
    return config.get("plan"), config["report"], identity.get("probe") if isinstance(identity, Mapping) else None


def read_mask(folder: str | Path) -> str | None:
    """The name of the input that tells padding, if a file's plan has one."""
    config, _ = read(Path(folder) / WEIGHTS)
    plan = config.get("plan")
    name = plan.get("mask") if isinstance(plan, Mapping) else None
    return name if isinstance(name, str) else None


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a saved network, validated."""
    config, state = read_file(path, "a folder written by Compression.save or `tenflex compress`", "the network")
    if config.get("format") not in (FORMAT, SECOND_FORMAT, FIRST_FORMAT):
        raise ValueError(f"{path} has the format {config.get('format')!r}, expected {FORMAT!r}: update tenflex")
    lists = [("replacements", list)] + [("aliases", dict), ("extras", dict)] * (config["format"] == FORMAT)
    for name, kind in lists:
        if not isinstance(config.get(name), kind):
            raise ValueError(f"{path} has a damaged header (no {name}): save the network again")
    return config, state


def _placed(config: Mapping[str, Any], folder: Path) -> tuple[Replacement, ...]:
    """The replacements of a file, each with a layer that can be made: nothing is allocated for it."""
    try:
        placed = tuple(map(Replacement.from_dict, config["replacements"]))
        for one in placed:
            _layer(one)
    except DAMAGE as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder / WEIGHTS} has a damaged header ({why}): save the network again") from None
    return placed


def require_known(placed: Iterable[Replacement]) -> None:
    """Raise TypeError if a layer is made of something that no file could bring back."""
    for one in placed:
        try:
            _layer(one)
        except DAMAGE as error:
            raise TypeError(f"the layer of block {one.cut.name!r} cannot be saved: {error}, then save again") from None


def _layer(one: Replacement) -> nn.Module:
    """The layer without numbers: sizes in a file may be anything."""
    with torch.device("meta"):
        return layer_from_dict(one.layer).eval()


def _replaced(model: nn.Module, placed: tuple[Replacement, ...]) -> nn.Module:
    """A copy of a network with the layers of a file, but for those that it has from an earlier round."""
    known = placed_in(model)
    if json.dumps([one.to_dict() for one in placed[: len(known)]]) != json.dumps([one.to_dict() for one in known]):
        raise ValueError("this model has been compressed in another way: pass the original architecture")
    smaller = duplicate(model)
    for one in placed[len(known) :]:
        try:
            smaller = one.cut.replace_(smaller, _layer(one))
        except DAMAGE as error:
            raise ValueError(f"block {one.cut.name!r} cannot be replaced in this model: {error}; {EXPECTED}") from None
    return smaller


def _state(config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, folder: Path) -> dict[str, Any]:
    """The state that a file holds, by all its names; shared tensors are one object."""
    if config["format"] == FIRST_FORMAT:
        tensors = renamed(tensors, model)
    if config["format"] != FORMAT:
        return tied_alike(tensors, model)
    try:
        return Stored(tensors, config["aliases"], config["extras"]).state()
    except DAMAGE as error:
        raise ValueError(f"{folder / WEIGHTS} has a damaged header ({error}): save the network again") from None


def require_fitting(model: nn.Module, state: Mapping[str, Any], folder: Path) -> None:
    """Raise unless the weights are exactly those that the model needs."""
    needed = model.state_dict(keep_vars=True)
    for name in needed.keys() - state.keys():
        raise ValueError(f"{folder} has no weights for {name!r}{near_names(name, state)} {EXPECTED}")
    for name, tensor in state.items():
        if name not in needed:
            raise ValueError(f"{folder} has weights for {name!r}, which this model does not have: {EXPECTED}")
        if is_extra(name, needed[name]):
            continue
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != tuple(needed[name].shape):
            got = describe_shape(tensor)
            raise ValueError(
                f"{folder} has weights of shape {got} for {name!r}, the model needs {tuple(needed[name].shape)}: "
                f"{EXPECTED}"
            )
        if kind_of(tensor) != kind_of(needed[name]):
            raise ValueError(
                f"{folder} is damaged or was changed: it has weights of {tensor.dtype} for {name!r}, the model needs "
                f"{needed[name].dtype}; save the network again"
            )


def describe_shape(value: object) -> str:
    """The shape of a tensor; the type of anything else."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def kind_of(tensor: Tensor) -> tuple[bool, bool]:
    """Whether numbers are real or complex, and whether they are whole."""
    return tensor.is_complex(), tensor.is_complex() or tensor.is_floating_point()


def fill_(model: nn.Module, state: Mapping[str, Any], folder: Path) -> None:
    """Give a model its state, in place: names of one tensor share it, as one parameter."""
    needed = model.state_dict(keep_vars=True)
    made: dict[int, nn.Parameter] = {}
    given = dict(state)
    for name, tensor in state.items():
        if isinstance(needed[name], nn.Parameter):
            flag = needed[name].requires_grad
            given[name] = made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=flag))
    try:
        model.load_state_dict(given, assign=True)
    except RuntimeError as error:  # of a module that reads its state in its own way
        raise ValueError(f"{folder} does not fit this model: {error}; {EXPECTED}") from None
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not is_extra(name, tensor) and not same_bits(tensor, state[name]):
            raise ValueError(f"{folder} has other weights for {name!r} than this model can take: {EXPECTED}")


def _complete(model: nn.Module, folder: Path) -> nn.Module:
    """The model on the CPU; ValueError if a tensor that is in no file was left on the meta device."""
    for name, one in hidden_tensors(model).items():
        if one.is_meta:
            raise ValueError(
                f"{folder} does not hold {name!r}, which is in no state_dict, and this model has it on the meta device "
                f"without numbers: make the model without torch.device('meta')"
            )
    return model.cpu()


def _require_same(model: nn.Module, saved: Any, folder: Path) -> None:
    """Raise ValueError if the model is not the one that was saved."""
    try:
        found = list(differences(saved, model))
    except DAMAGE as error:
        raise ValueError(f"{folder / WEIGHTS} has a damaged header ({error}): save the network again") from None
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ValueError(
            f"{folder} cannot be loaded into this model, which is not the one that was compressed: "
            f"{'; '.join(found[:3])}{more}. Make the model as it was then, tensors that are in no state_dict included"
        )
