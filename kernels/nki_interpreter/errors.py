"""The errors a kernel's author reads: each names instruction, operand, rule, target and source line."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True, kw_only=True)
class Location:
    """A line of the kernel's source."""

    path: str
    line: int
    function: str
    text: str

    def __str__(self) -> str:
        """Show the place as an editor can open it, with the line itself."""
        return f"{self.path}:{self.line} in {self.function}: {self.text}"


class NkiValidationError(Exception):
    """A rule of the hardware was broken (the name is that of the documented exception)."""

    def __init__(self, *, rule: str, sentence: str, instruction: str, operand: str, detail: str, target: str) -> None:
        """Keep every part as data; the text is made from them."""
        self.rule = rule
        self.sentence = sentence
        self.instruction = instruction
        self.operand = operand
        self.detail = detail
        self.target = target
        self.location = kernel_location()
        super().__init__(self._text())

    def _text(self) -> str:
        return (
            f"{self.instruction}: operand {self.operand!r}: {self.detail}\n"
            f"  rule {self.rule} ({self.target}): {self.sentence}\n"
            f"  at {self.location}"
        )


def kernel_location() -> Location:
    """Find the innermost frame that is not part of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and os.path.abspath(frame.f_code.co_filename).startswith(_PACKAGE):
        frame = frame.f_back
    path, line = frame.f_code.co_filename, frame.f_lineno
    text = _statement(path, line)
    return Location(path=path, line=line, function=frame.f_code.co_name, text=text)


def _statement(path: str, line: int) -> str:
    """Join the lines of a call that is spread over several, up to its closing bracket."""
    parts: list[str] = []
    depth = 0
    for number in range(line, line + 12):
        text = linecache.getline(path, number).strip()
        if not text:
            break
        parts.append(text)
        depth += text.count("(") + text.count("[") - text.count(")") - text.count("]")
        if depth <= 0:
            break
    return " ".join(parts) or "(source not available)"
