"""Mistakes put into JSON values and bytes, by chance."""

from __future__ import annotations

import json
import random
from typing import Any

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 97, 2**31, 2**39, 2**63, 10**400, 0.0, -0.5, 1e-30, 1e300, float("nan"),
    float("inf"), "", "x", "nan", "64", "gloo", "[red]x[/red]", "\x1b[2J\x07", "\u202egnp", "\ud800", "a\nb", "é" * 300,
    [], {}, [1], [[]], ["x", "x"], {"a": 1}, {"": None}, [None] * 9, {"factor": -1},
]  # fmt: skip


def mutate(value: Any, chance: random.Random, edits: int) -> Any:
    """A JSON value with some of its parts replaced by junk, removed, or repeated."""
    value = json.loads(json.dumps(value))
    for _ in range(edits):
        at, parent, key = value, None, None
        while isinstance(at, (dict, list)) and at and (parent is None or chance.random() < 0.8):
            parent, key = at, chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = at[key]
        if parent is None:
            return chance.choice(JUNK)
        action = chance.choice(["junk", "junk", "junk", "remove", "swap"])
        if action == "remove":
            del parent[key]
        elif action == "swap" and isinstance(parent, dict):
            parent[chance.choice(list(parent))] = at
        else:
            parent[key] = chance.choice(JUNK)
    return value


def spoil(content: bytes, chance: random.Random) -> bytes:
    """The same bytes with some of them changed, cut, or repeated."""
    at = chance.randrange(len(content) + 1)
    return chance.choice(
        [
            lambda: content[:at],
            lambda: content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
            lambda: content[:at] + content[max(0, at - 20) :],
            lambda: content + content,
            lambda: b"\xef\xbb\xbf" + content,
        ]
    )()


def json_bytes(value: Any, chance: random.Random) -> bytes:
    """As JSON (with Python's NaN), sometimes spoiled."""
    content = json.dumps(value).encode()
    return spoil(content, chance) if chance.random() < 0.2 else content
