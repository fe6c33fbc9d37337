"""Which `nki` is used: AWS's wheel when it is real, never PyPI's stub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tp_harness.kernels import compat

ROOT = Path(__file__).parents[2]

# What a real wheel offers, played by the interpreter under the name `nki`.
REAL = {
    "__init__.py": "from tp_harness.kernels.nki_interpreter import jit, simulate\n__version__ = '0.6.0'\n",
    "isa.py": "from tp_harness.kernels.nki_interpreter.isa import *\n",
    "language.py": (
        "from tp_harness.kernels.nki_interpreter import language\n"
        "def __getattr__(name):\n    return getattr(language, name)\n"
    ),
}
STUB = {"__init__.py": "__version__ = '0.0.1'\n"}


def _python(folder: Path, files: dict[str, str], code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    package = folder / "nki"
    package.mkdir()
    for name, text in files.items():
        (package / name).write_text(text)
    paths = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


SHOW = "from tp_harness.kernels import compat; print(compat.TOOLCHAIN.mode, '|', compat.TOOLCHAIN.reason)"


def test_the_stub_is_recognised_and_not_used(tmp_path: Path) -> None:
    result = _python(tmp_path, STUB, SHOW)
    expected = "interpreter | the installed nki is PyPI's stub, not AWS's wheel (no simulate, isa, language)"
    assert result.stdout.strip() == expected


def test_a_real_wheel_is_used_for_the_same_kernels(tmp_path: Path) -> None:
    code = SHOW + (
        "\nimport torch, os"
        "\nfrom tp_harness.kernels import run"
        "\nfrom tp_harness.kernels.checks import accuracy, mutants"
        "\nprint(run('rmsnorm', torch.ones(2, 96), torch.ones(96), eps=1e-5).sum().item() > 0)"
        "\nmeasured = [accuracy.measure(case) for case in accuracy.tiny_cases(torch.float32)[:8]]"
        "\nprint(all(item.error <= accuracy.FLOAT32_LIMIT and item.usage is None for item in measured))"
        "\nprint(mutants.judge(mutants.MUTANTS[0]).killed, os.environ['NEURON_PLATFORM_TARGET_OVERRIDE'])"
    )
    result = _python(tmp_path, REAL, code)
    assert result.stdout.splitlines() == ["simulate | AWS's nki 0.6.0", "True", "True", "True trn1"], result.stderr


def test_the_interpreter_can_be_asked_for(tmp_path: Path) -> None:
    result = _python(tmp_path, REAL, SHOW, TP_HARNESS_NKI="interpreter")
    assert result.stdout.strip() == "interpreter | asked for"


@pytest.mark.parametrize("mode", ["simulate", "device"])
def test_asking_for_what_a_stub_cannot_do_fails(tmp_path: Path, mode: str) -> None:
    result = _python(tmp_path, STUB, SHOW, TP_HARNESS_NKI=mode)
    assert result.returncode == 1
    assert f"ImportError: TP_HARNESS_NKI={mode}: the installed nki is PyPI's stub" in result.stderr
    assert "install it from AWS's Neuron package index" in result.stderr


def test_device_mode_passes_tensors_as_they_are(tmp_path: Path) -> None:
    code = (
        "from tp_harness.kernels import call, registry, run\nimport dataclasses, torch\n"
        "def kernel(**given):\n    return sorted(type(value).__name__ for value in given.values())\n"
        "spec = dataclasses.replace(registry.spec('rmsnorm'), kernel=kernel)\n"
        "registry._BY_NAME['rmsnorm'] = spec\n"
        "print(run('rmsnorm', torch.ones(2, 96), torch.ones(96), eps=1e-5))"
    )
    result = _python(tmp_path, REAL, code, TP_HARNESS_NKI="device")
    assert result.stdout.strip() == "['Tensor', 'Tensor', 'float']", result.stderr


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="TP_HARNESS_NKI='gpu': choose from interpreter, simulate, device"):
        compat.choose("gpu")


def test_the_interpreter_needs_no_torch() -> None:
    code = "import sys, tp_harness.kernels.nki_interpreter; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "False"
