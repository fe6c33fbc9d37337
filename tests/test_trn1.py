"""The model of Trn1: its work against real ranks and torch's counter, its fit against the published rows, its words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ladder import TINY, Ladder
from torch.utils.flop_counter import FlopCounterMode

from tp_harness.cli import main
from tp_harness.components import component_case
from tp_harness.config import PRESETS, InferenceConfig, NeuronConfig
from tp_harness.errors import UsageError
from tp_harness.group import Group, use_group
from tp_harness.options import COMPONENT_NAMES
from tp_harness.rank import as_tuple, shard_inputs
from tp_harness.trn1 import MODELLED, calibrate, constants, page, roofline
from tp_harness.trn1.collectives import Collectives, parse_nccom, read_nccom
from tp_harness.trn1.predict import predict
from tp_harness.trn1.published import MODELS, ROWS
from tp_harness.trn1.work import COMPONENTS, MXFP4, Message, Place, Step, Work, decode, transformer

BATCH, SEQ = 2, 24  # what Ladder runs
AS_VERIFIED = Step(batch=BATCH, new=SEQ, context=SEQ, logits=BATCH * SEQ)  # verify computes all logits


# ---------------------------------------------------------------------------------------------------- work


class Alone(Group):
    """Rank 0 of a group whose other ranks do nothing; a counter of operations needs no more."""

    def _all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def _all_gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat([x] * self.size, dim=dim)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("trn1"), dtypes=("bfloat16",))


@pytest.mark.parametrize("tp", [1, 2, 8, 32])
@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_weights_and_messages_are_those_that_ranks_record(ladder: Ladder, name: str, tp: int) -> None:
    work = COMPONENTS[name](Place(config=TINY, tp=tp, step=AS_VERIFIED), 0)
    for rank in ladder.run(name, tp, "bfloat16").ranks:
        assert work.weight_bytes == rank.weight_bytes
        assert [(m.kind, m.bytes) for m in work.messages] == [(c.kind, c.bytes) for c in rank.collectives]


def counted_operations(name: str, tp: int) -> int:
    """What torch counts for rank 0's module."""
    config = InferenceConfig.of(TINY, NeuronConfig(batch_size=BATCH, seq_len=SEQ, torch_dtype="float32", tp_degree=tp))
    case = component_case(name, config, 0)
    group = Alone(0, tp)
    with use_group(group), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module = case.sharded()
        as_tuple(module(*shard_inputs(case, case.inputs(torch.Generator()), torch.float32, group)))
    return counter.get_total_flops()


@pytest.mark.parametrize("tp", [1, 8, 32])
@pytest.mark.parametrize("name", COMPONENT_NAMES)
def test_operations_are_those_that_torch_counts(name: str, tp: int) -> None:
    assert COMPONENTS[name](Place(config=TINY, tp=tp, step=AS_VERIFIED), 0).flops == counted_operations(name, tp)


def test_the_public_numbers_of_gpt_oss_come_out() -> None:
    """Parameters, active parameters (embedding not counted) and checkpoint size of the model card (August 2025)."""
    for name, parameters, active, packed_gib in (
        ("gpt-oss-20b", 20.91, 3.61, 12.8),
        ("gpt-oss-120b", 116.83, 5.13, 60.8),
    ):
        work = transformer(Place(config=PRESETS[name], tp=1, step=decode(1, 1)))
        packed = transformer(Place(config=PRESETS[name], tp=1, step=decode(1, 1), storage=MXFP4))
        assert work.weight_bytes / 2e9 == pytest.approx(parameters, abs=0.01)
        assert work.read_bytes / 2e9 == pytest.approx(active, abs=0.01)
        assert packed.weight_bytes / 2**30 == pytest.approx(packed_gib, abs=0.05)


def test_packed_weights_are_padded_where_a_degree_cuts_a_block() -> None:
    def experts(tp: int) -> float:
        row = next(r for r in predict(PRESETS["gpt-oss-20b"], name="", degrees=(tp,)).memory if r.storage == "mxfp4")
        return row.replicated_bytes / row.weight_bytes

    assert experts(2) < 0.001
    assert 0.04 < experts(8) < 0.06  # 12 blocks of 32 for 360 rows, of the experts alone


def test_decode_reads_the_window_and_the_chosen_experts_only() -> None:
    def read(layer: int, seq: int) -> float:
        return COMPONENTS["attention"](Place(config=TINY, tp=1, step=decode(1, seq)), layer).cache_bytes

    assert read(0, 1000) == read(0, TINY.sliding_window) < read(1, 1000)
    one, many = (COMPONENTS["mlp"](Place(config=TINY, tp=1, step=decode(batch, 1)), 0) for batch in (1, 1000))
    assert one.read_bytes < 0.6 * one.weight_bytes  # 4 of 8 experts
    assert many.read_bytes == pytest.approx(many.weight_bytes)


# ---------------------------------------------------------------------------------------------------- roofline


def test_the_largest_term_bounds() -> None:
    def bound(**amounts: Any) -> str:
        return roofline.terms(Work(**amounts), 32, Collectives()).bound

    message = Message(kind="all_reduce", bytes=8)
    assert bound(flops=1e12, read_bytes=1e9, messages=(message,)) == "compute"
    assert bound(flops=1e9, read_bytes=1e9, messages=(message,)) == "HBM"
    assert bound(flops=1e9, read_bytes=1e6, messages=(message,)) == "NeuronLink"


def test_the_high_time_counts_every_reduction_in_full() -> None:
    step, config = decode(1, 128), PRESETS["gpt-oss-20b"]
    alone = transformer(Place(config=config, tp=1, step=step))
    time = roofline.terms(alone, 1, Collectives())
    assert time.link_s == 0
    assert time.seconds_high - time.seconds == pytest.approx(alone.boundaries * constants.BOUNDARY.value)
    assert alone.boundaries == len(transformer(Place(config=config, tp=2, step=step)).messages)


def test_a_row_that_does_not_fit_has_no_price() -> None:
    rows = {(row.storage, row.tp): row for row in predict(PRESETS["gpt-oss-20b"], name="", price_per_hour=36.0).tokens}
    assert rows["bf16", 1].dollars_per_million is None
    fits = rows["bf16", 8]
    assert fits.dollars_per_million == pytest.approx(36.0 / 3600 * fits.token_s / 4 * 1e6)


# ---------------------------------------------------------------------------------------------------- calibration


def test_the_constants_are_the_fit() -> None:
    names = ("HBM_WEIGHTS", "HBM_CACHE", "BOUNDARY", "COMPUTE_EFFICIENCY", "SCORE")
    fitted = (*calibrate.fit_decode(), *calibrate.fit_prefill())
    assert fitted == pytest.approx([constants.ALL[name].value for name in names], rel=2e-3)  # three digits are kept


def test_the_fit_recovers_what_rows_were_made_with() -> None:
    """Rows made by the model itself give its constants back; a slower link moves the boundary alone."""
    made = [replace(fit.row, tpot_ms=fit.model_ms) for fit in calibrate.decode_fit()]
    weights, cache, boundary = (constants.ALL[name].value for name in ("HBM_WEIGHTS", "HBM_CACHE", "BOUNDARY"))
    assert calibrate.fit_decode(made) == pytest.approx((weights, cache, boundary), rel=1e-6)
    reductions = {name: 2 * model.num_hidden_layers + 2 for name, model in MODELS.items()}
    slower = [replace(row, tpot_ms=row.tpot_ms + 0.01 * reductions[row.model]) for row in made]
    assert calibrate.fit_decode(slower) == pytest.approx((weights, cache, boundary + 10e-6), rel=1e-6)


def test_every_row_is_fitted_and_the_stated_error_is_that_of_the_table() -> None:
    rows = calibrate.decode_fit()
    assert [fit.row for fit in rows] == list(ROWS)
    worst = max(abs(row.error) for row in rows)
    blind = max(abs(row.left_out_error) for row in rows if row.left_out_error is not None)
    assert worst < 0.2 and blind < 0.2
    assert f"largest {worst:.1%}; not fitted to the row's model: largest {blind:.1%}." in page.page()
    start, errors = calibrate.prefill_with_start()  # a term that is not used, and what the page says of it
    assert 0.004 < start < 0.007 and max(map(abs, errors)) > max(abs(row.error) for row in calibrate.prefill_fit())
    readme = " ".join((Path(__file__).parents[1] / "README.md").read_text().split())
    assert f"within {math.ceil(100 * worst)}% of all {len(rows)} rows that AWS published" in readme


def test_the_page_is_current() -> None:
    stored = (Path(__file__).parents[1] / page.PAGE).read_text()
    assert stored == page.page(), "write it anew: python -m tp_harness.trn1.page"


def test_a_stale_page_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert page.main([str(tmp_path / "page.md")]) == 0
    monkeypatch.setattr(roofline, "HBM_WEIGHTS", replace(constants.HBM_WEIGHTS, value=300e9))
    assert (tmp_path / "page.md").read_text() != page.page()


# ---------------------------------------------------------------------------------------------------- nccom-test

# What the nccom-test guide shows for `-r 32 ... allg --report-to-json-file`.
RECORDED = """{"results": [
 {"size(B)": 1024, "count(elems)": 256, "type": "fp32", "algbw(GB/s)": 0.16553675170497603,
  "busbw(GB/s)": 0.16036372821419553, "time:avg(us)": 6.19},
 {"size(B)": 524288, "count(elems)": 131072, "type": "fp32", "algbw(GB/s)": 22.688776793562784,
  "busbw(GB/s)": 21.97975251876395, "time:avg(us)": 23.11}]}"""


def report(factor: float, *times: float, key: str = "time:avg(us)") -> dict[str, Any]:
    rows = [{"size(B)": 1024 << 2 * i, "algbw(GB/s)": 1 / t, "busbw(GB/s)": factor / t, key: t}
            for i, t in enumerate(times)]  # fmt: skip
    return {"results": rows}


def test_a_recorded_report_replaces_the_constants(tmp_path: Path) -> None:
    path = tmp_path / "allg.json"
    path.write_text(RECORDED)
    collectives = read_nccom([path])
    assert [(t.kind, t.ranks) for t in collectives.measured] == [("all_gather", 32)]
    gather = Message(kind="all_gather", bytes=1024 // 32)  # a rank's input; the report counts the output
    assert collectives.seconds(gather, 32) == pytest.approx(6.19e-6)
    assert collectives.seconds(replace(gather, bytes=(1024 + 524288) // 64), 32) == pytest.approx(14.65e-6)
    assert collectives.seconds(replace(gather, bytes=4 * 524288 // 32), 32) == pytest.approx(4 * 23.11e-6)
    for message, tp in ((gather, 8), (Message(kind="all_reduce", bytes=32), 32)):
        assert collectives.seconds(message, tp) == Collectives().seconds(message, tp)


def test_degrees_without_a_measured_reduction_are_named() -> None:
    def note(*factors: float) -> list[str]:
        tables = tuple(parse_nccom(report(f, 50.0), source="x") for f in factors)
        prediction = predict(PRESETS["tiny"], name="", collectives=Collectives(measured=tables))
        return [text for text in prediction.notes if "no all-reduce was measured" in text]

    assert note() == note(1.0, 1.75, 1.9375) == []
    assert note(1.9375)[0].startswith("no all-reduce was measured over 2, 8 ranks")
    assert note(0.875)[0].startswith("no all-reduce was measured over 2, 8, 32 ranks")


@pytest.mark.parametrize(
    ("factor", "operation"),
    [(1.0, ("all_reduce", 2)), (1.75, ("all_reduce", 8)), (1.9375, ("all_reduce", 32)), (0.875, ("all_gather", 8))],
)
def test_the_operation_follows_from_the_bandwidths(factor: float, operation: tuple[str, int]) -> None:
    for key in ("time:avg(us)", "time(us)"):  # of 2026 and of 2023
        table = parse_nccom(report(factor, 50.0, 60.0, key=key), source="x")
        assert (table.kind, table.ranks) == operation
        assert [size for size, _ in table.points] == [1024, 4096]
        assert [seconds for _, seconds in table.points] == pytest.approx([50e-6, 60e-6])


def spoiled(edit: Callable[[dict[str, Any]], object]) -> str:
    values = report(1.75, 50.0, 60.0)
    edit(values)
    return json.dumps(values)


BAD_REPORTS = {
    "not-json": ("size(B) count(elems)", "is not JSON"),
    "no-results": ("{}", "is no report of nccom-test (it lacks 'results')"),
    "a-list": ("[1]", "is no report of nccom-test"),
    "empty": ('{"results": []}', "holds no positive times"),
    "no-time": (spoiled(lambda v: v["results"][0].pop("time:avg(us)")), "it lacks 'time(us)'"),
    "no-bandwidth": (spoiled(lambda v: v["results"][0].update({"algbw(GB/s)": 0})), "is no report of nccom-test"),
    "negative": (spoiled(lambda v: v["results"][0].update({"time:avg(us)": -1})), "holds no positive times"),
    "two-operations": (spoiled(lambda v: v["results"][0].update({"busbw(GB/s)": 0.02})), "which is neither"),
    "no-operation": (json.dumps(report(2.5, 50.0)), "which is neither an all-reduce"),
}


@pytest.mark.parametrize("name", BAD_REPORTS)
def test_a_bad_report_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_REPORTS[name]
    path = tmp_path / "report.json"
    path.write_text(text)
    assert main(["model", "--nccom", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"tp-harness: {path} ") and message in captured.err
    assert captured.err.count("\n") == 1 and not captured.out


def test_two_reports_of_one_operation_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path in paths:
        path.write_text(RECORDED)
    with pytest.raises(UsageError, match=r"both measure all_gather over 32 ranks; give one\.$"):
        read_nccom(paths)
    with pytest.raises(UsageError, match="cannot read"):
        read_nccom([tmp_path / "absent.json"])


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_says_what_its_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--tp", "8,32", "--batch", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line.endswith(f"({MODELLED})")]
    assert lines[0] == f"gpt-oss-20b on Trn1: {MODELLED}" and len(titles) == 5
    assert max(map(len, lines[:-7])) <= 110  # all but the notes


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--model", "gpt-oss-120b", "--tp", "32", "--price", "10", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["what"] == MODELLED and values["price_per_hour"] == 10
    prediction = predict(PRESETS["gpt-oss-120b"], name="gpt-oss-120b", degrees=(32,), price_per_hour=10)
    assert [row["token_s"] for row in values["tokens"]] == [row.token_s for row in prediction.tokens]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", "7"], "tp_degree 7 does not divide num_attention_heads 64"),
        (["--tp", "8,8"], "distinct degrees are needed"),
        (["--tp", "all"], "numbers separated by commas are needed"),
        (["--model", "gpt-oss-20"], "Did you mean 'gpt-oss-20b'?"),
        (["--seq", "0"], "--seq is 0; a number between 1 and"),
        (["--price", "-1"], "--price is -1; a positive number"),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
