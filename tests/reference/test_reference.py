"""The reference against transformers' own gpt-oss, and its own promises: names, dtypes, taps, memory."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tp_harness.reference import gpt_oss, rotary
from tp_harness.reference.expert_product import CAST_ROWS
from tp_harness.reference.gpt_oss import ModelConfig, RMSNorm, RotaryEmbedding, Transformer, TransformerBlock

hf = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
from hf_twin import filled, hf_config, hf_mask, pair, randn  # noqa: E402  (needs transformers)

TINY = ModelConfig(
    num_hidden_layers=2, num_experts=7, experts_per_token=3, vocab_size=101, hidden_size=84, head_dim=16,
    intermediate_size=52, num_attention_heads=6, num_key_value_heads=2, sliding_window=5,
)  # fmt: skip
CASES = (  # id, config, n_tokens
    ("odd", TINY, 23),
    ("one_token", TINY, 1),
    ("window", TINY, 5),
    ("window_plus_1", TINY, 6),
    ("plain_rope", dataclasses.replace(TINY, rope_scaling_factor=1.0), 9),
    ("mha_64", dataclasses.replace(TINY, head_dim=64, num_key_value_heads=6, experts_per_token=1), 7),
)


def assert_same(actual: Tensor, expected: Tensor, tol: float) -> None:
    """Close within tol of the largest expected entry (at least 1): outputs are sums of such entries."""
    assert expected.numel() and expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tol * max(1.0, expected.abs().max().item()))


def tapped(module: torch.nn.Module, tap: str, *args: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    with module.get_submodule(tap).register_forward_hook(lambda _m, _args, out: seen.append(out)):
        module(*args)
    return seen


# -- one comparison per component; each is used again below to prove that it can fail
def check_rmsnorm(config: ModelConfig, n: int) -> None:
    ours, theirs = (m.norm for m in (filled(config), pair(config, torch.float32)[1].model))
    for dtype, tol in ((torch.float32, 1e-6), (torch.bfloat16, 0.0)):  # few float32 ulps; then rounded alike
        x = (randn(n, config.hidden_size, seed=1) * torch.logspace(-3, 1, n)[:, None]).to(dtype)
        assert_same(ours(x), theirs(x), tol)


def check_rope(config: ModelConfig, n: int) -> None:
    ours, theirs = gpt_oss.AttentionBlock(config).rope, hf.GptOssRotaryEmbedding(hf_config(config))
    q, k = (randn(n, 2, *m, config.head_dim, seed=1, dtype=torch.float32) for m in ((3,), ()))
    for positions in (torch.arange(n), torch.arange(n) * 7 + 30):
        expected = hf.apply_rotary_pos_emb(q.flatten(1, 2), k, *theirs(q, positions))
        for actual, e in zip(ours(q, k, positions), expected, strict=True):  # their angles are float32:
            assert_same(actual, e.view_as(actual), 5e-5)  # 200 rad * 1.2e-7, times 2


def check_attention(config: ModelConfig, n: int) -> None:
    ours, theirs = pair(config, torch.float64)
    x = randn(n, config.hidden_size, seed=1)
    for layer, block in enumerate(ours.block):
        # our float64 tables, which theirs cannot give; check_rope compares the tables
        tables = [t[None] for t in block.attn.rope.cos_sin(torch.arange(n))]
        mask = hf_mask(theirs, layer, x[None])
        expected = theirs.model.layers[layer].self_attn(block.attn.norm(x)[None], tables, mask)[0][0]
        assert_same(tapped(block.attn, "reduced", x)[0], expected, 1e-13)  # float64, sums of about 100 terms
        assert_same(block.attn(x), x + expected, 1e-13)


def check_mlp(config: ModelConfig, n: int, chosen: Tensor | None = None) -> None:
    model, theirs = pair(config, torch.float64)
    ours, theirs, x = model.block[0].mlp, theirs.model.layers[0].mlp, randn(n, config.hidden_size, seed=1)
    t = ours.norm(x)
    logits, _, own_choice = theirs.router(t)
    if chosen is not None:
        ours.chosen.register_forward_hook(lambda *_: chosen)
    chosen = own_choice if chosen is None else chosen
    expected = theirs.experts(t, chosen, logits.gather(1, chosen).softmax(1))
    assert torch.equal(tapped(ours, "chosen", x)[0], chosen)
    assert_same(tapped(ours, "router_logits", x)[0], logits, 1e-13)  # float64, sums of 84 terms
    assert_same(tapped(ours, "combined", x)[0], expected, 1e-13)
    assert_same(ours(x), x + expected, 1e-13)


def check_block(config: ModelConfig, n: int) -> None:
    ours, theirs = pair(config, torch.float32)
    x = randn(n, config.hidden_size, seed=1, dtype=torch.float32)
    tables = theirs.model.rotary_emb(x, torch.arange(n)[None])
    for layer, block in enumerate(ours.block):
        mask = hf_mask(theirs, layer, x[None])
        expected = theirs.model.layers[layer](x[None], attention_mask=mask, position_embeddings=tables)
        assert_same(block(x), expected[0], 2e-5)  # float32 on both sides; worst of 96 draws is 4e-6


def check_transformer(config: ModelConfig, n: int) -> None:
    ours, theirs = pair(config, torch.float32)
    tokens = (randn(2, n, seed=1) * 30).long() % config.vocab_size
    assert_same(ours.float()(tokens), theirs(tokens).logits, 2e-4)  # float32; theirs is up to 4e-5 off


COMPARISONS = (check_rmsnorm, check_rope, check_attention, check_mlp, check_block, check_transformer)


@pytest.mark.parametrize("check", COMPARISONS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(("config", "n"), [pytest.param(*case, id=name) for name, *case in CASES])
def test_matches_transformers(check: Callable[[ModelConfig, int], None], config: ModelConfig, n: int) -> None:
    check(config, n)


def test_locked_routing_matches_transformers_experts() -> None:
    check_mlp(TINY, 4, chosen=torch.tensor([[6, 0, 3], [0, 1, 2], [3, 6, 0], [2, 1, 0]]))


def test_yarn_of_the_real_model_and_of_an_impossible_one() -> None:
    ours = gpt_oss.AttentionBlock(ModelConfig(), device=torch.device("meta")).rope
    theirs = hf.GptOssRotaryEmbedding(hf_config(ModelConfig()))
    assert ours.concentration == pytest.approx(theirs.attention_scaling, rel=1e-15)  # the same Python floats
    torch.testing.assert_close(ours.inv_freq.float(), theirs.inv_freq, rtol=1e-6, atol=0)  # float32 powers
    with pytest.raises(ValueError, match=r"low=1\.745 high=3\.752 from head_dim=8"):
        RotaryEmbedding(8, 1e3, torch.float32, scaling_factor=2.0)


# -- negative proofs: each mistake is caught by the very comparison that passes above
ATTENTION, SWIGLU, ROTATE = gpt_oss.sink_attention, gpt_oss.swiglu, rotary._rotate
VISIBLE, COS_SIN = gpt_oss.visible, RotaryEmbedding.cos_sin

MISTAKES = (
    ("no_eps", check_rmsnorm, RMSNorm, "forward",
     lambda self, x: (x * x.square().mean(-1, keepdim=True).rsqrt() * self.scale).to(x.dtype)),
    ("no_concentration", check_rope, RotaryEmbedding, "cos_sin",
     lambda self, positions: tuple(t / self.concentration for t in COS_SIN(self, positions))),
    ("neighbours_rotated", check_rope, rotary, "_rotate",
     lambda x, *t: ROTATE(x.unflatten(-1, (-1, 2)).mT.flatten(-2), *t).unflatten(-1, (2, -1)).mT.flatten(-2)),
    ("kv_heads_tiled", check_attention, gpt_oss, "sink_attention",  # query head h reads KV head h % G
     lambda q, k, v, *a: ATTENTION(q.flatten(1, 2)[:, :, None], k.repeat(1, 3, 1), v.repeat(1, 3, 1), *a)),
    ("no_sinks", check_attention, gpt_oss, "sink_attention",
     lambda q, k, v, s, m: ATTENTION(q, k, v, s - 1e9, m)),
    ("window_plus_1", check_attention, gpt_oss, "visible", lambda at, w: VISIBLE(at, w and w + 1)),
    ("gate_clamped_below", check_mlp, gpt_oss, "swiglu",
     lambda x, limit: SWIGLU(x.clamp(min=-limit), limit=limit)),
    ("gate_up_halves", check_mlp, gpt_oss, "swiglu",
     lambda x, limit: SWIGLU(x.unflatten(-1, (2, -1)).mT.flatten(-2), limit=limit)),
    ("mlp_beside_attention", check_block, TransformerBlock, "forward",
     lambda self, x, positions=None: self.attn(x, positions) + self.mlp(x) - x),
    ("no_window", check_transformer, gpt_oss, "visible", lambda at, w: VISIBLE(at, 0)),
)  # fmt: skip


@pytest.mark.parametrize("mistake", [pytest.param(mistake, id=name) for name, *mistake in MISTAKES])
def test_mistake_is_caught(monkeypatch: pytest.MonkeyPatch, mistake: list[Any]) -> None:
    check, owner, attribute, replacement = mistake
    monkeypatch.setattr(owner, attribute, replacement)
    with pytest.raises(AssertionError, match="not close"):
        check(TINY, 6)


# -- the reference's own promises
def test_state_dict_has_the_public_names_shapes_and_dtypes() -> None:
    layer = {
        "attn.sinks": (6,), "attn.norm.scale": (84,), "attn.qkv.weight": (160, 84), "attn.qkv.bias": (160,),
        "attn.out.weight": (84, 96), "attn.out.bias": (84,), "mlp.mlp1_weight": (7, 104, 84),
        "mlp.mlp1_bias": (7, 104), "mlp.mlp2_weight": (7, 84, 52), "mlp.mlp2_bias": (7, 84),
        "mlp.norm.scale": (84,), "mlp.gate.weight": (7, 84), "mlp.gate.bias": (7,),
    }  # fmt: skip
    shapes = {f"block.{i}.{name}": shape for i in (0, 1) for name, shape in layer.items()}
    shapes |= {"embedding.weight": (101, 84), "norm.scale": (84,), "unembedding.weight": (101, 84)}
    dtypes = {name: torch.float32 if name.endswith("scale") else torch.bfloat16 for name in shapes}
    model, state = Transformer(TINY), {name: torch.zeros(shapes[name], dtype=dtypes[name]) for name in shapes}
    model.load_state_dict(state, strict=True)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == shapes
    assert {name: p.dtype for name, p in model.state_dict().items()} == dtypes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_compute_dtype_follows_the_input(dtype: torch.dtype) -> None:
    model = filled(TINY)
    x, cast = randn(9, 84, seed=1, dtype=dtype), copy.deepcopy(model.block[0]).to(dtype)
    tol = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]  # < 100 unit roundoffs
    with torch.no_grad():  # with the shared buffer, whose products of a few rows a processor may round otherwise
        assert_same(model.block[0](x).double(), cast(x).double(), tol)
        assert cast(x).dtype == model.block[0](x).dtype == dtype
    assert torch.equal(model.block[0](x), cast(x)), "and without"
    model.embedding.register_forward_hook(lambda _m, _args, out: out.to(dtype))
    cast, tokens = copy.deepcopy(model).to(dtype), torch.arange(9)
    assert torch.equal(model(tokens), cast(tokens)) and cast(tokens).dtype == dtype
    assert_same(cast.block[0](x).double(), model.block[0](x.double()), tol)


def test_batch_positions_and_order_of_tokens() -> None:
    model, tokens = filled(TINY), (randn(3, 11, seed=1) * 30).long() % 101
    model.embedding.register_forward_hook(lambda _m, _args, out: out.double())
    offsets = torch.tensor([0, 5, 1000])[:, None] + torch.arange(11)
    states, spread = randn(11, 84, seed=2), torch.arange(11) * 5  # every other token outside the window
    rows = torch.stack([model(t, p) for t, p in zip(tokens, offsets, strict=True)])
    assert_same(model(tokens, offsets), rows, 1e-12)  # float64: another GEMM blocking, through two layers
    assert_same(model(tokens), rows, 1e-11)  # only distances count; angles near 1000 rad are exact to 1e-13
    assert_same(model(tokens.flip(1), offsets.flip(1)).flip(1), rows, 1e-12)  # positions decide, not storage
    alone = [model.block[0].attn(x[None], at[None])[0] for x, at in zip(states, spread, strict=True)]
    assert_same(model.block[0].attn(states, spread), torch.stack(alone), 1e-12)
    for bad in (torch.arange(1), torch.arange(10), offsets):
        with pytest.raises(ValueError, match=r"tokens \(11,\)"):
            model(tokens[0], bad)


def test_taps_show_and_replace() -> None:
    block, x = filled(TINY).block[0], randn(8, 84, seed=1)
    mlp, gate_up = block.mlp, torch.cat(tapped(block.mlp, "gate_up", x))
    for column in (gate_up[:, ::2], gate_up[:, 1::2]):  # both clamps are at work here, on both sides
        assert column.max() > 7 and column.min() < -7
    assert len(tapped(mlp, "activation", x)) == tapped(mlp, "chosen", x)[0].unique().numel()
    bias = tapped(mlp, "combined", x)[0] - tapped(mlp, "partial", x)[0]
    taps = ((mlp, "partial", bias), (mlp, "combined", 0), (block.attn, "partial", block.attn.out.bias))
    for module, tap, rest in taps:
        with module.get_submodule(tap).register_forward_hook(lambda *_: torch.ones_like(x)):
            assert_same(module(x), x + 1 + rest, 1e-14)  # float64, three additions
    shapes = {"q_rope": (8, 6, 16), "value": (8, 2, 16), "k_rope": (8, 2, 16), "heads": (8, 96), "reduced": (8, 84)}
    assert {tap: tuple(tapped(block.attn, tap, x)[0].shape) for tap in shapes} == shapes


class LargeTensors(TorchDispatchMode):
    """Sizes of the storages of at least `floor` bytes that operations return, parameters' excepted."""

    def __init__(self, floor: int, module: torch.nn.Module) -> None:
        super().__init__()
        self.floor, self.sizes, self.kept = floor, [], []
        self.seen = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        storage = out.untyped_storage() if isinstance(out, Tensor) else None
        if storage and storage.nbytes() >= self.floor and storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.sizes.append(storage.nbytes())
            self.kept.append(out)  # alive, so that its address is not used again
        return out


def test_experts_nobody_chose_cost_nothing() -> None:
    mlp, x = filled(TINY).block[0].mlp, randn(2, 84, seed=1)
    matrices = [52 * 84 * 8, 104 * 84 * 8]
    buffers = [CAST_ROWS * 52 * 8, CAST_ROWS * 84 * 8]  # of matrices with more rows than that
    with torch.no_grad(), LargeTensors(min(buffers), mlp) as seen:
        expected = mlp(x)
    assert sorted(seen.sizes) == buffers  # one buffer per matrix in float64, whatever the number of experts
    with torch.enable_grad(), LargeTensors(min(matrices), mlp) as seen:
        chosen = tapped(mlp, "chosen", x)[0].unique()
    # in grad mode each expert gets its own pair: the spy can tell
    assert sorted(seen.sizes) == sorted(matrices * len(chosen))
    unused = [e for e in range(7) if e not in chosen]
    mlp.mlp1_weight[unused], mlp.mlp2_weight[unused], mlp.mlp2_bias[unused] = (torch.nan,) * 3
    assert torch.equal(mlp(x), expected)
