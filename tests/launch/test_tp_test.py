"""`torchrun launch/tp_test.py`: the same verdicts at torchrun's degree."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from command import IN_FLOATS
from tp_harness.launch import RankLauncher

from tp_harness.commands import tp_test
from tp_harness.config.options import Options, resolve
from tp_harness.errors import UsageError
from tp_harness.neuron import availability as doctor
from tp_harness.verification.hosts import Host
from tp_harness.verification.negative_control import candidates
from tp_harness.verification.torchrun_flow import _check_cores

needs_torch_xla = pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch-xla is not installed; `make test-xla` has it"
)
SCRIPT = Path(__file__).parents[2] / "launch" / "tp_test.py"


def torchrun(
    ranks: int, *options: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # a free port: tests beside this one may have torchrun's own, 29500
    agent = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [sys.executable, *agent, "--nproc-per-node", str(ranks), str(SCRIPT), *options]
    values = os.environ | (environment or {})
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=240, env=values)


def record(cwd: Path) -> dict[str, Any]:
    (path,) = cwd.glob("artifacts/*/run.json")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_passes_at_the_degree_of_torchrun(tmp_path: Path, ranks: int) -> None:
    result = torchrun(ranks, "--component", "attention", "--component", "mlp", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"tp_test: backend gloo, {ranks} process{'es' * (ranks > 1)} on CPUs.\n" in result.stderr
    values = record(tmp_path)
    assert values["exit_code"] == 0 and values["finished"] and values["backend"] == "gloo"
    assert {(r["component"], r["tp"], r["status"]) for r in values["results"]} == {
        (component, ranks, status) for component in ("attention", "mlp") for status in ("PASS", "PROVED")
    }


def test_mismatch_is_one_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from tp_harness import Case, Shard\n"
        "class Sharded(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.flip(0))\n"
        "def sharded():\n"
        "    return Sharded(8, 16 // torch.distributed.get_world_size())\n"
        "CASE = Case(name='flip', reference=lambda: nn.Linear(8, 16), sharded=sharded,\n"
        "            plan={'weight': Shard(0), 'bias': Shard(0)}, output=Shard(-1),\n"
        "            inputs=lambda generator: (torch.randn(4, 8, generator=generator),))\n"
    )
    result = torchrun(2, "--case", "wrong.py:CASE", *IN_FLOATS, cwd=tmp_path)
    assert result.returncode == 1
    assert "MISMATCH flip: output.0 is wrong at tp 2 in both dtypes" in result.stdout
    assert record(tmp_path)["exit_code"] == 1


def test_usage_error_is_one_sentence_and_code_two(tmp_path: Path) -> None:
    result = torchrun(2, "--component", "mpl", cwd=tmp_path)
    assert result.returncode != 0 and "exitcode  : 2" in result.stderr
    assert result.stderr.count("tp_test: unknown component 'mpl'. Did you mean 'mlp'?") == 1
    assert not (tmp_path / "artifacts").exists()


def test_degree_comes_from_torchrun(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(sys, "argv", ["tp_test.py", "--tp", "8"])
    assert tp_test.main() == 2
    assert capsys.readouterr().err == "tp_test: --tp is 8; under torchrun the degree is --nproc-per-node.\n"


def test_without_torchrun_it_says_how(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 2
    assert "start it as `torchrun --nproc-per-node N launch/tp_test.py`" in result.stderr


@needs_torch_xla
def test_each_process_is_a_rank_of_backend_neuron(tmp_path: Path) -> None:
    """All of it but the device: no NEURON_* variable was set, and torch_xla finds what it needs."""
    options = ("--backend", "neuron", "--component", "attention", "--layer", "0", "--draws", "1")
    result = torchrun(1, *options, cwd=tmp_path, environment={"PJRT_DEVICE": "CPU"})
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr.count("tp_test: backend neuron, 1 process with PJRT_DEVICE=CPU: no NeuronCore is") == 1
    values = record(tmp_path)
    assert values["backend"] == "neuron" and "no NeuronCore was touched" in str(values["blind_spots"])
    results = values["results"]
    assert [r["status"] for r in results] == ["PASS", "PASS"]
    for r in results:
        assert r["program"]["compiles"] == 1 and r["program"]["fallbacks"] == []
        assert [rank["core"] for rank in r["ranks"]] == ["process 0 with PJRT_DEVICE=CPU"]


@needs_torch_xla
def test_processes_that_are_no_world_stop_before_anything_is_summed(tmp_path: Path) -> None:
    options = ("--backend", "neuron", "--component", "rmsnorm")
    result = torchrun(2, *options, cwd=tmp_path, environment={"PJRT_DEVICE": "CPU"})
    assert "exitcode  : 2" in result.stderr
    assert result.stderr.count("tp_test: 2 ranks were started, but torch-xla sees 1: sums would be partial; ") == 1
    assert "--backend xla has all ranks in one.\n" in result.stderr
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xla", "--backend is xla, whose ranks are threads; torchrun's are processes: gloo or neuron"),
        ("glo", "unknown backend 'glo'. Did you mean 'gloo'"),
        ("neuron", "backend neuron cannot run here: "),
    ],
)
def test_a_backend_that_torchrun_s_processes_cannot_be_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tp_test, "neuron_reason", lambda *_facts: "no Neuron device was found")
    with pytest.raises(UsageError, match=message):
        tp_test._backend(name)


@pytest.mark.parametrize(
    ("name", "reason", "backend", "said"),
    [
        ("auto", None, "neuron", "backend neuron, 8 processes on NeuronCores 8-15."),
        (
            "auto",
            "no code",
            "gloo",
            "8 processes on CPUs; this machine's NeuronCores are not used: no code.",
        ),
        ("gloo", None, "gloo", "CPUs; this machine's NeuronCores are not used: --backend is gloo."),
    ],
)
def test_where_there_are_neuroncores_it_uses_them_or_says_why_not(
    name: str, reason: str | None, backend: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tp_test, doctor):
        monkeypatch.setattr(module, "on_neuron", lambda _environment: True)
        monkeypatch.setattr(module, "neuron_reason", lambda *_facts: reason)
    monkeypatch.setenv("PJRT_DEVICE", "NEURON")
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "8-15")
    chosen, unused = tp_test._backend(name)
    assert chosen == backend
    assert tp_test._chosen(chosen, unused, Host(index=0, count=1, ranks=8)).endswith(said)


def test_neuron_on_several_hosts_is_refused() -> None:
    with pytest.raises(UsageError, match="one host and torchrun has 2: start it on each of them with --nnodes 1"):
        tp_test._prepare(Host(index=0, count=2, ranks=8))


def choose_cores(argument: str, rank: int, size: int) -> None:
    """Say what comes of it when ranks chose these cores."""
    os.environ["NEURON_RT_VISIBLE_CORES"] = argument.split()[rank]
    try:
        _check_cores(rank)
    except UsageError as error:
        print(error, flush=True)
    dist.barrier()


def test_ranks_that_chose_different_cores_say_so(tmp_path: Path) -> None:
    with RankLauncher.fork(choose_cores) as launcher:
        for cores, said in (("0-1 2-3", "the ranks chose different NeuronCores, 0-1 and 2-3"), ("0-1 0-1", "")):
            logs = tmp_path / cores
            outcome = launcher.start(cores, size=2, work_dir=tmp_path / "work", log_dir=logs, timeout=60).wait()
            assert outcome.ok, outcome
            texts = [(logs / f"rank{rank}.log").read_text() for rank in (0, 1)]
            assert all(("the ranks chose" in text) == bool(said) and said in text for text in texts)


FAULTY = """
import os, signal, sys, threading, time
def spoil():
    while not hasattr(sys.modules.get("tp_harness.models.gpt_oss.modules.mlp"), "NeuronGPTOSSMLPBlock"):
        time.sleep(0.01)
    block = sys.modules["tp_harness.models.gpt_oss.modules.mlp"].NeuronGPTOSSMLPBlock
    def forward(self, x):
        if self.group.rank == {victim}:
            os.kill(os.getpid(), signal.{name})
            time.sleep(3600)
        return self.group.all_reduce(x)
    block.forward = forward
threading.Thread(target=spoil, daemon=True).start()
"""


COMPONENTS = ("rmsnorm", "mlp", "rope")


def torchrun_faulty(cwd: Path, monkeypatch: pytest.MonkeyPatch, name: str, victim: int) -> tuple[str, dict[str, Any]]:
    """A run whose MLP is struck by a signal, and whose control, which comes first, is put into rmsnorm."""
    (cwd / "sitecustomize.py").write_text(FAULTY.format(name=name, victim=victim))
    monkeypatch.setenv("PYTHONPATH", str(cwd))
    given = Options(components=COMPONENTS, degrees=(2,), draws=1, dtypes=("float32",))
    seed = next(s for s in range(99) if candidates(resolve(replace(given, seed=s)), 2)[0].component == "rmsnorm")
    options = [word for component in COMPONENTS for word in ("--component", component)]
    options += ["--draws", "1", "--dtype", "float32", "--timeout", "10", "--seed", str(seed)]
    result = torchrun(2, *options, cwd=cwd)
    assert result.returncode != 0
    return result.stderr, record(cwd)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGKILL", "CRASH"), ("SIGSTOP", "TIMEOUT")])
def test_a_lost_rank_ends_the_run_and_what_was_found_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, status: str
) -> None:
    _, values = torchrun_faulty(tmp_path, monkeypatch, name, victim=1)
    found = {r["component"]: (r["status"], r["reason"]) for r in values["results"]}
    assert {name: status for name, (status, _) in found.items()} == {"rmsnorm": "PASS", "mlp": status, "rope": "CRASH"}
    state = "has ended" if name == "SIGKILL" else "is stopped by a signal"
    assert found["mlp"][1].startswith(f"rank 1 {state} in mlp.0.d0"), found
    assert found["mlp"][1].endswith("; torchrun's output says why")
    assert found["rope"][1].startswith("not run, because torchrun starts no rank anew: rank 1 ")
    assert [control["rejected"] for control in values["controls"]] == [True]
    assert values["exit_code"] == 3


@pytest.mark.slow
def test_a_rank_0_that_is_stopped_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first start it had told nothing yet; its folder says that the run is not finished."""
    errors, values = torchrun_faulty(tmp_path, monkeypatch, "SIGSTOP", victim=0)
    assert values["finished"] is False and values["results"] == []
    assert "exitcode  : -9" in errors, errors


@pytest.mark.slow
def test_a_leader_that_judges_longer_than_the_timeout_loses_no_follower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "def slow_down():\n"
        "    while not hasattr(sys.modules.get('tp_harness.verification.degrees'), 'judge'):\n"
        "        time.sleep(0.01)\n"
        "    run = sys.modules['tp_harness.verification.degrees']\n"
        "    judge = run.judge\n"
        "    run.judge = lambda *arguments: (time.sleep(12), judge(*arguments))[1]\n"
        "threading.Thread(target=slow_down, daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = torchrun(
        2, "--component", "rmsnorm", "--draws", "1", "--dtype", "float32", "--timeout", "10", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-3000:]
