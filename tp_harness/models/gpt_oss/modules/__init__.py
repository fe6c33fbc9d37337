"""Sharded gpt-oss modules: one definition each, whatever the backend.

They take the tensor-parallel group explicitly (`group=`) or from the ambient `current_group()`, hold only
their rank's share of each parameter, and say which share in `plan`.
"""

from .attention import NeuronGPTOSSAttentionBlock
from .block import NeuronGPTOSSTransformerBlock
from .embedding import NeuronGPTOSSEmbedding, NeuronGPTOSSUnembedding
from .mlp import NeuronGPTOSSMLPBlock
from .norm import NeuronGPTOSSRMSNorm
from .rope import NeuronGPTOSSRotaryEmbedding
from .transformer import NeuronGPTOSSTransformer

__all__ = [
    "NeuronGPTOSSAttentionBlock",
    "NeuronGPTOSSEmbedding",
    "NeuronGPTOSSMLPBlock",
    "NeuronGPTOSSRMSNorm",
    "NeuronGPTOSSRotaryEmbedding",
    "NeuronGPTOSSTransformer",
    "NeuronGPTOSSTransformerBlock",
    "NeuronGPTOSSUnembedding",
]
