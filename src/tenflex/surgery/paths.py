"""Dotted module names."""

from __future__ import annotations

from inspect import getattr_static

from torch import nn

from tenflex.checks import near_names


def get_module(model: nn.Module, path: str) -> nn.Module:
    """The module at `path`, which is "" for the model itself.

    Raises:
        ValueError: if there is none, with near names.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        known = (name for name, _ in model.named_modules(remove_duplicate=False))
        raise ValueError(
            f"expected the name of a module of {type(model).__name__}, got {path!r}{near_names(path, known)}"
            f"{_hint(model, path)}"
        ) from None


def _hint(model: nn.Module, path: str) -> str:
    """What to do where a projection of attention is meant, which is no module."""
    around = dict(model.named_modules(remove_duplicate=False)).get(path.rpartition(".")[0])
    if not isinstance(around, nn.MultiheadAttention):
        return ""
    return "; projections of attention are modules in tenflex.nn.opened(model): pass that"


def title(path: str) -> str:
    """What to call the module at `path` in messages."""
    return repr(path) if path else "the network"


def set_module_(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Put `module` at `path`, in place; returns the possibly new root."""
    if path == "":
        return module
    parent, _, name = path.rpartition(".")
    setattr(get_module(model, parent), name, module)
    return model


def encloses(outer: str, inner: str) -> bool:
    """Whether the module at `inner` is the one at `outer`, or one inside it."""
    return outer in ("", inner) or inner.startswith(outer + ".")


def join(outer: str, inner: str) -> str:
    """The path of `inner`, seen from `outer`, from the root."""
    return f"{outer}.{inner}" if outer and inner else outer or inner


def below(path: str, outer: str) -> str:
    """`path` as seen from the module at `outer`, which encloses it."""
    return path[len(outer) + 1 :] if outer else path


def ancestors(path: str) -> list[str]:
    """The modules around the one at `path`, outermost first, without itself."""
    parts = path.split(".") if path else []
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def has_forward(module: nn.Module) -> bool:
    """Whether the module can be called; containers such as `nn.ModuleList` cannot."""
    own = getattr_static(type(module), "forward")  # of scripted modules it is no function
    return own is not nn.Module.forward or "forward" in vars(module)


def smallest_parent(model: nn.Module, first: str, last: str) -> str:
    """The innermost module that can be called and holds both."""
    shared = [path for path in ancestors(first) if path in ancestors(last)]
    return next((path for path in reversed(shared) if has_forward(get_module(model, path))), "")
