"""Model families: each is one folder, and the walkthrough of CONTRIBUTING adds another by its very steps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sources import ROOT, SOURCES

from tp_harness.errors import UsageError
from tp_harness.models import NAMES, families, family_of, find_family, load_model, presets

PATIENCE = 250  # seconds until a test gives up; never the measure of a pass
WORDS = re.compile(r"gpt.?oss|swiglu|mlp[12]_|\bsinks?\b|yarn", re.IGNORECASE)
# Where people import a family's names from, and the registry.
FACES = ("config", "models", "modules")


def mentions(text: str) -> list[str]:
    """Lines with a word of gpt-oss."""
    return [line.strip() for line in text.splitlines() if WORDS.search(line)]


def test_no_word_of_a_family_stands_outside_its_folder() -> None:
    theirs = ("models.gpt_oss", "reference", "kernels")
    others = {name: source for name, source in SOURCES.items() if not name.startswith(theirs) and name not in FACES}
    assert len(others) > 150
    assert {name: mentions(source.text) for name, source in others.items() if mentions(source.text)} == {}


def test_a_word_would_be_found() -> None:
    text = "from x import GptOss\ny = sinking\n# a sink\nz = mlp1_weight\nw = gptOSS"
    assert mentions(text) == ["from x import GptOss", "# a sink", "z = mlp1_weight", "w = gptOSS"]


def test_each_family_has_a_folder_and_its_models_are_found_by_name() -> None:
    assert [family.name for family in families()] == list(NAMES)
    for family in families():
        assert (ROOT / "tp_harness" / "models" / family.name / "__init__.py").is_file()
        assert family.whole in family.components and set(family.layered) <= set(family.components)
        assert find_family(family.name) is family
        assert all(family_of(load_model(name)) is family for name in family.presets)
    assert len(presets()) == sum(len(family.presets) for family in families())


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"model_type": "llama"}'], ids=["empty", "list", "half", "another"])
def test_a_file_of_no_family_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(str(path))):
        load_model(str(path))


def test_the_walkthrough_in_contributing(tmp_path: Path) -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a family")[2].partition("\n## ")[0]
    shutil.copytree(ROOT / "tp_harness", tmp_path / "tp_harness")
    for name in ("kernels", "launch", "reference"):
        shutil.copytree(ROOT / name, tmp_path / "tp_harness" / name)
    blocks = re.findall(r"`([\w/]+\.py)`:\n\n   ```python\n(.*?)   ```", section, flags=re.DOTALL)
    assert [path for path, _ in blocks if "models/toy" in path] and len(blocks) == 4
    for path, code in blocks:
        file = tmp_path / "tp_harness" / path.removeprefix("tp_harness/")
        file.parent.mkdir(exist_ok=True)
        text = textwrap.dedent(code)
        if file.exists():  # the registry: a line of it becomes another
            name = text.partition(" = ")[0]
            text = re.sub(rf"^{name} = .*\n", text, file.read_text(), flags=re.MULTILINE)
        file.write_text(text)
    [command] = [line for line in section.split("`") if line.startswith("tp-harness verify")]
    right = run_copy(tmp_path, command.split()[1:])
    assert right.returncode == 0, right.stdout + right.stderr
    assert "12 PASS" in right.stdout and "stack" in right.stdout
    components = tmp_path / "tp_harness" / "models" / "toy" / "components.py"
    components.write_text(components.read_text().replace("self.group.all_reduce(self.down", "(self.down"))
    wrong = run_copy(
        tmp_path, ["verify", "--model", "toy-tiny", "--tp", "2", "--component", "layer", "--dtype", "float32"]
    )
    assert wrong.returncode == 1 and "MISMATCH" in wrong.stdout


def run_copy(folder: Path, given: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tp_harness", *given]
    env = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
