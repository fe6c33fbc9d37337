"""Every variant of the built-in modules in exact arithmetic: other code for the same function is proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from exact_runs import inputs, proved, run
from ladder import TINY, Ladder, mistake
from torch import nn
from tp_harness.kernels.registry import spec

from tp_harness.faults import Fault
from tp_harness.models.gpt_oss.modules import NeuronGPTOSSMLPBlock, nki
from tp_harness.models.gpt_oss.modules.layers import CastBuffer, linear
from tp_harness.results.result import Result, Status

WINDOW = TINY.sliding_window
DTYPES = ("exact", "float32")
COMPONENTS = ("rmsnorm", "rope", "attention", "mlp", "transformer_block", "unembedding", "transformer")


def edited(component: str, edit: Callable[[nn.Module], object]) -> Fault:
    """A change of the ranks' module that is no mistake."""
    return mistake(lambda case: replace(case, edit=lambda module, _group: edit(module)), component)


def all_experts(module: nn.Module, *, extra: float = 0.0) -> None:
    """The experts of a compiled program: every one of every token, those not chosen with the weight 0 (or `extra`)."""

    def every(block: NeuronGPTOSSMLPBlock, t_TH: torch.Tensor, weights_TE: torch.Tensor) -> torch.Tensor:
        return block._all_experts(t_TH, weights_TE + extra)

    for block in module.modules():
        if isinstance(block, NeuronGPTOSSMLPBlock):
            block._chosen_experts = partial(every, block)  # type: ignore[method-assign]


def assert_proved(result: Result) -> None:
    assert (result.status, result.reason) == (Status.PROVED, result.reason)


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' torch twins in the place of kernels."""
    monkeypatch.setattr(nki, "run", lambda name, *given, **named: spec(name).twin(*given, **named))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("component", "seq"),
    [*(("attention", WINDOW + more) for more in (-1, 0, 1, WINDOW + 1)), ("attention", 1), ("transformer_block", 1)],
)
def test_both_layers_at_the_edges_of_the_window(tmp_path: Path, component: str, layer: int, seq: int) -> None:
    ladder = Ladder(tmp_path, targets=((component, layer),), dtypes=DTYPES, batch=3, seq=seq)
    assert_proved(ladder.run(component, 2, "exact", layer=layer))


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    targets = tuple((name, 0) for name in COMPONENTS)
    return Ladder(tmp_path_factory.mktemp("exact"), targets=targets, dtypes=DTYPES)


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_twins_of_kernels_are_the_reference(twins: None, ladder: Ladder, component: str) -> None:
    assert_proved(ladder.run(component, 2, "exact", fault=edited(component, nki.use_kernels)))


def test_a_twin_that_is_another_function_is_not(twins: None, ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = nki.run
    monkeypatch.setattr(
        nki, "run", lambda *given, **named: twin(*given, **(named | {"eps": 2e-5} if "eps" in named else named))
    )
    result = ladder.run("rmsnorm", 2, "exact", fault=edited("rmsnorm", nki.use_kernels))
    assert result.status is Status.DIFFERENT


@pytest.mark.parametrize("component", ["mlp", "transformer_block"])
def test_all_experts_are_the_chosen_ones(ladder: Ladder, component: str) -> None:
    assert_proved(ladder.run(component, 2, "exact", fault=edited(component, all_experts)))
    spoiled = edited(component, partial(all_experts, extra=1e-7))
    assert ladder.run(component, 2, "exact", fault=spoiled).status is Status.DIFFERENT


@pytest.mark.parametrize("component", ["mlp", "transformer"])
def test_a_tie_is_neither_luck_nor_a_difference(tmp_path: Path, component: str) -> None:
    result = Ladder(tmp_path, targets=((component, 0),), dtypes=DTYPES, init="tied").run(component, 2, "exact")
    assert result.status is Status.NOT_PROVED
    assert "the choice of the top k is a tie" in result.reason


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
def test_a_product_in_16_bits_row_by_row_is_the_whole_one(wide: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are computed wide and rounded once; the whole one of torch is of rounded operands, and rounds too."""
    monkeypatch.setattr("tp_harness.models.gpt_oss.modules.layers.CAST_ELEMENTS", 64)
    given = inputs((5, 24), (40, 24), (40,))

    def by_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return CastBuffer(torch.bfloat16).linear(x.bfloat16(), weight.to(wide), bias.to(wide))

    def whole(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return linear(x.bfloat16(), weight.to(wide), bias.to(wide))

    assert proved(run(by_rows, *given), run(whole, *given))
    assert not proved(run(by_rows, *given), run(lambda x, w, b: whole(x, w, b.flip(0)), *given))
