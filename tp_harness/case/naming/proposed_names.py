"""A `rename` proposed where the sharded module has other names than the reference: from names and shapes alone.

It is text for a user to paste and to check; nothing is run with it unasked.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

import torch

from .rename import Renaming
from .sources import STAR

Shape = Sequence[int]
Shapes = Mapping[str, Shape]
LIKE = 0.9  # of names that may mean the same: they share half of their words, or are spelt alike
_PLAIN = re.compile(r"_?(proj|projection|layer|linear|fc)$")  # what says nothing of which matrix it is
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number


def proposed(renaming: Renaming, local: Mapping[str, torch.Tensor], shapes: Shapes, size: int) -> str:
    """A clause with the `rename` that would explain the names of a module, as text; "" where none is found.

    Args:
        renaming: what the Case says already.
        local: the state of a rank's module, by name; any shapes.
        shapes: by full name, those of the reference's.
        size: the number of ranks.
    """
    known = {name.removeprefix(renaming.prefix): shape for name, shape in shapes.items()}
    own = {name: tuple(tensor.shape) for name, tensor in local.items()}
    made = {name: renaming.keys(name) for name in local}
    used = {key.removeprefix(renaming.prefix) for keys in made.values() for key in keys}
    strange = {name: shape for name, shape in own.items() if not set(made[name]) <= set(shapes)}
    unused = {name: shape for name, shape in known.items() if name not in used}
    found = _with_stars(dict(_found(strange, unused, size)))
    entries = ", ".join(f'"{name}": {text}' for name, text in found.items())
    return f"; if these are the same numbers under other names, say so: rename={{{entries}}}" if entries else ""


def _found(strange: Shapes, unused: Shapes, size: int) -> Iterator[tuple[str, str]]:
    """By sharded name, the text of what it may be made of."""
    for name, shape in strange.items():
        for guess in (_fused, _stacked, _part, _item, _same):
            if text := guess(name, shape, strange, unused, size):
                yield name, text
                break


def _fused(name: str, shape: Shape, strange: Shapes, unused: Shapes, size: int) -> str:
    """[q | k | v]: siblings whose names are in this one's, with rows that make up its own."""
    at = {other: _place(other, name) for other in _siblings(name, unused)}
    parts = sorted((other for other, place in at.items() if place >= 0), key=lambda other: at[other])
    rows = sum(unused[other][0] for other in parts if unused[other])
    same = {tuple(unused[other][1:]) for other in parts} <= {tuple(shape[1:])}
    if len(parts) < 2 or not same or not shape[0] <= rows <= shape[0] * size:
        return ""
    return f"Concat({_quoted(parts)})"


def _stacked(name: str, shape: Shape, strange: Shapes, unused: Shapes, size: int) -> str:
    """One weight of all experts: names that differ in one number, of which there are as many as the first dimension."""
    groups: dict[str, list[Shape]] = {}
    for other, full in unused.items():
        for match in _NUMBER.finditer(other):
            before, after = other[: match.start()], other[match.end() :]
            if name.startswith(before) and before:
                groups.setdefault(f"{before}*{after}", []).append(full)
    fits = [
        star
        for star, fulls in groups.items()
        if len(fulls) > 1 and all(full == fulls[0] for full in fulls) and _cut((len(fulls), *fulls[0]), shape, size)
    ]
    return f'Stack("{_nearest(name, fits)}")' if fits else ""


def _part(name: str, shape: Shape, strange: Shapes, unused: Shapes, size: int) -> str:
    """A part of a fused tensor of the reference: siblings of this one make up its rows, in the order of its name."""
    for fused in _siblings(name, unused):
        at = {other: _place(other, fused) for other in _siblings(name, strange)}
        parts = sorted((other for other, place in at.items() if place >= 0), key=lambda other: at[other])
        if name not in parts or len(parts) < 2 or not unused[fused]:
            continue
        rows = [strange[other][0] * size for other in parts]
        if sum(rows) == unused[fused][0]:
            first = parts.index(name)
            return f'Part("{fused}", {sum(rows[:first])}, {rows[first]})'
    return ""


def _item(name: str, shape: Shape, strange: Shapes, unused: Shapes, size: int) -> str:
    """One of a stack: its number is in the name."""
    for match in reversed([*_NUMBER.finditer(name)]):
        number, before = int(match[0]), name[: match.start()]
        fits = [
            other
            for other, full in unused.items()
            if before and other.startswith(before) and full and number < full[0] and _cut(full[1:], shape, size)
        ]
        if fits:
            return f'Item("{_nearest(name, fits)}", {number})'
    return ""


def _same(name: str, shape: Shape, strange: Shapes, unused: Shapes, size: int) -> str:
    """The tensor of a shape that allows it whose name is nearest."""
    fits = [other for other, full in unused.items() if _cut(full, shape, size)]
    near = _nearest(name, fits) if fits else ""
    return f'"{near}"' if near and _likeness(name, near) > LIKE else ""


def _siblings(name: str, others: Shapes) -> list[str]:
    """Those of the same submodule and kind (weight, bias), such as `a.q_proj.weight` of `a.qkv_proj.weight`."""
    return [other for other in others if _split(other)[::2] == _split(name)[::2]]


def _split(name: str) -> tuple[str, str, str]:
    """The submodule, the name that says which matrix it is, and weight, bias or the like."""
    *rest, kind = name.split(".")
    if rest and kind in ("weight", "bias", "scale", "qweight", "weight_scale"):
        return ".".join(rest[:-1]), rest[-1], kind
    return ".".join(rest), kind, ""


def _place(part: str, fused: str) -> int:
    """Where the name of a part is in that of a fused tensor: q in qkv, gate in gate_up, w3 in w13; -1 if it is not."""
    token, whole = _PLAIN.sub("", _split(part)[1]), _PLAIN.sub("", _split(fused)[1])
    if not token or token == whole:
        return -1
    if re.fullmatch(r"w\d", token) and re.fullmatch(r"w\d(_?w?\d)+", whole):
        return whole.find(token[1])
    return whole.find(token)


def _cut(full: Shape, local: Shape, size: int) -> bool:
    """Whether a shard of the full shape may have the local one: each dimension whole, or divided by the ranks."""
    same = [f == n for f, n in zip(full, local, strict=False)]
    shared = [f == n * size for f, n in zip(full, local, strict=False)]
    return len(full) == len(local) and all(a or b for a, b in zip(same, shared, strict=True)) and same.count(False) < 2


def _nearest(name: str, choices: Sequence[str]) -> str:
    return max(choices, key=lambda choice: _likeness(name, choice))


def _likeness(name: str, other: str) -> float:
    """How like two names are: the share of words that the second one has, and how alike they are spelt."""
    words, others = (set(re.split(r"[._]", text)) for text in (name, other))
    return len(words & others) / len(words) + difflib.SequenceMatcher(None, name, other).ratio()


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _with_stars(found: Mapping[str, str]) -> dict[str, str]:
    """The entries of all layers as one, with a star for the number, where they say the same."""
    starred: dict[str, set[str]] = {}
    for key, value in (_starred(name, text) for name, text in found.items()):
        starred.setdefault(key, set()).add(value)
    merged: dict[str, str] = {}
    for name, text in found.items():
        key, value = _starred(name, text)
        merged |= {key: value} if len(starred[key]) == 1 else {name: text}
    return merged


def _starred(name: str, text: str) -> tuple[str, str]:
    """The entry with stars for all numbers of the name; as it is where its sources do not have the same numbers."""
    numbers, used = _NUMBER.findall(name), set()

    def with_stars(match: re.Match[str]) -> str:
        left = list(numbers)

        def star(number: re.Match[str]) -> str:
            same = bool(left) and left[0] == number[0]
            return STAR if same and left.pop(0) else number[0]

        source = _NUMBER.sub(star, match[1])
        used.add(len(numbers) - len(left))
        return f'"{source}"'

    starred = re.sub(r'"([^"]*)"', with_stars, text)
    item = re.fullmatch(r"(Item\(.*), (\d+)\)", starred)
    if item and used == {len(numbers) - 1} and item[2] == numbers[-1]:  # the last star is its number
        return _NUMBER.sub(STAR, name), f"{item[1]})"
    return (_NUMBER.sub(STAR, name), starred) if numbers and used == {len(numbers)} and not item else (name, text)
