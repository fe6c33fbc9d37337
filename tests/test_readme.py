"""The examples of the README and of docs/, run as a reader would, and the limits that docs/verdict.md states."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tp_harness.judge import verdict
from tp_harness.parallel.group import collective

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CASE, NXD, VERDICT = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("case", "nxd", "verdict"))
[MODULE], [BUILD] = (re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for text in (README, NXD))


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
    assert "DIFFERENT my_mlp: output.0 is not the reference's at tp 2, 8 in all dtypes: bias x tp" in result.stdout
    assert (
        "  cause: bias x tp: bias is added by every rank before the reduction, 2 times instead of once (not equal, and"
        in result.stdout
    )


def test_build_module_example(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(MODULE + BUILD)
    result = run("example.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "mlp.pt").exists()


def test_samples_of_runs_show_the_controls_and_what_a_run_prints() -> None:
    samples = [sample for text in (README, CASE) for sample in re.findall(r"    ┏(?:.+\n)+", text)]
    assert len(samples) == 2
    controls = r"^    controls, mistakes put in on purpose, rejected as they must be: [\w-]+ at tp 1\b.*\b32$"
    for sample in samples:
        assert re.search(controls, sample, re.MULTILINE)
        counts = r"^    (8 PASS, 4|80 PASS, 40) PROVED \(each with 2 draws \(exact: 1\) of weights and inputs; backend "
        assert re.search(counts, sample, re.MULTILINE)
    ratios = {tp: float(r) for tp, r in zip((1, 2, 8, 32), re.findall(r"R (\d\.\d+)", samples[1]), strict=True)}
    assert all(r <= verdict.RATIO_ALARM * math.sqrt(1 + (tp / 2 if tp > 1 else 0)) for tp, r in ratios.items())
    assert ratios[8] > verdict.RATIO_ALARM, "the sample is one whose limit is wider"


def test_the_limits_that_the_page_states_are_those_of_verdicts() -> None:
    text = " ".join(VERDICT.split())
    half, whole = (collective("all_reduce", 8, (64,), dtype) for dtype in (torch.bfloat16, torch.float32))
    widened = [sums.roundings if (sums := verdict.sums_of([call], planned=p)) else 0.0
               for call, p in ((half, True), (half, False), (whole, False), (whole, True))]  # fmt: skip
    assert widened == [8 / 2, 8 / 2, 1.0, 0.0]
    for words in ("1.2 sqrt(1 + N/2)", "1.2 sqrt(2)", "error over the single-core error, at most 1.2,"):
        assert words in text
    assert verdict.RATIO_ALARM == 1.2
    assert "the last two are 4 times as large (4e-5)" in text
    single, double = (verdict.PRECISIONS[dtype] for dtype in ("float32", "float64"))
    assert (4.0, pytest.approx(4e-5)) == (verdict.LOCAL_FACTOR, verdict.LOCAL_FACTOR * single.ceiling)
    assert "from the third layer on sqrt(layers / 2) as much" in text
    assert verdict.CEILING_LAYERS == 2
    assert "within 3 times the single-core error or sqrt(K) 2^-26, never above 1e-5" in text
    assert (verdict.BASELINE_FACTOR, single.floor, single.ceiling) == (3.0, 2.0**-26 / 2.0**-24, 1e-5)
    assert "In float64, which runs where it is asked for, 16 sqrt(K) 2^-53 and 1e-12" in text
    assert (double.floor, double.digits, double.ceiling) == (16.0, 53, 1e-12)
    elements = (verdict.RATIO_SPREAD / math.log(verdict.RATIO_ALARM / verdict.RATIO_CLEAN)) ** 2
    assert "outputs below 1,700 elements get more" in text
    assert elements == pytest.approx(1700, abs=50)
