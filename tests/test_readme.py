"""The README's examples, run as a reader would."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MODULE, BUILD = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)


def verify(cwd: Path) -> subprocess.CompletedProcess[str]:
    line = re.search(r"^    tp-harness (verify --case my_mlp.py:CASE)$", README, flags=re.MULTILINE)
    assert line
    return run("-m", "tp_harness", *line[1].split(), "--tp", "1,2,8", cwd=cwd)


def test_own_module_passes_in_ten_lines(tmp_path: Path) -> None:
    joined = MODULE[MODULE.index("CASE = Case(") :]
    assert len(joined.strip().splitlines()) + 1 <= 10, "the Case and its import are what is beyond the modules"
    (tmp_path / "my_mlp.py").write_text(MODULE)
    result = verify(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 PASS" in result.stdout


def test_bias_inside_the_reduction_is_found(tmp_path: Path) -> None:
    wrong = MODULE.replace(
        "return self.reduce(self.down(torch.relu(self.up(x)))) + self.bias",
        "return self.reduce(self.down(torch.relu(self.up(x))) + self.bias)",
    )
    assert wrong != MODULE
    (tmp_path / "my_mlp.py").write_text(wrong)
    result = verify(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "MISMATCH my_mlp layer 0 tp 8 float32" in result.stdout
    assert "likely cause: bias x tp: bias is added by every rank before the reduction, 8 times" in result.stdout


def test_build_module_example(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(MODULE + BUILD)
    result = run("example.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "mlp.pt").exists()


def test_every_linked_path_exists() -> None:
    root = Path(__file__).parents[1]
    named = re.findall(r"`((?:tp_harness|launch|tests|reference)/[\w/.]*)`", README)
    assert all((root / path).exists() for path in named)
