"""A fault of the registry is one mistake, and two of them in one component are two."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from grafted import all_mistakes, told
from ladder import mistake, options

from tp_harness import faults
from tp_harness.faults import FAULTS, find_fault
from tp_harness.faults.ways import all_of, reduces
from tp_harness.mutation.bench import Bench
from tp_harness.prepare.prepare import prepare_one
from tp_harness.ranks.job import Task
from tp_harness.results.result import Result

TARGETS = (*dict.fromkeys((fault.component, fault.layer) for fault in FAULTS), ("transformer_block", 0))
TP = 2
# faults that make several tensors wrong, none of which is computed from another
SEVERAL = {
    "qkv-cut-contiguously": ("q_rope", "k_rope", "value"),
    "kv-of-rank-0": ("k_rope", "value"),
    "rope-interleaved": ("output.0", "output.1"),
    "rope-offset-by-rank": ("output.0", "output.1"),
    "rope-interleaved-in-attention": ("q_rope", "k_rope"),
    "concentration-missing": ("q_rope", "k_rope"),
    "window-parity-swapped": ("block.0.attn.heads", "block.1.attn.heads"),
    "softmax-over-all-experts": ("partial", "combined"),
    "routing-ignored": ("chosen", "partial", "combined"),
    "expert-index-offset": ("gate_up", "partial"),
}
# fmt: off
TOGETHER = [
    (("bounds-of-rank-0", "partial"), ("embedding-not-reduced", "total")),
    (("window-parity-swapped", "block.0.attn.heads"), ("logits-gathered-backwards", "output.0")),
    (("key-bias-dropped", "k_rope"), ("out-bias-x-tp", "reduced")),
    (("norm-eps-in-attention", "norm"), ("rope-not-on-keys", "k_rope")),
    (("stale-shard-of-last-rank", "partial"), ("experts-last-rank-dropped", "total")),  # a summand, and the sum
    (("gamma-ignored", "norm"), ("gate-up-swapped", "activation")),
    (("router-bias-dropped", "router_logits"), ("experts-not-reduced", "total")),
    (("clamp-missing", "activation"), ("mlp2-bias-dropped", "combined")),
    (("keys-of-row-0", "k_rope"), ("sinks-missing", "heads"), ("not-reduced", "total"), ("out-bias-by-tp", "reduced")),
    (("gate-up-cut-as-halves", "gate_up"), ("mlp2-of-next-rank", "partial"), ("experts-reduced-twice", "total")),
]
# fmt: on


EXACT_TOO = ("bounds-of-rank-0", "clamp-missing", "keys-of-row-0")  # the first of three of them


@pytest.fixture(scope="module")
def bench_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    @cache
    def make(dtype: str) -> Bench:
        chosen = options(targets=TARGETS, seq=40, degrees=(TP,), dtypes=(dtype,))
        return Bench(prepare_one(chosen), tmp_path_factory.mktemp(dtype))

    return make


@pytest.fixture
def bench(bench_in: Callable[[str], Bench], dtype: str) -> Bench:
    return bench_in(dtype)


def found(bench: Bench, *names: str) -> Result:
    """The result with these faults of one component put in."""
    first = find_fault(names[0])
    fault = first
    with pytest.MonkeyPatch.context() as patch:
        if names[1:]:
            fault = mistake(all_of(*(find_fault(name).apply for name in names)), first.component)
            patch.setitem(faults.BY_NAME, fault.name, fault)  # type: ignore[arg-type]  # a dict
        (dtype,) = bench.options.dtypes
        task = Task(component=first.component, layer=first.layer, draw=0, dtype=dtype, fault=fault.name)
        return all_mistakes(bench, task, TP)


def single(bench: Bench, name: str) -> None:
    result = found(bench, name)
    assert result.further == ()
    if not result.status.passed:
        [tensors] = told(result)
        assert tensors == SEVERAL.get(name, (find_fault(name).flags[0],))
        if not tensors[0].startswith("output."):
            assert result.put_right.endswith("put right, the output is right")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float32", name) for name in (*SEVERAL, "mlp2-bias-x-tp", "one-rank-s-last-bit", "read-before-wait", "norm-eps")]
    + [("exact", name) for name in ("softmax-over-all-experts", "routing-ignored", "variance-in-bfloat16")],
)
def test_one_fault_is_one_mistake(bench: Bench, name: str) -> None:
    single(bench, name)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["exact", "float32"])
def test_every_fault_is_one_mistake(bench: Bench) -> None:
    for fault in FAULTS:
        single(bench, fault.name)


@pytest.mark.parametrize(
    ("dtype", "put_in"),
    [
        (dtype, pairs)
        for pairs in TOGETHER
        for dtype in ("exact", "float32")
        if dtype != "exact" or pairs[0][0] in EXACT_TOO
    ],
    ids=lambda x: x if isinstance(x, str) else "+".join(name for name, _ in x),
)
def test_faults_of_one_component_are_as_many_mistakes_each_with_its_cause(
    bench: Bench, put_in: tuple[tuple[str, str], ...]
) -> None:
    result = found(bench, *(name for name, _ in put_in))
    assert [tensors[0] for tensors in told(result)] == [tensor for _, tensor in put_in]
    causes = [result.diagnosis, *(further.causes for further in result.further)]
    assert [[cause.name for cause in told_] for told_ in causes] == [[find_fault(n).signature] for n, _ in put_in]
    assert {cause.exact for told_ in causes for cause in told_} == {result.dtype == "exact"}
    assert result.put_right.startswith("with these put right, ") and result.put_right.endswith(" is right")


@pytest.mark.parametrize("dtype", ["float32"])
def test_the_same_mistake_in_two_modules_is_two(bench: Bench) -> None:
    forgotten = all_of(*(reduces(owner, lambda _group, x: x) for owner in ("attn", "mlp")))
    with pytest.MonkeyPatch.context() as patch:
        fault = mistake(forgotten, "transformer_block")
        patch.setitem(faults.BY_NAME, fault.name, fault)  # type: ignore[arg-type]  # a dict
        task = Task(component="transformer_block", layer=0, draw=0, dtype="float32", fault=fault.name)
        result = all_mistakes(bench, task, TP)
    assert told(result) == [("attn.total",), ("mlp.total",)]
    assert [c.name for c in (*result.diagnosis, *result.further[0].causes)] == ["all-reduce missing"] * 2
