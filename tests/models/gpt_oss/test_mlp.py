"""The expert block against its reference."""

from test_utils import (
    _get_ref_config,
    _make_tiny_inference_config,
    at_every_degree,
    check_forward,
    hidden_states,
    run_as_script,
)
from tp_harness.reference.gpt_oss import MLPBlock

from tp_harness.models.gpt_oss.modules import NeuronGPTOSSMLPBlock


@at_every_degree
def test_mlp_forward_matches_reference(tp_degree: int) -> None:
    config = _make_tiny_inference_config(tp_degree=tp_degree)
    reference = MLPBlock(_get_ref_config(config=config)).float()
    check_forward(NeuronGPTOSSMLPBlock, config, reference, (hidden_states(config),))


if __name__ == "__main__":
    run_as_script(test_mlp_forward_matches_reference)
