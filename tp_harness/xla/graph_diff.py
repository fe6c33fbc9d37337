"""The instructions in which two ranks' programs differ, and their Python lines. Text in, text out; no torch."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePath

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%[\w.-]+ = (?P<what>.*?)(?:, metadata=\{(?P<metadata>[^}]*)\})?$")
_SOURCE = re.compile(r'source_file="(?P<file>[^"]*)" source_line=(?P<line>\d+)')
_LAYOUT = re.compile(r"(?<=\])\{[0-9,]*\}")
_OPERAND = re.compile(r"(?:\w+\[[0-9,]*\] )?%([a-zA-Z_-]+)[\w.-]*")
_PARAMETER = re.compile(r"parameter\(\d+\)")
_TARGET = re.compile(r", to_apply=%?[\w.-]+")
_MOST = 3  # differences named: later ones mostly follow from the first

Program = dict[str, Counter[str]]


def difference(hlo: str, other: str, rank: int, other_rank: int) -> str:
    """Where the programs of two ranks differ, one clause per Python line, in the order of the program.

    Args:
        hlo, other: HLO texts, traced with torch-xla's IR debugging, which notes the Python line.
        rank, other_rank: the ranks that traced them.
    """
    ours, theirs = _by_source(hlo), _by_source(other)
    clauses = []
    for source in dict.fromkeys((*ours, *theirs)):
        a, b = ours.get(source, Counter()), theirs.get(source, Counter())
        if a != b:
            clauses.append(f"{source}: {_listed(a - b)} on rank {rank}, {_listed(b - a)} on rank {other_rank}")
    if not clauses:
        return "their texts are alike, so the difference is within a constant too long to be written out"
    more = f"; and {len(clauses) - _MOST} more lines" if len(clauses) > _MOST else ""
    return "; ".join(clauses[:_MOST]) + more


def short(file: str, line: object) -> str:
    """The last two parts of a path, and a line number: `modules/embedding.py:58`."""
    return "/".join(PurePath(file).parts[-2:]) + f":{line}"


def _by_source(hlo: str) -> Program:
    """Python line -> its instructions, without the numbers in their names."""
    program: Program = {}
    for line in hlo.splitlines():
        match = _INSTRUCTION.match(line)
        if match and match["metadata"]:
            source = _SOURCE.search(match["metadata"])
            where = short(source["file"], source["line"]) if source else "no Python line"
            program.setdefault(where, Counter())[_plain(match["what"])] += 1
    return program


def _plain(what: str) -> str:
    what = _LAYOUT.sub("", _TARGET.sub("", what))
    return _PARAMETER.sub("device data", _OPERAND.sub(r"\1", what))


def _listed(instructions: Counter[str]) -> str:
    found = list(instructions)
    text = " and ".join(f"`{instruction}`" for instruction in found[:2]) or "nothing of it"
    return text + (f" and {len(found) - 2} more" if len(found) > 2 else "")
