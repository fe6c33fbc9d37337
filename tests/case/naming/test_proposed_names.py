"""What is proposed where names differ: text that is a `rename`, and that makes tensors of the module's shapes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

import tp_harness
from tp_harness.case.naming.proposed_names import proposed
from tp_harness.case.naming.rename import Renaming
from tp_harness.case.naming.sources import Source

Shapes = Mapping[str, tuple[int, ...]]


def proposal(own: Shapes, known: Shapes, size: int, given: dict[str, str | Source] | None = None) -> str:
    local = {name: torch.empty(shape) for name, shape in own.items()}
    return proposed(Renaming(rename=given or {}, prefix="", known=frozenset(known)), local, known, size)


def rename_in(said: str) -> dict[str, str | Source]:
    """What a user gets who pastes it."""
    text = said.partition("rename=")[2]
    found: dict[str, str | Source] = eval(text, {name: getattr(tp_harness, name) for name in tp_harness.__all__[1:]})
    return found


LAYER = {"q_proj.weight": (32, 24), "k_proj.weight": (8, 24), "v_proj.weight": (8, 24), "q_proj.bias": (32,)}
LAYER |= {"k_proj.bias": (8,), "v_proj.bias": (8,), "o_proj.weight": (24, 32)}
EXPERTS = {f"experts.{i}.{name}.weight": (16, 24) for i in range(11) for name in ("gate", "up")}
EXPERTS |= {f"experts.{i}.down.weight": (24, 16) for i in range(11)}
STACKED = {"experts.up": (11, 16, 24), "experts.gate": (11, 16, 24), "experts.down": (11, 24, 16)}


def layers(shapes: Shapes, prefix: str = "layers") -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{i}.{name}": shape for i in range(3) for name, shape in shapes.items()}


FOUND: dict[str, tuple[Shapes, Shapes, int, str]] = {
    "fused": (
        {"qkv_proj.weight": (24, 24), "qkv_proj.bias": (24,), "o_proj.weight": (24, 16)},
        LAYER,
        2,
        '{"qkv_proj.weight": Concat("q_proj.weight", "k_proj.weight", "v_proj.weight"), '
        '"qkv_proj.bias": Concat("q_proj.bias", "k_proj.bias", "v_proj.bias")}',
    ),
    "heads-replicated": (
        {"qkv.weight": (4 + 4 + 4, 24), "o_proj.weight": (24, 4)},
        LAYER,
        8,
        '{"qkv.weight": Concat("q_proj.weight", "k_proj.weight", "v_proj.weight")}',
    ),
    "in-the-order-of-the-name": (
        {"mlp.up_gate.weight": (32, 24), "mlp.down.weight": (24, 16)},
        {"mlp.gate_proj.weight": (16, 24), "mlp.up_proj.weight": (16, 24), "mlp.down.weight": (24, 16)},
        1,
        '{"mlp.up_gate.weight": Concat("mlp.up_proj.weight", "mlp.gate_proj.weight")}',
    ),
    "w13": (
        {"mlp.w13.weight": (16, 24), "mlp.w2.weight": (24, 8)},
        {"mlp.w1.weight": (16, 24), "mlp.w2.weight": (24, 16), "mlp.w3.weight": (16, 24)},
        2,
        '{"mlp.w13.weight": Concat("mlp.w1.weight", "mlp.w3.weight")}',
    ),
    "all-layers": (
        layers({"qkv_proj.weight": (48, 24), "o_proj.weight": (24, 32)}),
        layers(LAYER),
        1,
        '{"layers.*.qkv_proj.weight": Concat("layers.*.q_proj.weight", "layers.*.k_proj.weight", '
        '"layers.*.v_proj.weight")}',
    ),
    "stacked": (
        STACKED,
        EXPERTS,
        1,
        '{"experts.up": Stack("experts.*.up.weight"), "experts.gate": Stack("experts.*.gate.weight"), '
        '"experts.down": Stack("experts.*.down.weight")}',
    ),
    "stacked-and-cut": (
        {"experts.down": (11, 24, 4)},
        EXPERTS,
        4,
        '{"experts.down": Stack("experts.*.down.weight")}',
    ),
    "split": (
        {"q_proj.weight": (16, 24), "k_proj.weight": (4, 24), "v_proj.weight": (4, 24)},
        {"qkv_proj.weight": (48, 24)},
        2,
        '{"q_proj.weight": Part("qkv_proj.weight", 0, 32), "k_proj.weight": Part("qkv_proj.weight", 32, 8), '
        '"v_proj.weight": Part("qkv_proj.weight", 40, 8)}',
    ),
    "one-of-a-stack": (
        {"experts.10.down.weight": (24, 16)},
        STACKED,
        1,
        '{"experts.*.down.weight": Item("experts.down")}',
    ),
    "of-each-layer-one-of-a-stack": (
        {f"layers.{i}.experts.{e}.down.weight": (24, 16) for i in range(2) for e in range(11)},
        layers(STACKED),
        1,
        '{"layers.*.experts.*.down.weight": Item("layers.*.experts.down")}',
    ),
    "all-layers-under-another-prefix": (
        layers({"norm.weight": (24,)}),
        layers({"norm.weight": (24,), "other.weight": (24,)}, "model.layers"),
        1,
        '{"layers.*.norm.weight": "model.layers.*.norm.weight"}',
    ),
    "another-name": (
        {"embed.weight": (16, 24), "norm.weight": (24,)},
        {"model.embed_tokens.weight": (64, 24), "model.norm.weight": (24,), "lm_head.weight": (64, 24)},
        4,
        '{"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_is_proposed(name: str) -> None:
    own, known, size, text = FOUND[name]
    said = proposal(own, known, size)
    assert said == f"; if these are the same numbers under other names, say so: rename={text}"


@pytest.mark.parametrize("name", FOUND)
def test_what_is_pasted_makes_tensors_that_the_shards_may_be_of(name: str) -> None:
    own, known, size, _ = FOUND[name]
    renaming = Renaming(rename=rename_in(proposal(own, known, size)), prefix="", known=frozenset(known))
    assert not proposal(own, known, size, dict(renaming.rename)), "with it, no name is strange"  # type: ignore[arg-type]
    for each, shape in own.items():
        full = renaming.shape(each, known.__getitem__)
        rows = [n <= f <= n * size for f, n in zip(full, shape, strict=True)]
        assert all(rows), "a shard is no larger, and the ranks have all of it"


@pytest.mark.parametrize(
    "own, known",
    [
        ({"gamma": (7,)}, {"norm.weight": (24,)}),
        ({"qkv.weight": (48, 25)}, {"q.weight": (32, 24), "k.weight": (8, 24), "v.weight": (8, 24)}),
        ({"experts.up": (12, 16, 24)}, EXPERTS),
        ({"q.weight": (30, 24), "k.weight": (8, 24)}, {"qk.weight": (40, 24)}),
        ({"experts.11.down.weight": (24, 16)}, STACKED),
    ],
    ids=["other-shape", "other-columns", "too-many", "rows-are-missing", "no-such-item"],
)
def test_what_shapes_exclude_is_not_proposed(own: Shapes, known: Shapes) -> None:
    assert proposal(own, known, 1) == ""
