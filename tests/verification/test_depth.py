"""A transformer with fewer layers than its model has: what is run, and that everything says so."""

from __future__ import annotations

from pathlib import Path

from tp_harness.config.options import Options, resolve
from tp_harness.ranks.job import Subject, Task
from tp_harness.report import PAGES
from tp_harness.results.result import Status
from tp_harness.results.resume import asked_of
from tp_harness.results.run_record import read_run
from tp_harness.verification.api import verify


def test_a_transformer_of_one_layer_is_run_and_named_as_one(tmp_path: Path) -> None:
    asked = Options(
        components=("transformer",), depth=1, degrees=(2,), dtypes=("float32",), draws=1, backend="local", out=tmp_path
    )
    record = read_run(verify(asked).folder)
    [result] = record.results
    assert (result.status, result.component, result.extent) == (Status.PASS, "transformer", "1 of 2 layers")
    kinds = [call.kind for call in result.ranks[0].collectives]
    assert kinds == ["all_reduce"] * 3 + ["all_gather"]  # the embedding's, and two of the only layer
    assert record.options["model"]["num_hidden_layers"] == 2  # the model is the whole one
    assert "transformer (1 of 2 layers)" in PAGES["report.md"](record, ())
    assert asked_of(record).depth == 1  # and so would a resumed run go on


def test_depth_is_the_transformer_s_alone() -> None:
    options = resolve(Options(depth=1))
    subject = Subject(family="gpt_oss", model=options.model, batch_size=1, seq_len=8, depth=options.depth)
    blocks = {
        name: len(subject.case(Task(component=name, layer=1, draw=0), dtype="float32", tp=1).routing)
        for name in ("transformer", "transformer_block")
    }
    assert blocks == {"transformer": 1, "transformer_block": 1}
    assert (subject.extent("transformer"), subject.extent("transformer_block")) == ("1 of 2 layers", "")
    assert resolve(Options(depth=2)).depth == 0  # all there are
