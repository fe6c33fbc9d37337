"""docs/case.md names everything that a Case is made of, and its examples give what they say."""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path

import pytest
import torch

import tp_harness
from tp_harness.case.case import Case, cast_copy, leave
from tp_harness.parallel import placements
from tp_harness.parallel.placements import Placement, Replicate

PAGE = (Path(__file__).parents[2] / "docs" / "case.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, flags=re.MULTILINE))
PUBLIC = [name for name in tp_harness.__all__ if isinstance(kind := getattr(placements, name, None), type)
          and issubclass(kind, Placement)]  # fmt: skip


def test_every_field_is_named_with_its_default() -> None:
    fields = dataclasses.fields(Case)
    assert list(ROWS) == [field.name for field in sorted(fields, key=lambda field: "needed" not in ROWS[field.name])]
    for field in fields:
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        words = {dataclasses.MISSING: "needed", cast_copy: "a copy, cast", leave: "changes nothing"}
        if isinstance(default, Replicate):
            expected = "`Replicate()`"
        elif callable(default) or default is dataclasses.MISSING:
            expected = words[default]  # type: ignore[index]
        else:
            expected = f"`{default!r}`".replace("'", '"')
        assert ROWS[field.name] == expected, field.name


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_placement_has_its_arguments_and_an_example(name: str) -> None:
    fields = dataclasses.fields(getattr(placements, name))
    arguments = [f.name + ("" if f.default is dataclasses.MISSING else f"={f.default}") for f in fields]
    assert f"\n`{name}({', '.join(arguments)})`: " in PAGE
    assert re.search(rf"^>>> ranks\({name}\(", PAGE, flags=re.MULTILINE)


def test_the_examples_give_what_they_say() -> None:
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    examples = doctest.DocTestParser().get_doctest(blocks, {"torch": torch}, "case.md", None, 0)
    assert len(examples.examples) == len(PUBLIC) + 10
    assert doctest.DocTestRunner().run(examples).failed == 0
    wrong = doctest.DocTestParser().get_doctest(
        blocks.replace("[2, 3, 6, 7]", "[2, 3, 7, 6]"), {"torch": torch}, "x", None, 0
    )
    assert doctest.DocTestRunner().run(wrong, out=lambda _text: None).failed == 1
