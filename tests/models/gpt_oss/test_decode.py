"""The component decode: gpt-oss as it is served, from its calls to a verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ladder import TINY, Ladder, mistake
from served_plans import run_by
from tp_harness.reference.kv_cache import EMPTY

from tp_harness.case.calls import Output
from tp_harness.case.case import Case
from tp_harness.config.model import NeuronConfig
from tp_harness.faults.ways import runs
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import InferenceConfig
from tp_harness.models.gpt_oss.modules import NeuronGPTOSSAttentionBlock
from tp_harness.results.result import Status

DTYPES = ("exact", "float32", "bfloat16")
RIGHT = {"exact": Status.PROVED, "float32": Status.PASS, "bfloat16": Status.PASS}
SMALL = replace(TINY, num_experts=4, vocab_size=96, hidden_size=32, intermediate_size=64)


def case(seq: int) -> Case:
    return component_case("decode", InferenceConfig.of(TINY, NeuronConfig(batch_size=1, seq_len=seq)), 0)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return Ladder(tmp_path_factory.mktemp("decode"), targets=(("decode", 0),), dtypes=DTYPES, model=SMALL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_decode_passes(ladder: Ladder, tp: int, dtype: str) -> None:
    result = ladder.run("decode", tp, dtype)
    assert (result.status, result.reason) == (RIGHT[dtype], result.reason)


@pytest.mark.parametrize("plan", ["sp", "ep", "ep-tp"])
def test_decode_passes_by_other_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    run_by(monkeypatch, plan)
    ladder = Ladder(tmp_path, targets=(("decode", 0),), dtypes=DTYPES, model=SMALL)
    results = {dtype: ladder.run("decode", 2, dtype) for dtype in DTYPES}
    assert {dtype: result.status for dtype, result in results.items()} == RIGHT


@pytest.mark.parametrize("seq", [1, 2, 3, 16, 17])  # the window is 16
def test_sequences_of_every_length_pass(tmp_path: Path, seq: int) -> None:
    ladder = Ladder(tmp_path, targets=(("decode", 0),), dtypes=("float32",), model=SMALL, seq=seq)
    assert ladder.run("decode", 2).status is Status.PASS


def test_the_calls_are_those_of_a_server() -> None:
    calls = case(24).given(torch.Generator().manual_seed(0)).each
    assert [*calls] == [
        "prefill", "chunk", *(f"decode.{i}" for i in range(8)), "reuse", "reuse.decode", "restart"
    ]  # fmt: skip
    prefill, chunk = calls["prefill"].args, calls["chunk"].args
    assert prefill[1].tolist() == [[*range(8)], [EMPTY] * 4 + [*range(4)], [0] + [EMPTY] * 7]  # of different length
    assert chunk[1].tolist() == [[*range(8, 16)], [EMPTY, *range(4, 11)], [1, 2, 3, 4] + [EMPTY] * 4]
    assert chunk[2] == Output("prefill", "past")
    positions = [calls[f"decode.{i}"].args[1].squeeze(1).tolist() for i in range(8)]
    assert [row for row, *_ in positions] == [*range(16, 24)]  # the caches are full, past the window of 16
    assert [row for _, row, _ in positions] == [11, 12, 13, 14, *[EMPTY] * 4]  # a row that ended
    rows, lengths = calls["reuse"].args[3]
    assert calls["reuse"].args[2] == Output("prefill", "past")
    assert (rows.tolist(), lengths.tolist()) == ([0, 0, 1], [7, 7, 0])  # two share the prompt of row 0
    rows, lengths = calls["restart"].args[3]
    assert calls["restart"].args[2] == Output("decode.7", "past")
    assert (rows.tolist(), lengths.tolist()) == ([2, 1, 0], [0, 0, 0])  # slots of finished requests
    for cache in prefill[2]:
        assert (cache.positions == EMPTY).all()
        assert (cache.key != 0).all()


def test_a_mistake_is_named_with_its_call(ladder: Ladder) -> None:
    """The window of context encoding, which the steps do not have."""

    def without_window(self: NeuronGPTOSSAttentionBlock, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        distance = queries[:, :, None] - keys[:, None]
        return (distance >= 0) & (keys >= 0)[:, None]

    fault = mistake(runs("block.0.attn", "_visible", without_window), "decode")
    result = ladder.run("decode", 2, fault=fault)
    assert result.status is Status.MISMATCH
    assert "decode." in result.reason
