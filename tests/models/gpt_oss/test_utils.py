"""Helpers shared by the component tests: a tiny config, its reference twin, constant parameters."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from tp_harness.reference import gpt_oss

from tp_harness.config.model import NeuronConfig
from tp_harness.models.gpt_oss.config import PRESETS, InferenceConfig, ModelConfig
from tp_harness.neuron.devices import on_neuron
from tp_harness.testing import build_module, load_checkpoint, validate_accuracy

DEGREES = (1, 2, 8, 32)
# On NeuronCores a test holds those that its ranks run on; elsewhere ranks are processes, and none waits for another.
at_every_degree = pytest.mark.tp(*DEGREES) if on_neuron(os.environ) else pytest.mark.parametrize("tp_degree", DEGREES)
ARTIFACTS = Path(__file__).parents[3] / "artifacts"


def _make_tiny_inference_config(
    *, tp_degree: int = 1, torch_dtype: str = "float32", batch_size: int = 1, seq_len: int = 24
) -> InferenceConfig:
    """The tiny model, which divides by 32, run on one row of 24 tokens (longer than its window of 16)."""
    neuron_config = NeuronConfig(batch_size=batch_size, seq_len=seq_len, torch_dtype=torch_dtype, tp_degree=tp_degree)
    return InferenceConfig.of(PRESETS["tiny"], neuron_config)


def _get_ref_config(*, config: InferenceConfig) -> gpt_oss.ModelConfig:
    """The reference's own config type, with the same numbers."""
    return gpt_oss.ModelConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(ModelConfig)})


@torch.no_grad()
def _fill_module_parameters(module: nn.Module, value: float) -> None:
    """Every parameter the same value."""
    for parameter in module.parameters():
        parameter.fill_(value)


def unique_checkpoint(component: str) -> Path:
    """A path under artifacts/ that no other test uses."""
    return ARTIFACTS / "checkpoints" / f"{component}-{uuid.uuid4().hex}.pt"


def hidden_states(config: InferenceConfig, seed: int = 0) -> torch.Tensor:
    """(batch, seq, hidden) in the configured dtype."""
    torch.manual_seed(seed)
    neuron = config.neuron_config
    return torch.randn(neuron.batch_size, neuron.seq_len, config.hidden_size).to(neuron.torch_dtype)


def position_ids(config: InferenceConfig) -> torch.Tensor:
    """(batch, seq), counting from 0."""
    return torch.arange(config.neuron_config.seq_len).expand(config.neuron_config.batch_size, -1)


def check_forward(
    module_cls: type[nn.Module],
    config: InferenceConfig,
    reference: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    **init_kwargs: int,
) -> None:
    """Hold the module on the config's tp_degree ranks to the reference, with constant and with random weights.

    Constant weights are the public habit, and a weak test: all channels may come out equal. Random ones come from
    the checkpoint that build_module made; with those, a rolled expectation must fail. The reference takes the
    public form, one row without its batch dimension.
    """
    for weight_init_value in (0.5, None):
        kwargs = {"config": config, "weight_init_value": weight_init_value, **init_kwargs}
        path = unique_checkpoint(module_cls.__name__)
        try:
            tp_degree = config.neuron_config.tp_degree
            with build_module(module_cls, [inputs], kwargs, tp_degree, checkpoint_path=str(path)) as module:
                if weight_init_value is None:
                    reference.load_state_dict(load_checkpoint(path))
                else:
                    _fill_module_parameters(reference, weight_init_value)
                with torch.no_grad():
                    expected = reference(*(x[0] for x in inputs))[None]
                validate_accuracy(module, [inputs], expected_outputs=[expected])
                if weight_init_value is None:
                    with pytest.raises(AssertionError, match="elements differ"):
                        validate_accuracy(module, [inputs], expected_outputs=[expected.roll(1, dims=-1)])
        finally:
            path.unlink(missing_ok=True)


def run_as_script(test: Callable[[int], None]) -> None:
    """What `python tests/test_<component>.py` does: the test at every degree."""
    for tp_degree in DEGREES:
        test(tp_degree)
        print(f"{test.__name__} tp_degree {tp_degree}: passed")
