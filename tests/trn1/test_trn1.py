"""The model of Trn1: its roofline, its fit against the published rows, and the words of its command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tp_harness.cli import main
from tp_harness.models.gpt_oss.config import PRESETS
from tp_harness.trn1 import MODELLED, calibrate, constants, page, roofline
from tp_harness.trn1.collectives import Collectives
from tp_harness.trn1.messages import Message
from tp_harness.trn1.predict import predict
from tp_harness.trn1.published import MODELS, ROWS
from tp_harness.trn1.work import Place, Work, decode, transformer


def test_the_largest_term_bounds() -> None:
    def bound(**amounts: Any) -> str:
        return roofline.terms(Work(**amounts), Collectives()).bound

    message = Message(kind="all_reduce", bytes=8, ranks=32)
    assert bound(flops=1e12, read_bytes=1e9, messages=(message,)) == "compute"
    assert bound(flops=1e9, read_bytes=1e9, messages=(message,)) == "HBM"
    assert bound(flops=1e9, read_bytes=1e6, messages=(message,)) == "NeuronLink"


def test_the_high_time_counts_every_reduction_in_full() -> None:
    step, config = decode(1, 128), PRESETS["gpt-oss-20b"]
    alone = transformer(Place(config=config, tp=1, step=step))
    time = roofline.terms(alone, Collectives())
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
    command = " ".join((Path(__file__).parents[2] / "docs" / "command.md").read_text().split())
    assert f"within {math.ceil(100 * worst)}% of all {len(rows)} rows that AWS published" in command


def test_the_page_is_current() -> None:
    stored = (Path(__file__).parents[2] / page.PAGE).read_text()
    assert stored == page.page(), "write it anew: python -m tp_harness.trn1.page"


def test_a_stale_page_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert page.main([str(tmp_path / "page.md")]) == 0
    monkeypatch.setattr(roofline, "HBM_WEIGHTS", replace(constants.HBM_WEIGHTS, value=300e9))
    assert (tmp_path / "page.md").read_text() != page.page()


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
        (["--tp", "64"], "--tp holds 64; a degree lies between 1 and 32, the NeuronCores of one trn1.32xlarge."),
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
