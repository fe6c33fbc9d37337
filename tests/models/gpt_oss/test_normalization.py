"""RMSNorm against its reference."""

from test_utils import _make_tiny_inference_config, at_every_degree, check_forward, hidden_states, run_as_script
from tp_harness.reference.gpt_oss import RMSNorm

from tp_harness.models.gpt_oss.modules import NeuronGPTOSSRMSNorm


@at_every_degree
def test_normalization_forward_matches_reference(tp_degree: int) -> None:
    config = _make_tiny_inference_config(tp_degree=tp_degree, torch_dtype="bfloat16")
    check_forward(NeuronGPTOSSRMSNorm, config, RMSNorm(config.hidden_size), (hidden_states(config),))


if __name__ == "__main__":
    run_as_script(test_normalization_forward_matches_reference)
