"""Every kernel against its twin in float64: degrees, tails, window edges, ties, sinks, clamps, rank sums."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tp_harness.kernels import registry, run
from tp_harness.kernels.checks import accuracy, inputs
from tp_harness.kernels.checks.accuracy import BFLOAT16_ULPS, FLOAT32_LIMIT, AccuracyCase, measure, relative_error
from tp_harness.kernels.router_torch import choose_torch

from tp_harness.config.divisibility import TRN1_DEGREES
from tp_harness.models.gpt_oss.config import PRESETS

TINY = PRESETS["tiny"]
FLOAT32_CASES = accuracy.tiny_cases(torch.float32) + accuracy.edge_cases(torch.float32)
BFLOAT16_CASES = accuracy.tiny_cases(torch.bfloat16) + accuracy.edge_cases(torch.bfloat16)


@pytest.mark.parametrize("case", FLOAT32_CASES, ids=lambda case: case.id)
def test_float32(case: AccuracyCase) -> None:
    assert measure(case).error <= FLOAT32_LIMIT


@pytest.mark.parametrize("case", BFLOAT16_CASES, ids=lambda case: case.id)
def test_bfloat16(case: AccuracyCase) -> None:
    assert measure(case).ulps <= BFLOAT16_ULPS


def test_cases_cover_every_kernel_use_and_degree() -> None:
    cases = {(case.kernel, case.use, case.tp) for case in accuracy.tiny_cases(torch.float32)}
    expected = {(name, use, tp) for name in registry.names() for use in accuracy.uses(name) for tp in TRN1_DEGREES}
    assert cases == expected


def test_relative_error_is_infinite_where_nothing_is_compared() -> None:
    zeros, nan = torch.zeros(2), torch.tensor([float("nan"), 1.0])
    for actual, expected in (
        (zeros, zeros),
        (nan, torch.ones(2)),
        (zeros[:0], zeros[:0]),
        (zeros, torch.ones(3)),
    ):
        assert relative_error(actual, expected)[0] == float("inf")
    assert relative_error(torch.tensor([2.0, 1.5]), torch.tensor([2.0, 1.0]))[0] == 0.25


def test_whole_numbers_are_equal_or_wrong() -> None:
    """Expert 0 is a choice like any other, also where it is the only one."""
    assert relative_error(torch.tensor([[0]]), torch.tensor([[0]])) == (0.0, 0.0)
    assert relative_error(torch.tensor([[99]]), torch.tensor([[100]]))[0] == float("inf")
    case = AccuracyCase(
        kernel="router", use="gate", model="tiny", tp=8, tokens=1, seed=67, changes=(("H", 167), ("top_k", 1))
    )
    assert measure(dataclasses.replace(case, changes=(*case.changes, ("E", 8)))).error <= FLOAT32_LIMIT


@pytest.mark.parametrize("tp", TRN1_DEGREES)
def test_rope_in_float32_is_torch_bit_for_bit(tp: int) -> None:
    case = AccuracyCase(kernel="rope", use="queries", model="tiny", tp=tp, tokens=130)
    arguments = case.arguments()
    assert torch.equal(run("rope", **arguments), registry.spec("rope").twin(**arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_router_ties_go_to_the_lower_expert(dtype: torch.dtype) -> None:
    # Small integers: every logit is exact, so that equal rows of the weight tie exactly.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (200, 96), generator=generator).to(dtype)
    weight = torch.randint(-1, 2, (4, 96), generator=generator).to(dtype).repeat(2, 1)
    bias = torch.zeros(8, dtype=dtype)
    experts, weights, affinities, logits = run("router", x, weight, bias, top_k=4)
    assert torch.equal(logits[:, :4], logits[:, 4:])
    expected = choose_torch(logits, 4)
    assert torch.equal(experts, expected[0])
    assert relative_error(weights, expected[1])[0] <= FLOAT32_LIMIT
    assert relative_error(affinities, expected[2])[0] <= FLOAT32_LIMIT
    # Of two neighbours with equal logits the lower number comes first; every logit occurs twice.
    chosen = logits.gather(1, experts)
    tied = chosen[:, 1:] == chosen[:, :-1]
    assert tied[:, 0].all()
    assert (experts[:, 1:] > experts[:, :-1])[tied].all()


def test_router_all_logits_equal() -> None:
    x, weight, bias = torch.ones(3, 96), torch.zeros(8, 96), torch.full((8,), 0.5)
    experts, weights, affinities, _ = run("router", x, weight, bias, top_k=4)
    assert experts.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(weights, torch.full((3, 4), 0.25))
    assert torch.equal(affinities, torch.tensor([[0.25] * 4 + [0.0] * 4] * 3))


def test_router_in_float32_chooses_as_torch_topk_without_ties() -> None:
    arguments = AccuracyCase(kernel="router", use="gate", model="tiny", tp=1, tokens=200, seed=5).arguments()
    experts, weights, _, _ = run("router", **arguments)
    logits = torch.nn.functional.linear(arguments["x"], arguments["weight"], arguments["bias"])
    values, chosen = logits.topk(4, dim=-1)
    assert torch.equal(experts, chosen)
    assert relative_error(weights, values.softmax(-1))[0] <= FLOAT32_LIMIT


def _attention(length: int, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    case = AccuracyCase(
        kernel="attention", use="sdpa", model="tiny", tp=8, tokens=length, changes=tuple(changes.items())
    )
    arguments = case.arguments()
    wide = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    return run("attention", **arguments), registry.spec("attention").twin(**wide)


@pytest.mark.parametrize("sink", [-20.0, -1.0, 0.0, 15.0, 25.0, 60.0])
def test_attention_with_every_sink_alike(sink: float) -> None:
    # All heads alike, so that a small output is measured against its own size.
    actual, expected = _attention(40, sinks=torch.full((8,), sink))
    assert relative_error(actual, expected)[0] <= FLOAT32_LIMIT


def test_attention_with_a_sink_of_100_gives_nothing() -> None:
    actual, expected = _attention(40, sinks=torch.full((8,), 100.0))
    # exp(-100 + score) is below float32's normal range; hardware may or may not keep it.
    assert actual.abs().max() < 1e-36 and expected.abs().max() < 1e-36


@pytest.mark.parametrize("window", [1, 127, 128, 129, 255, 256, 257])
def test_a_window_of_w_sees_w_keys(window: int) -> None:
    # Equal scores: the output is the mean of the visible values, a count of them.
    length = 300
    q, k = torch.zeros(1, length, 1, 16), torch.zeros(1, length, 1, 16)
    v = torch.zeros(1, length, 1, 16)
    v[0, :, 0, 0] = 1.0
    y = run("attention", q, k, v, torch.zeros(1), scale=1.0, window=window)
    seen = torch.arange(1, length + 1).clamp(max=window).double()
    # The sink takes one equal share.
    assert relative_error(y[0, :, 0], seen / (seen + 1))[0] <= FLOAT32_LIMIT


def test_future_keys_do_not_matter() -> None:
    case = AccuracyCase(kernel="attention", use="sdpa", model="tiny", tp=8, tokens=140)
    arguments = case.arguments()
    before = run("attention", **arguments)
    for name in ("k", "v"):
        arguments[name][:, 131:] = 1.0e4
    after = run("attention", **arguments)
    assert torch.equal(before[:, :131], after[:, :131])
    assert not torch.equal(before[:, 131:], after[:, 131:])


@pytest.mark.parametrize("tp", [2, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_expert_mlp_partials_sum_to_the_whole(tp: int, dtype: torch.dtype) -> None:
    whole = AccuracyCase(kernel="expert_mlp", use="experts", model="tiny", tp=1, tokens=33, dtype=dtype).arguments()
    size = TINY.on_rank(tp).intermediate
    total = torch.zeros(33, TINY.hidden_size, dtype=torch.float64)
    for rank in range(tp):
        part, pairs = slice(rank * size, (rank + 1) * size), slice(2 * rank * size, 2 * (rank + 1) * size)
        shard = {
            **whole,
            "mlp1_weight": whole["mlp1_weight"][:, pairs],
            "mlp1_bias": whole["mlp1_bias"][:, pairs],
            "mlp2_weight": whole["mlp2_weight"][:, :, part],
            "bias_share": 1.0 / tp,
        }
        total += run("expert_mlp", **shard).double()
    wide = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in whole.items()}
    expected = registry.spec("expert_mlp").twin(**{**wide, "bias_share": 1.0})
    # bfloat16: every partial is rounded, so that up to sqrt(tp) units come together, and some.
    limit = FLOAT32_LIMIT if dtype is torch.float32 else 2.0**-8 * tp**0.5 * 2
    assert relative_error(total, expected)[0] <= limit


def test_expert_mlp_reaches_both_clamps() -> None:
    arguments = AccuracyCase(kernel="expert_mlp", use="experts", model="tiny", tp=1, tokens=33).arguments()
    hidden = arguments["x"] @ arguments["mlp1_weight"].transpose(1, 2) + arguments["mlp1_bias"][:, None]
    gate, up = hidden[..., 0::2], hidden[..., 1::2]
    assert all(bool(reached.any()) for reached in (gate > 7, gate < -7, up > 7, up < -7))


def test_a_gate_clamped_below_is_outside_the_limit() -> None:
    arguments = accuracy.shifted_gates(torch.float32).arguments()
    wide = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    right = registry.spec("expert_mlp").twin(**wide)
    wrong = _clamped_below(wide)
    assert relative_error(wrong, right)[0] > FLOAT32_LIMIT


def _clamped_below(a: inputs.Inputs) -> torch.Tensor:
    y = torch.zeros_like(a["x"])
    for e in range(a["affinities"].shape[1]):
        hidden = a["x"] @ a["mlp1_weight"][e].T + a["mlp1_bias"][e]
        gate, up = (hidden[:, start::2].clamp(-a["limit"], a["limit"]) for start in (0, 1))
        h = gate * torch.sigmoid(a["alpha"] * gate) * (up + 1)
        y += a["affinities"][:, e : e + 1] * (h @ a["mlp2_weight"][e].T + a["bias_share"] * a["mlp2_bias"][e])
    return y


def test_kv_heads_of_tp_32() -> None:
    """Rank r of 32 holds 2 query heads and key/value head r // 4; together they are the whole."""
    whole = AccuracyCase(kernel="attention", use="sdpa", model="tiny", tp=1, tokens=40).arguments()
    head, parts = TINY.head_dim, []
    for rank in range(32):
        shard = {
            **whole,
            "q": whole["q"][:, :, 2 * rank : 2 * rank + 2],
            "k": whole["k"][:, :, rank // 4 : rank // 4 + 1],
            "v": whole["v"][:, :, rank // 4 : rank // 4 + 1],
            "sinks": whole["sinks"][2 * rank : 2 * rank + 2],
        }
        parts.append(run("attention", **shard))
    wide = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in whole.items()}
    expected = registry.spec("attention").twin(**wide)
    assert expected.shape == (1, 40, 64 * head)
    assert relative_error(torch.cat(parts, dim=-1), expected)[0] <= FLOAT32_LIMIT


def _random_case(draw: st.DrawFn, kernel: str, use: str, **sizes: tuple[int, int]) -> AccuracyCase:
    changes = tuple((symbol, draw(st.integers(*bounds))) for symbol, bounds in sizes.items())
    tokens = draw(st.integers(1, 300))
    return AccuracyCase(
        kernel=kernel,
        use=use,
        model="tiny",
        tp=8,
        tokens=tokens,
        changes=changes,
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def _any_sizes(draw: st.DrawFn) -> AccuracyCase:
    """Draw a kernel and sizes around its tiles of 128, 256 and 512."""
    kernel = draw(st.sampled_from(["rmsnorm", "attention", "router", "expert_mlp", "linear"]))
    if kernel == "rmsnorm":
        return _random_case(draw, kernel, "norm", H=(1, 700))
    if kernel == "attention":
        return _random_case(draw, kernel, "sdpa", D=(1, 128), window=(0, 300), B=(1, 2), Q=(1, 2))
    if kernel == "router":
        return _random_case(draw, kernel, "gate", H=(1, 300), E=(8, 140), top_k=(1, 8))
    if kernel == "linear":
        return _random_case(draw, kernel, "qkv", K=(1, 700), N=(1, 600))
    case = _random_case(draw, kernel, "experts", H=(1, 300), I=(1, 150), E=(1, 3))
    return dataclasses.replace(case, changes=(*case.changes, ("2I", 2 * dict(case.changes)["I"])))


@settings(max_examples=60, deadline=None)
@given(_any_sizes())
def test_any_sizes(case: AccuracyCase) -> None:
    assert measure(case).error <= FLOAT32_LIMIT, case.id


@pytest.mark.parametrize("name", registry.names())
def test_twin_has_the_signature_of_its_kernel(name: str) -> None:
    item = registry.spec(name)
    assert list(inspect.signature(item.kernel).parameters) == list(inspect.signature(item.twin).parameters)
    assert list(item.dims) == [p for p in inspect.signature(item.twin).parameters if p in item.dims]


@pytest.mark.parametrize("name", registry.names())
def test_docstring_has_the_headings(name: str) -> None:
    text = inspect.getdoc(registry.spec(name).kernel) or ""
    for heading in ("Dimensions:", "Args:", "Returns:", "Notes:", "Pseudocode:"):
        assert heading in text, f"{name}: add {heading} to the kernel's docstring"
