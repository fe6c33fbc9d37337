"""The attention block against its reference, the way users of build_module write it."""

from test_utils import (
    _get_ref_config,
    _make_tiny_inference_config,
    at_every_degree,
    check_forward,
    hidden_states,
    position_ids,
    run_as_script,
)
from tp_harness.reference.gpt_oss import AttentionBlock

from tp_harness.models.gpt_oss.modules import NeuronGPTOSSAttentionBlock


@at_every_degree
def test_attention_forward_matches_reference(tp_degree: int) -> None:
    config = _make_tiny_inference_config(tp_degree=tp_degree)
    for layer_idx in (0, 1):  # with and without the sliding window
        reference = AttentionBlock(_get_ref_config(config=config), layer_idx=layer_idx).float()
        inputs = hidden_states(config), position_ids(config)
        check_forward(NeuronGPTOSSAttentionBlock, config, reference, inputs, layer_idx=layer_idx)


if __name__ == "__main__":
    run_as_script(test_attention_forward_matches_reference)
