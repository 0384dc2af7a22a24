"""The state of a network as tensors and plain values: shared tensors once, further state without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenflex.surgery.batch import tensors_in
from tenflex.surgery.carry import hidden_in
from tenflex.surgery.facts import is_plain
from tenflex.surgery.paths import encloses, join
from tenflex.surgery.reach import Numberless

OWN = frozenset(vars(nn.Module()))
"""What every module keeps in attributes for torch itself."""


@dataclass(frozen=True, eq=False)
class Stored:
    """The state of a network as a file holds it.

    Args:
        tensors: Those of the state, and those of further state; shared ones once.
        aliases: The other names of shared tensors, each with the name under which the tensor is stored.
        extras: What `get_extra_state` gave, in plain values; tensors by their names.
    """

    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    extras: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Stored:
        """The state of a network, on the CPU.

        Raises:
            TypeError: if further state is something else than tensors and plain values.
        """
        tensors: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        extras: dict[str, Any] = {}
        known: dict[Any, str] = {}
        for name, one in model.state_dict(keep_vars=True).items():
            if is_extra(name, one):
                extras[name] = pack(one, name, tensors)
            elif known.setdefault(memory_of(one), name) != name:
                aliases[name] = known[memory_of(one)]
            else:
                tensors[name] = on_cpu(one)
        return cls(tensors, aliases, extras)

    def state(self) -> dict[str, Any]:
        """The state by all its names; shared tensors are one object.

        Raises:
            ValueError: if an alias or further state is not what `of` makes.
        """
        known = dict(self.tensors)
        for name, other in self.aliases.items():
            if name in known or not isinstance(other, str) or other not in self.tensors:
                raise ValueError(f"the shared weight {name!r} stands for {other!r}")
            known[name] = self.tensors[other]
        found = {name: unpack(one, self.tensors) for name, one in self.extras.items()}
        inside = {name for one in self.extras.values() for name in named_in(one)}
        return {**{name: one for name, one in known.items() if name not in inside}, **found}


def is_extra(name: str, value: object) -> bool:
    """Whether an entry of a state is what `get_extra_state` gave."""
    return name.rpartition(".")[2] == "_extra_state" or not isinstance(value, Tensor)


def memory_of(tensor: Tensor) -> Any:
    """The same for tensors that are the same numbers in memory, whether or not they are one object."""
    try:
        pointer = tensor.data_ptr() if tensor.numel() else 0
    except RuntimeError:  # kinds of tensors without a storage
        pointer = 0
    place = (str(tensor.device), pointer, tuple(tensor.shape), tensor.stride(), tensor.dtype)
    return place if pointer else id(tensor)


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy to write."""
    return tensor.detach().cpu().clone().contiguous()


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Further state in plain values; its tensors go to `tensors`, under names that start with `name`.

    Raises:
        TypeError: if there is something in it that no file without pickle could bring back.
    """
    if is_plain(value):
        return value
    if isinstance(value, Tensor):
        tensors[name] = on_cpu(value)
        return {"tensor": name}
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(one, f"{name}.{key}", tensors) for key, one in value.items()}}
    raise TypeError(
        f"{name!r} holds {type(value).__name__}, which cannot be saved without pickle: let get_extra_state return "
        f"numbers, texts, tensors, and lists or dictionaries of them"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The further state that `pack` made plain.

    Raises:
        ValueError: if it has another form.
    """
    if is_plain(packed):
        return packed
    kind, value = next(iter(packed.items())) if isinstance(packed, Mapping) and len(packed) == 1 else ("", None)
    if kind == "tensor" and isinstance(value, str) and value in tensors:
        return tensors[value]
    if kind in ("list", "tuple") and isinstance(value, list):
        return (list if kind == "list" else tuple)(unpack(one, tensors) for one in value)
    if kind == "dict" and isinstance(value, Mapping):
        return {key: unpack(one, tensors) for key, one in value.items()}
    raise ValueError("further state has another form than it was saved in")


def named_in(packed: Any) -> Iterator[str]:
    """The names of all tensors in packed further state."""
    if isinstance(packed, Mapping):
        for kind, value in packed.items():
            if kind == "tensor" and isinstance(value, str):
                yield value
            yield from named_in(value)
    elif isinstance(packed, list):
        for one in packed:
            yield from named_in(one)


def require_storable(model: nn.Module, gone: Iterable[str]) -> None:
    """Raise unless the state of a network, but for the modules that will be gone, can be saved and loaded again.

    Raises:
        TypeError: if what `get_extra_state` gives is something else than tensors and plain values.
        ValueError: if a module has `get_extra_state` and no `set_extra_state`.
    """
    for name, one in model.state_dict(keep_vars=True).items():
        path = name.rpartition(".")[0]
        if not is_extra(name, one) or any(encloses(outer, path) for outer in gone):
            continue
        pack(one, name, {})
        kind = type(model.get_submodule(path)) if name.endswith("_extra_state") else None
        if kind is not None and kind.set_extra_state is nn.Module.set_extra_state:
            raise ValueError(
                f"{path or 'the network'!r} ({kind.__name__}) has get_extra_state and no set_extra_state, so "
                f"that no saved network could be loaded again: give it one"
            )


def hidden_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network that are in no state_dict: buffers that are not persistent, and plain attributes.

    What stands for tensors of a block that was replaced is left out.
    """
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set):
            if isinstance(module._buffers.get(name), Tensor):
                found[join(path, name)] = module._buffers[name]
        for name, value in vars(module).items():
            if name not in OWN and name not in hidden_in(module):
                for place, one in enumerate(tensors_in(value)):
                    if not isinstance(one, Numberless):
                        found[join(path, name) + (f"[{place}]" if place else "")] = one
    return found


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers, those that are not numbers included."""
    if memory_of(one) == memory_of(other):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = [each.detach().cpu().contiguous().flatten().view(torch.uint8) for each in (one, other)]
    return torch.equal(*bits)
