"""The work that the model of Trn1 counts: weights and messages of real ranks, operations of torch's counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ladder import TINY, Ladder
from served_plans import run_by
from torch.utils.flop_counter import FlopCounterMode

from tp_harness.config.model import PLANS, NeuronConfig
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig
from tp_harness.parallel.group import Group, use_group
from tp_harness.ranks.rank_inputs import RankInputs, shard_inputs
from tp_harness.trn1.predict import predict
from tp_harness.trn1.work import MXFP4, Place, Step, decode, prefill, transformer

BATCH, SEQ = 2, 24  # what Ladder runs
AS_VERIFIED = Step(batch=BATCH, new=SEQ, context=SEQ, logits=BATCH * SEQ)  # verify computes all logits


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
@pytest.mark.parametrize("name", FAMILY.work)
def test_weights_and_messages_are_those_that_ranks_record(ladder: Ladder, name: str, tp: int) -> None:
    work = FAMILY.work[name](Place(config=TINY, tp=tp, step=AS_VERIFIED), 0)
    for rank in ladder.run(name, tp, "bfloat16").ranks:
        assert work.weight_bytes == rank.weight_bytes
        assert [(m.kind, m.bytes) for m in work.messages] == [(c.kind, c.bytes) for c in rank.collectives]


@pytest.mark.parametrize("tp", [2, 8])
@pytest.mark.parametrize("plan", ["sp", "ep", "ep-tp"])
@pytest.mark.parametrize("name", ["attention", "mlp", "embedding", "unembedding", "transformer"])
def test_the_weights_and_messages_of_other_plans_are_those_that_ranks_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, plan: str, tp: int
) -> None:
    run_by(monkeypatch, plan)
    ladder = Ladder(tmp_path, targets=((name, 0),), dtypes=("bfloat16",))
    work = FAMILY.work[name](Place(config=TINY, tp=tp, step=AS_VERIFIED, plan=plan), 0)
    for rank in ladder.run(name, tp, "bfloat16").ranks:
        assert work.weight_bytes == rank.weight_bytes
        assert [(m.kind, m.bytes, m.ranks) for m in work.messages] == [
            (c.kind, c.bytes, c.group_size) for c in rank.collectives
        ]


def test_plans_differ_in_what_they_send_and_hold() -> None:
    """Sequence parallel sends as much in more calls, and norms fewer tokens; shared out experts are not held twice."""
    work = {plan: transformer(Place(config=TINY, tp=8, step=prefill(2, 64), plan=plan)) for plan in PLANS}
    sizes = {plan: sum(m.bytes * (m.ranks if m.kind == "all_gather" else 1) for m in w.messages)
             for plan, w in work.items()}  # fmt: skip
    assert len(work["sp"].messages) > len(work["tp"].messages) == len(work["ep-tp"].messages)
    assert sizes["tp"] < sizes["sp"] < sizes["ep"]  # a gather of its own in bfloat16; and tokens there and back
    assert work["sp"].activation_bytes < work["tp"].activation_bytes
    assert work["tp"].weight_bytes == work["sp"].weight_bytes == work["ep"].weight_bytes
    assert work["tp"].flops == pytest.approx(work["ep-tp"].flops, rel=1e-9)  # with each expert chosen as often


def counted_operations(name: str, tp: int) -> int:
    """What torch counts for rank 0's module."""
    config = InferenceConfig.of(TINY, NeuronConfig(batch_size=BATCH, seq_len=SEQ, torch_dtype="float32", tp_degree=tp))
    case = component_case(name, config, 0)
    group = Alone(0, tp)
    with use_group(group), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module = case.sharded()
        calls = case.given(torch.Generator())
        shards = shard_inputs(case, RankInputs(inputs=calls.tensors, locks={}), torch.float32, group)
        calls.changed(lambda name, _full: shards[name]).run(module)
    return counter.get_total_flops()


@pytest.mark.parametrize("tp", [1, 8, 32])
@pytest.mark.parametrize("name", FAMILY.work)
def test_operations_are_those_that_torch_counts(name: str, tp: int) -> None:
    assert FAMILY.work[name](Place(config=TINY, tp=tp, step=AS_VERIFIED), 0).flops == counted_operations(name, tp)


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
        return FAMILY.work["attention"](Place(config=TINY, tp=1, step=decode(1, seq)), layer).cache_bytes

    assert read(0, 1000) == read(0, TINY.sliding_window) < read(1, 1000)
    one, many = (FAMILY.work["mlp"](Place(config=TINY, tp=1, step=decode(batch, 1)), 0) for batch in (1, 1000))
    assert one.read_bytes < 0.6 * one.weight_bytes  # 4 of 8 experts
    assert many.read_bytes == pytest.approx(many.weight_bytes)
