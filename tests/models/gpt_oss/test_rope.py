"""Rotary embedding against its reference, every rank rotating all heads."""

import pytest
import torch
from test_utils import _make_tiny_inference_config, at_every_degree, position_ids, run_as_script
from tp_harness.reference.gpt_oss import RotaryEmbedding

from tp_harness.models.gpt_oss.modules import NeuronGPTOSSRotaryEmbedding
from tp_harness.testing import build_module, validate_accuracy


@at_every_degree
def test_rope_forward_matches_reference(tp_degree: int) -> None:
    config = _make_tiny_inference_config(tp_degree=tp_degree)
    generator = torch.Generator().manual_seed(0)
    rows = (config.neuron_config.batch_size, config.neuron_config.seq_len)
    query = torch.randn(*rows, config.num_attention_heads, config.head_dim, generator=generator)
    key = torch.randn(*rows, config.num_key_value_heads, config.head_dim, generator=generator)
    inputs = query, key, position_ids(config)
    reference = RotaryEmbedding(
        config.head_dim,
        config.rope_theta,
        torch.float32,
        initial_context_length=config.initial_context_length,
        scaling_factor=config.rope_scaling_factor,
        ntk_alpha=config.rope_ntk_alpha,
        ntk_beta=config.rope_ntk_beta,
    )
    with build_module(NeuronGPTOSSRotaryEmbedding, [inputs], {"config": config}, tp_degree) as module:
        validate_accuracy(module, [inputs], cpu_callable=reference)
        unrotated = [(query, key)]
        with pytest.raises(AssertionError, match="elements differ"):
            validate_accuracy(module, [inputs], expected_outputs=unrotated)


if __name__ == "__main__":
    run_as_script(test_rope_forward_matches_reference)
