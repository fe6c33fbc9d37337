"""Preflight: what a degree does not divide is said before any rank starts, and nothing else is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from tp_harness.case.plan import check_plan, stand_in_group
from tp_harness.config.divisibility import check_degrees
from tp_harness.config.model import NeuronConfig
from tp_harness.config.options import TRN1_CORES
from tp_harness.errors import UsageError
from tp_harness.models.gpt_oss import FAMILY
from tp_harness.models.gpt_oss.components import component_case
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig, ModelConfig
from tp_harness.models.gpt_oss.config.divisibility import REQUIREMENTS, mxfp4_note


@pytest.mark.parametrize(
    ("numbers", "component", "degree", "what", "would"),
    [
        ({"num_attention_heads": 40}, "attention", 32, "num_attention_heads 40", "1, 2, 8"),
        ({"num_attention_heads": 40}, "rope", 32, "num_attention_heads 40", "1, 2, 8"),
        (
            {"num_attention_heads": 96, "num_key_value_heads": 12},
            "attention",
            32,
            "num_key_value_heads 12 (neither divides the other)",
            "1, 2",
        ),
        ({"intermediate_size": 2888}, "mlp", 32, "intermediate_size 2888", "1, 2, 8"),
        ({"vocab_size": 50257}, "embedding", 2, "vocab_size 50257", "1"),
        ({"vocab_size": 50257}, "unembedding", 2, "vocab_size 50257", "1"),
        (
            {"vocab_size": 50257, "intermediate_size": 2882},
            "transformer",
            8,
            "intermediate_size 2882 and vocab_size 50257",
            "1",
        ),
    ],
    ids=["attention-heads", "rope-heads", "attention-kv", "mlp", "embedding", "unembedding", "transformer-two"],
)
def test_preflight_says_what_does_not_divide_and_which_degrees_would(
    numbers: dict[str, int], component: str, degree: int, what: str, would: str
) -> None:
    text = f"tp_degree {degree} does not divide {what}. Of the Trn1 degrees, {would} would; choose with --tp."
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        check(ModelConfig(**numbers), ("rmsnorm", component), (1, degree))
    check(ModelConfig(**numbers), (component,), tuple(int(d) for d in would.split(", ")))


def test_preflight_asks_only_for_what_the_chosen_components_shard() -> None:
    odd = ModelConfig(vocab_size=50257, intermediate_size=2881, num_attention_heads=9, num_key_value_heads=9)
    check(odd, ("rmsnorm",), tuple(range(1, TRN1_CORES + 1)))
    check(ModelConfig(vocab_size=50257), ("attention", "mlp"), (32,))
    assert {name for requirement in REQUIREMENTS for name in requirement.needed_by} == set(FAMILY.components) - {
        "rmsnorm"
    }


@pytest.mark.parametrize("component", [name for name in FAMILY.components if name != "rope"])
def test_preflight_refuses_exactly_the_degrees_that_the_plan_cannot_cut(component: str) -> None:
    """The plan's own arithmetic on numbers with different divisors (rope has no parameters to cut)."""
    numbers = {"num_attention_heads": 24, "num_key_value_heads": 6, "intermediate_size": 20, "vocab_size": 28}
    model = dataclasses.replace(PRESETS["tiny"], **numbers)

    def plan_refuses(tp: int) -> bool:
        case = component_case(component, InferenceConfig.of(model, NeuronConfig(tp_degree=tp)), 0)
        shapes = {case.prefix + name: tuple(t.shape) for name, t in case.make(case.reference).state_dict().items()}
        with stand_in_group(tp, real=False):
            return refuses(check_plan, case, shapes, tp)

    degrees = range(1, TRN1_CORES + 1)
    expected = [tp for tp in degrees if plan_refuses(tp)]
    assert [tp for tp in degrees if refuses(check, model, (component,), (tp,))] == expected
    assert (component == "rmsnorm") is not bool(expected)


def check(model: ModelConfig, components: tuple[str, ...], degrees: tuple[int, ...]) -> None:
    check_degrees(model, REQUIREMENTS, components, degrees)


def refuses(check: Callable[..., None], *arguments: Any) -> bool:
    """Whether the check says that something does not divide."""
    try:
        check(*arguments)
    except UsageError:
        return True
    return False


@pytest.mark.parametrize(
    ("size", "degrees", "cut", "fine"),
    [(2880, (1, 2, 8, 32), "8, 32", "1, 2"), (160, (1, 2, 8), "2, 8", "1"), (40, (1,), "1", "none")],
    ids=["gpt-oss", "tiny", "no_multiple_of_32"],
)
def test_mxfp4_note_names_the_degrees_that_cut_a_block(
    size: int, degrees: tuple[int, ...], cut: str, fine: str
) -> None:
    expected = (
        f"packed MXFP4 weights cannot be sliced at tp {cut}: intermediate_size {size} / tp is no multiple of their "
        f"block of 32 ({fine} would do); dequantise before sharding"
    )
    assert mxfp4_note(ModelConfig(intermediate_size=size), degrees) == expected


def test_mxfp4_note_is_silent_where_blocks_stay_whole() -> None:
    assert mxfp4_note(PRESETS["gpt-oss-120b"], (1, 2)) is None
    assert mxfp4_note(ModelConfig(intermediate_size=4096), (1, 2, 8, 32)) is None
