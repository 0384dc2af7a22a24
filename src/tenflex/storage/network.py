"""Compressed networks on disk, read without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tenflex._version import __version__
from tenflex.checks import near_names
from tenflex.nn import FlexibleLayer
from tenflex.storage.earlier import renamed
from tenflex.storage.files import CONFIG, REPORT, WEIGHTS, beside, read_file, require_own_folder, write_json
from tenflex.surgery import Cut
from tenflex.surgery.twin import duplicate

FORMAT, FIRST_FORMAT = "tenflex/2", "tenflex/1"


@dataclass(frozen=True)
class Replacement:
    """Where a flexible layer stands.

    Args:
        cut: How the block was taken out.
        layer: The settings of the layer, as its `to_dict` gives them.
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


def save_compressed(
    folder: str | Path,
    model: nn.Module,
    plan: Mapping[str, Any],
    replacements: tuple[Replacement, ...],
    report: Mapping[str, Any],
) -> None:
    """Write a compressed network.

    `model.safetensors` holds the weights and, in its header, the configuration: it alone is read again, and it is put
    in its place by one rename, so there is the previous result or the new one and never half of each. `config.json` and
    `report.json` say the same for people and other programs.
    """
    folder = Path(folder)
    require_own_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "format": FORMAT,
        "versions": {"tenflex": __version__, "torch": torch.__version__},
        "plan": dict(plan),
        "replacements": [one.to_dict() for one in replacements],
    }
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    with beside(folder / WEIGHTS) as path:
        save_file(state, path, metadata={"tenflex": json.dumps(config)})
    write_json(folder / CONFIG, config)
    write_json(folder / REPORT, dict(report))


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """A saved compressed network, with the same bits, in this or another process.

    Args:
        folder: Where `Compression.save` wrote it.
        model: A network of the original architecture; only its structure is used, and it is not changed. It may be on
            the meta device.

    Returns:
        A new module in eval mode.

    Raises:
        FileNotFoundError: if there is no result in `folder`.
        TypeError: if `model` is not a module.
        ValueError: if the file is damaged, of another program, or of another architecture.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module of the original architecture, got {type(model).__name__}")
    config, state = read(Path(folder) / WEIGHTS)
    smaller = duplicate(model)
    for saved in config["replacements"]:
        one = Replacement.from_dict(saved)
        try:
            smaller = one.cut.replace_(smaller, FlexibleLayer.from_dict(one.layer))
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"block {one.cut.name!r} cannot be replaced in this model: {error}; "
                "expected a model of the architecture that was compressed"
            ) from None
    if config["format"] == FIRST_FORMAT:
        state = renamed(state, smaller)
    require_fitting(smaller, state, Path(folder))
    smaller.load_state_dict(state, assign=True)
    return smaller.eval()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the weights of a saved network, validated."""
    config, state = read_file(path, "a folder written by Compression.save or `tenflex compress`", "the network")
    if config.get("format") not in (FORMAT, FIRST_FORMAT):
        raise ValueError(f"{path} has the format {config.get('format')!r}, expected {FORMAT!r}: update tenflex")
    if not isinstance(config.get("replacements"), list):
        raise ValueError(f"{path} has a damaged header (no replacements): save the network again")
    return config, state


def require_fitting(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Raise unless the weights are exactly those that the model needs."""
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in needed.keys() - state.keys():
        raise ValueError(
            f"{folder} has no weights for {name!r}{near_names(name, state)} "
            "expected a model of the architecture that was compressed"
        )
    for name, tensor in state.items():
        if name not in needed:
            raise ValueError(
                f"{folder} has weights for {name!r}, which this model does not have: "
                "expected a model of the architecture that was compressed"
            )
        if tuple(tensor.shape) != needed[name]:
            raise ValueError(
                f"{folder} has weights of shape {tuple(tensor.shape)} for {name!r}, the model needs {needed[name]}: "
                "expected a model of the architecture that was compressed"
            )
