"""A rank's report and the names of its tensors come back from a file as they were."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from tp_harness.arithmetic.seen import Branch, Seen
from tp_harness.parallel.dtensors import Placed
from tp_harness.parallel.on_mesh import on_mesh
from tp_harness.parallel.placements import Partial, Placement, Replicate, Shard
from tp_harness.ranks.rank_report import DtypeRun, Held, RankReport, TensorKey
from tp_harness.results.from_json import from_json
from tp_harness.results.result import Collective, Forwards, Program, to_json

CALL = Collective(kind="all_reduce", group_size=2, shape=(2, 3), dtype="float32", bytes=24, seconds=0.1)
RUN = DtypeRun(
    parameters={
        "weight": Held(shape=(2, 3), dtype="bfloat16", bytes=12, view=(6, 3, 1), placed=Placed.of(Shard(1))),
        "buffer": Held(shape=(), dtype="int64", bytes=8, digest="1f", rebuilt=False),
    },
    placed={"output.0": Placed.of(Partial()), "up": Placed.of(Replicate())},
    collectives=(CALL, CALL),
    unawaited=("send [2] has a handle",),
    forwards=Forwards(wall_s=(0.1, 1 / 3), cpu_s=(), collective_s=(1e-7,), warm=True),
    flops=1 << 60,
    changed=("output.0", "state.cache"),
    pairs=("float32.locked.output.0",),
    results=("output.0", "decode/output.past.0"),
    begin_bytes=1,
    peak_bytes=2,
    program=Program(fingerprint="ab", compiles=1, collectives=(), fallbacks=("aten::x",)),
    finding="the program ends there",
    filled=("up.weight", "input.0"),
    unlocked=("mlp",),
    rows={"mlp.chosen": (3, 4)},
    seen=Seen(
        branches={"clamp": Branch(decisions=3, counts={"above": 1}), "max": Branch(margin=0.5)}, escapes=["item()"]
    ),
)


def test_a_report_comes_back_from_json() -> None:
    plain = DtypeRun()
    assert all(getattr(RUN, field.name) != getattr(plain, field.name) for field in fields(DtypeRun)), "all are tried"
    report = RankReport(
        rank=1, core="nc 1", config_hash="2e", wall_s=1 / 3, cpu_s=0.0, runs={"float32": RUN, "b": plain}
    )
    again = from_json(RankReport, json.loads(json.dumps(to_json(report))))
    assert again == report
    assert again.runs["float32"].collectives[0].seconds == 0.1, "which is no part of what makes calls equal"


ON_MESH = on_mesh({"a": 2, "b": 2}, {("a",): Shard(1), ("b",): Partial()})


@pytest.mark.parametrize("placement", [Shard(1), Replicate(), Partial(), ON_MESH], ids=str)
def test_the_placement_of_a_dtensor_comes_back(placement: Placement) -> None:
    assert Placed.of(placement).placement == placement


def test_a_key_comes_back_from_its_text() -> None:
    key = TensorKey("float32", "tap", "layers.0.mlp.chosen")
    assert TensorKey.parse(str(key)) == key and str(key) == "float32.tap.layers.0.mlp.chosen"
