"""The whole model, and one layer of it, against their references."""

import torch
from test_utils import (
    _get_ref_config,
    _make_tiny_inference_config,
    at_every_degree,
    check_forward,
    hidden_states,
    position_ids,
    run_as_script,
)
from tp_harness.reference.gpt_oss import Transformer, TransformerBlock

from tp_harness.models.gpt_oss.modules import NeuronGPTOSSTransformer, NeuronGPTOSSTransformerBlock


@at_every_degree
def test_transformer_forward_matches_reference(tp_degree: int) -> None:
    config = _make_tiny_inference_config(tp_degree=tp_degree)
    block = TransformerBlock(_get_ref_config(config=config), layer_idx=0).float()
    inputs = hidden_states(config), position_ids(config)
    check_forward(NeuronGPTOSSTransformerBlock, config, block, inputs, layer_idx=0)

    model = Transformer(_get_ref_config(config=config)).float()
    tokens = torch.arange(config.neuron_config.seq_len)[None] * 17 % config.vocab_size
    check_forward(NeuronGPTOSSTransformer, config, model, (tokens, position_ids(config)))


if __name__ == "__main__":
    run_as_script(test_transformer_forward_matches_reference)
