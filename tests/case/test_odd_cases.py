"""Own modules of unusual kinds: right ones pass, and what cannot be judged is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from ladder import options

from tp_harness.backends import choose_backend
from tp_harness.case.plan import OF_LOCAL
from tp_harness.judge.shape_checks import RANDOM
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.report.failure_text import diagnosis_text
from tp_harness.results.result import Result, Status
from tp_harness.results.run_record import RunRecord, open_record
from tp_harness.verification import degrees

CASES = '''
import torch
import torch.distributed as dist
from torch import nn
from tp_harness import Case, Replicate, Shard
from tp_harness.parallel.group import current_group

class Scalars(nn.Module):
    """A parameter without dimensions, an empty one, and buffers of integers and booleans."""

    def __init__(self, ranks=1):
        super().__init__()
        self.up, self.down = nn.Linear(12, 64 // ranks), nn.Linear(64 // ranks, 20, bias=False)
        self.temperature, self.empty = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0))
        self.norm = nn.BatchNorm1d(12)
        self.register_buffer("mask", torch.arange(12) != 3)

    def forward(self, x):
        x = self.norm(x.flatten(0, 1)).view(x.shape) * self.mask
        return self.reduce(self.down(torch.relu(self.up(x)))) * self.temperature

    def reduce(self, x):
        return x

class ShardedScalars(Scalars):
    def __init__(self):
        super().__init__(current_group().size)

    def reduce(self, x):
        return current_group().all_reduce(x)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(self.embedding(tokens))

class Untied(Tied):
    def __init__(self):
        super().__init__()
        self.out.weight = nn.Parameter(self.out.weight.detach().clone())

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 20)

    def forward(self, x):
        return self.linear(x)

class Writes(Linear):
    def forward(self, x):
        x += 1
        return None, self.linear(x)

class Total(Linear):
    def forward(self, x):
        return self.linear(x).sum()

class Random(Linear):
    def forward(self, x):
        return nn.functional.dropout(self.linear(x))

class Remembers(Linear):
    """Right at first; then every sum is of one call more."""

    def forward(self, x):
        self.linear.bias += 0.001 * (current_group().size > 1)
        self.linear.bias -= 0.001 * (current_group().size > 1 and not hasattr(self, "called"))
        self.called = True
        return self.linear(x)

class Cancels(Scalars):
    """Large numbers that cancel: float32 holds little of what is left."""

    def forward(self, x):
        return super().forward(x) + 10_000 - 10_000

class CancelsSharded(ShardedScalars, Cancels):
    pass

class Parts(ShardedScalars):
    """As neuronx-distributed sums: parts in the module's dtype, their sum in float32."""

    def reduce(self, x):
        return current_group().all_reduce(x.float()).to(x.dtype)

class Direct(Linear):
    def forward(self, x):
        y = super().forward(x)
        dist.all_reduce(y)
        return y

class Half(Linear):
    def forward(self, x):
        return self.linear(x).half()

class Tapped(Scalars):
    """Taps in another order than they run in, one of them cut otherwise than said, and one where the output is."""

    def __init__(self, ranks=1):
        super().__init__(ranks)
        self.hidden, self.out = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.out(self.reduce(self.down(self.hidden(torch.relu(self.up(x))))))

class NotReduced(Tapped):
    def __init__(self):
        super().__init__(current_group().size)

class Lookup(nn.Module):
    def __init__(self, ranks=1):
        super().__init__()
        self.table, self.unused = nn.Embedding(64 // ranks, 8), nn.Parameter(torch.zeros(3))

    def forward(self, tokens):
        return self.table(tokens)

class ShardedLookup(Lookup):
    """The last row of each shard is taken for the next rank's."""

    def __init__(self):
        super().__init__(current_group().size)

    def forward(self, tokens):
        group = current_group()
        local = tokens - group.rank * (64 // group.size)
        mine = (local >= 0) & (local < 64 // group.size - 1)
        return group.all_reduce(self.table(local.clamp(0, 64 // group.size - 1)) * mine.unsqueeze(-1))

def case(reference, sharded=None, inputs=lambda g: (torch.randn(4, 8, 12, generator=g),), **fields):
    return Case(name="odd", reference=reference, sharded=sharded or reference, inputs=inputs, **fields)

def tokens(generator):
    return (torch.randint(0, 64, (2, 8), generator=generator),)

PLAN = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
SCALARS, PARTS = (case(Scalars, module, plan=PLAN) for module in (ShardedScalars, Parts))
TAPPED = case(Tapped, NotReduced, plan=PLAN, taps={"out": Replicate(), "hidden": Shard(0)})
LOOKUP, LOOKUP_SEEN = (
    case(Lookup, ShardedLookup, lambda g, rows=rows: (torch.tensor([rows]),), plan={"table.weight": Shard(0)})
    for rows in ([*range(31), *range(32, 62)], range(64))
)
CANCELS = case(Cancels, CancelsSharded, plan=PLAN)
TIED, TIED_BY_MISTAKE, TIED_IN_THE_REFERENCE = (
    case(*modules, tokens, replicated=True) for modules in ((Tied, Tied), (Untied, Tied), (Tied, Untied))
)
WRITES, TOTAL, RANDOM = (case(module, replicated=True) for module in (Writes, Total, Random))
HALF, REMEMBERS, DIRECT = (case(Linear, module, replicated=True) for module in (Half, Remembers, Direct))
'''


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.py"
    path.write_text(CASES)
    return path


def record_of(cases: Path, name: str, **fields: object) -> RunRecord:
    """A run of one of the cases at tp 1 and 2 on local ranks."""
    chosen = options(targets=(("case", 0),), case=f"{cases}:{name}", degrees=(1, 2), model=PRESETS["tiny"], **fields)
    backend = choose_backend("local")
    record = open_record(cases.parent / "out", command="", options={}, backend="local", blind_spots="")
    try:
        degrees.verify(chosen, backend, record, lambda _step: None)
    finally:
        record.release()
    return record


def results(cases: Path, name: str, **fields: object) -> list[Result]:
    return record_of(cases, name, **fields).results


@pytest.mark.parametrize("name", ["SCALARS", "PARTS", "TIED", "TIED_IN_THE_REFERENCE", "WRITES"])
def test_a_right_one_passes(cases: Path, name: str) -> None:
    found = results(cases, name, repeats=1)
    assert [result.reason for result in found if result.status is not Status.PASS] == []
    assert len(found) == 4


def test_where_the_reference_is_too_far_off_itself_nothing_is_decided(cases: Path) -> None:
    found = [result for result in results(cases, "CANCELS") if result.dtype == "float32"]
    assert {result.status for result in found} == {Status.VOID}
    assert all("and so is what the single-core reference itself is off" in result.reason for result in found)
    assert {result.first_divergence.tensor for result in found if result.first_divergence} == {"output.0"}


def test_what_changes_from_call_to_call_shows_when_forwards_are_repeated(cases: Path) -> None:
    assert {result.status for result in results(cases, "REMEMBERS")} == {Status.PASS}
    for result in results(cases, "REMEMBERS", repeats=2):
        assert result.status is (Status.PASS if result.tp == 1 else Status.MISMATCH)
        assert [check.passed for check in result.checks if check.name == "repeat"] == [result.tp == 1]
        assert result.tp == 1 or "repeat: output.0 of rank 0 has other bits when it is run again" in result.reason


def test_that_local_ranks_have_no_process_group_is_said_once(cases: Path) -> None:
    record = record_of(cases, "DIRECT", fault_control=False)
    assert {result.status for result in record.results} == {Status.CRASH}
    assert record.notes.count(OF_LOCAL) == 1
    assert not any("current_group" in result.reason for result in record.results)


def test_tying_what_the_reference_does_not_is_a_mismatch(cases: Path) -> None:
    found = results(cases, "TIED_BY_MISTAKE")
    assert {result.status for result in found} == {Status.MISMATCH}
    assert found[0].reason == "reassembly: rank 0 does not hold its shard of embedding.weight (Replicate())"


def test_a_wrong_dtype_is_its_own_explanation(cases: Path) -> None:
    for result in results(cases, "HALF"):
        assert result.reason == f"output.0 of rank 0 is torch.float16, where torch.{result.dtype} was run"
        assert diagnosis_text(result) == []


def test_one_number_proves_little(cases: Path) -> None:
    reason = "output.0 of the reference is one number, which proves little: return what it is made of"
    assert {(r.status, r.reason) for r in results(cases, "TOTAL")} == {(Status.VOID, reason)}


def test_a_reference_that_draws_random_numbers_is_named(cases: Path) -> None:
    found = results(cases, "RANDOM")
    assert {result.dtype for result in found} == {"float32", "bfloat16"}
    assert {(result.status, result.reason) for result in found} == {(Status.VOID, RANDOM)}


def test_the_verdict_outlives_its_explanation(cases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ArithmeticError("no idea")

    monkeypatch.setattr(degrees, "explain", fails)
    record = record_of(cases, "TIED_BY_MISTAKE", dtypes=("float32",))
    assert [(r.tp, r.status) for r in record.results] == [(1, Status.MISMATCH), (2, Status.MISMATCH)]
    [first, second] = [
        note for note in record.notes if "which is a bug in tp-harness: ArithmeticError: no idea" in note
    ]
    log = Path(first.rpartition("(")[2].rstrip(")"))
    assert first != second and "in fails" in log.read_text()


def test_a_tap_at_the_output_hides_no_cause_and_one_that_is_cut_otherwise_is_no_mistake_of_the_module(
    cases: Path,
) -> None:
    [result] = [r for r in results(cases, "TAPPED", dtypes=("float32",)) if r.tp == 2]
    assert result.first_divergence is not None
    assert (result.first_divergence.tensor, result.first_divergence.after) == ("out", "hidden")
    assert [cause.name for cause in result.diagnosis] == ["all-reduce missing"]
    [note] = [note for note in result.notes if "tap" in note]
    assert note == (
        "tap hidden is right as Shard(dim=2, unit=1), so that Shard(dim=0, unit=1) in `taps` must be a slip"
    )


def test_a_case_in_a_package_imports_as_the_package_does(tmp_path: Path) -> None:
    package = tmp_path / "models" / "wide"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "parts.py").write_text(CASES)
    path = package / "cases.py"
    path.write_text("from ..parts import TIED as CASE")
    assert {result.status for result in results(path, "CASE")} == {Status.PASS}


def test_what_the_inputs_do_not_reach_is_said(cases: Path) -> None:
    record = record_of(cases, "LOOKUP", dtypes=("float32",), fault_control=False)
    assert {result.status for result in record.results} == {Status.PASS}, "no row that is read is wrong"
    assert {
        "3 of 64 rows of table.weight (31, 62, 63) change no output with these inputs: a mistake there is unseen",
        "unused changes no output with these inputs: a mistake there is unseen",
    } < set(record.notes)


def test_and_is_seen_where_they_reach(cases: Path) -> None:
    record = record_of(cases, "LOOKUP_SEEN", dtypes=("float32",))
    assert [result.status for result in record.results] == [Status.MISMATCH] * 2
    assert not [note for note in record.notes if "table" in note]
