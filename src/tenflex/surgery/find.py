"""Which blocks a user means: names, spans and wildcards."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from itertools import product

from torch import nn

from tenflex.checks import near_names
from tenflex.surgery.paths import encloses, get_module, title

WILDCARDS = re.compile(r"\*|\?|\[[^\]]+\]")


def is_plain(path: str) -> bool:
    """Whether patterns can name a module: its name has no colon and no wildcards, as keys of an `nn.ModuleDict` may."""
    return ":" not in path and not WILDCARDS.search(path)


def find_blocks(model: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """The blocks of a network that patterns name.

    A pattern is the name of a module ("encoder.layer.3.mlp"), a span of two ("fc1:fc3"), "" for the whole network, or
    one of them with the wildcards `*`, `?` and `[abc]` of `fnmatch`, where `*` also matches dots. In a span both ends
    must match the same text: "layers.*.fc1:layers.*.fc2" gives one block for each layer.

    Args:
        model: The network.
        patterns: Names, spans or wildcards.

    Returns:
        The name of every block with the pattern that matched it, in the order in which the modules are registered.

    Raises:
        TypeError: if `patterns` is one string, or holds something else than strings.
        ValueError: if a pattern matches nothing, or two blocks overlap.
    """
    patterns = _strings(patterns)
    place = {name: index for index, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    found = [(block, pattern) for pattern in patterns for block in _match(pattern, place)]
    ends = [_ends(model, block, place) for block, _ in found]
    _require_apart(found, ends)
    first = {block: place[start] for (block, _), (start, _) in zip(found, ends, strict=True)}
    return dict(sorted(found, key=lambda one: first[one[0]]))


def split(model: nn.Module, block: str) -> tuple[str, str]:
    """First and last module of a block without wildcards.

    Raises:
        ValueError: if one of them is not a module of the network, or one lies inside the other.
    """
    return _ends(model, block, {name for name, _ in model.named_modules(remove_duplicate=False)})


def _ends(model: nn.Module, block: str, names: Container[str]) -> tuple[str, str]:
    """As `split`, with the names of all modules, which take long to list."""
    if block in names:
        return block, block
    first, colon, last = block.partition(":")
    for end in (first, last) if colon else (first,):
        get_module(model, end)
    if not colon or first == last:
        return first, first
    if encloses(first, last) or encloses(last, first):
        outer, inner = (first, last) if encloses(first, last) else (last, first)
        raise ValueError(
            f"expected a span of two modules that follow each other, got {block!r}, where {inner!r} lies inside "
            f"{title(outer)}: name {outer!r} alone, or two modules inside it"
        )
    return first, last


def _matches(text: str, names: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The names that `text` matches, each with what its wildcards stand for; never the root."""
    pattern, position = "", 0
    for wildcard in WILDCARDS.finditer(text):
        pattern += re.escape(text[position : wildcard.start()]) + f"({_expression(wildcard.group())})"
        position = wildcard.end()
    try:
        whole = re.compile(pattern + re.escape(text[position:]))
    except re.error as error:
        raise ValueError(f"expected wildcards as in 'layers.[0-3]', got {text!r}: {error}") from None
    for name in names:
        if name and (match := whole.fullmatch(name)):
            yield name, match.groups()


def _expression(wildcard: str) -> str:
    """The regular expression of one wildcard."""
    if wildcard in "*?":
        return {"*": ".*", "?": "."}[wildcard]
    inside, other = wildcard[1:-1], wildcard.startswith("[!")
    for one in "\\[^":  # which stand for themselves there
        inside = inside.replace(one, f"\\{one}")
    return f"[^{inside[1:]}]" if other else f"[{inside}]"


def _match(pattern: str, names: Collection[str]) -> list[str]:
    """The blocks that one pattern names."""
    if pattern in names or not WILDCARDS.search(pattern):
        blocks = [pattern]
    elif ":" in pattern:
        blocks = _match_span(pattern, names)
    else:
        blocks = [name for name, _ in _matches(pattern, names)]
    if not blocks:
        raise ValueError(f"no module matches {pattern!r}{near_names(pattern.partition(':')[0], names)}")
    return blocks


def _match_span(pattern: str, names: Collection[str]) -> list[str]:
    """The spans whose two ends match the same text."""
    first, _, last = pattern.partition(":")
    if len(WILDCARDS.findall(first)) != len(WILDCARDS.findall(last)):
        raise ValueError(
            f"expected the same wildcards on both sides of a span, got {pattern!r}: they are paired by the text that "
            f"they match, as in 'layers.*.fc1:layers.*.fc2'"
        )
    ends = list(_matches(last, names))
    return [f"{start}:{end}" for start, text in _matches(first, names) for end, other in ends if text == other]


def _require_apart(found: Sequence[tuple[str, str]], ends: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError if an end of one block is, or lies in, an end of another."""
    for index, (block, pattern) in enumerate(found):
        for (other, origin), theirs in zip(found[:index], ends, strict=False):
            pairs = product(theirs, ends[index])
            if any(encloses(one, two) or encloses(two, one) for one, two in pairs):
                raise ValueError(
                    f"expected blocks that do not overlap, got {other!r} (from {origin!r}) and {block!r} (from "
                    f"{pattern!r}): leave one out, or name the modules more exactly (`*` also matches dots)"
                )


def _strings(patterns: Iterable[str]) -> list[str]:
    listed = [] if isinstance(patterns, str) else list(patterns)
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in listed):
        raise TypeError(
            f"expected a list or a mapping of block names, got {patterns!r}: write [{patterns!r}] for one block"
        )
    return listed
