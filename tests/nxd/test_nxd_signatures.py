"""Calls of neuronx-distributed (NxD) and ours beside its own: each fits the public signature that was recorded.

`recorded/nxd_signatures.json` holds them, from the public sources of 0.17 and 0.18: NxD is not in this environment.
"""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from nxd_orders import builder_arguments

from tp_harness import nxd, testing
from tp_harness.libraries import neuronx_distributed_private as private
from tp_harness.nxd import traced
from tp_harness.testing import neuron_build

SIGNATURES = json.loads((Path(__file__).parents[1] / "recorded" / "nxd_signatures.json").read_text())


def signature(parameters: list[list[str | None]]) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature(
        [
            inspect.Parameter(str(name), kind, default=inspect.Parameter.empty if default is None else default)
            for name, default in parameters
        ]
    )


def calls(name: str) -> list[ast.Call]:
    """The calls of a function or method of that name in our modules about NxD."""
    trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in (nxd, traced, neuron_build, private)]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in found if ast.unparse(node.func).rpartition(".")[2] == name]


def bind(call: ast.Call, to: inspect.Signature, extra: dict[str, Any]) -> None:
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg} | extra
    to.bind(*[None for _ in call.args], **keywords)


CONTRACT = {
    "neuronx_distributed.trace.model_builder.ModelBuilder.__init__": "ModelBuilder",
    "neuronx_distributed.trace.model_builder.ModelBuilder.add": "add",
    "neuronx_distributed.trace.model_builder.ModelBuilder.trace": "trace",
    "neuronx_distributed.trace.model_builder.BaseModelInstance.__init__": "BaseModelInstance",
    "neuronx_distributed.parallel_layers.parallel_state.initialize_model_parallel": "initialize_model_parallel",
    "neuronx_distributed.trace.mock_torchdist.mock_distributed": "mock_distributed",
}
CONTRACT |= {
    name: name.rpartition(".")[2] for name in SIGNATURES if name.startswith("neuronx_distributed.parallel_layers.mapp")
}


@pytest.mark.parametrize("name", CONTRACT)
def test_what_is_called_is_called_as_its_public_signature_says(name: str) -> None:
    found = calls(CONTRACT[name])
    assert found, f"{CONTRACT[name]} is called nowhere in nxd.py"
    for version, parameters in SIGNATURES[name].items():
        for call in found:
            extra = builder_arguments() if name.endswith("ModelBuilder.__init__") else {}
            bind(call, signature(parameters), extra)
            assert version


def test_a_call_that_does_not_fit_a_signature_would_be_found() -> None:
    parameters = SIGNATURES["neuronx_distributed.trace.model_builder.ModelBuilder.add"]["0.18"]
    for text in ("builder.add(key='k')", "builder.add(key='k', model_instance=m, example_inputs=x, rank=3)"):
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        with pytest.raises(TypeError):
            bind(call, signature(parameters), {})


@pytest.mark.parametrize("name", ["build_module", "build_function", "validate_accuracy"])
def test_our_testing_functions_take_what_those_of_nxd_inference_take(name: str) -> None:
    theirs = SIGNATURES[f"neuronx_distributed_inference.utils.testing.{name}"]["0.9"]
    ours = inspect.signature(getattr(testing, name))
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in ours.parameters.values())
    named = [p for p in ours.parameters if ours.parameters[p].kind is not inspect.Parameter.VAR_KEYWORD]
    assert [parameter for parameter, _ in theirs][: len(named)] == named
    assert takes_any or len(named) == len(theirs)
    for parameter, default in theirs:
        if parameter in named:
            assert (ours.parameters[parameter].default is inspect.Parameter.empty) == (default is None), parameter
