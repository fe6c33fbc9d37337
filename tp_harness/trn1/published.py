"""What AWS published of language models on Trn1, for calibration: all rows of one table, as data.

Source: aws-neuron/aws-neuron-sdk 81ce03ae, about-neuron/benchmarks/trn1/latency_data_decoder.csv. All rows are a
trn1.32xlarge, tensor parallel over 32 cores, batch 1, Transformers NeuronX, Neuron SDK 2.18, activations fp16 with
matrix products in bf16. The models' dimensions are those of their public config.json.
"""

from __future__ import annotations

from dataclasses import dataclass

TP = 32


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row: P50 latencies in ms; `seq` is the longest sequence and `prompt` the prompt of the TTFT, in tokens."""

    model: str
    weights: str
    seq: int
    prompt: int
    tpot_ms: float
    ttft_ms: float

    @property
    def label(self) -> str:
        """`Llama-2-70b bf16 256 (128)`: model, weights, sequence and prompt."""
        return f"{self.model} {self.weights} {self.seq} ({self.prompt})"


def _row(model: str, weights: str, sizes: tuple[int, int], *, tpot: float, ttft: float) -> PublishedRow:
    return PublishedRow(model=model, weights=weights, seq=sizes[0], prompt=sizes[1], tpot_ms=tpot, ttft_ms=ttft)


ROWS = (
    _row("Llama-3-8B", "int8", (8192, 128), tpot=7.03, ttft=17.09),
    _row("Llama-3-8B", "int8", (8192, 4096), tpot=7.04, ttft=153.02),
    _row("Llama-3-8B", "int8", (4096, 128), tpot=5.86, ttft=14.75),
    _row("Llama-3-70B", "bf16", (4096, 2048), tpot=26.20, ttft=547.00),
    _row("Llama-3-70B", "bf16", (1152, 128), tpot=24.48, ttft=53.20),
    # the table says P50 26.48 and P99 24.22; P50 cannot exceed P99, and 40.81 tokens/s need the smaller
    _row("Llama-3-70B", "bf16", (256, 128), tpot=24.22, ttft=52.53),
    _row("Llama-2-7b", "bf16", (8192, 128), tpot=6.70, ttft=13.32),
    _row("Llama-2-13b", "bf16", (8192, 4096), tpot=9.84, ttft=864.14),
    _row("Llama-2-13b", "bf16", (16384, 8192), tpot=13.41, ttft=2367.93),
    _row("Llama-2-70b", "bf16", (256, 128), tpot=25.18, ttft=53.91),
    _row("Llama-2-70b", "bf16", (512, 256), tpot=25.27, ttft=81.88),
    _row("Llama-2-70b", "bf16", (1152, 128), tpot=25.45, ttft=57.75),
    _row("Llama-2-70b", "bf16", (2048, 1024), tpot=26.04, ttft=232.48),
    _row("Llama-2-70b", "bf16", (3072, 1024), tpot=26.62, ttft=236.78),
    _row("Llama-2-70b", "bf16", (4096, 2048), tpot=26.85, ttft=690.96),
    _row("Mistral-7B-Instruct-v0.2", "bf16", (16384, 8192), tpot=9.89, ttft=1322.87),
    _row("CodeLlama-13b-hf", "bf16", (8192, 4096), tpot=9.86, ttft=868.64),
    _row("CodeLlama-13b-hf", "bf16", (16384, 8192), tpot=13.40, ttft=2372.93),
)


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """A dense model as a mixture with a single expert; its router and biases are too small to matter."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int = 128
    num_experts: int = 1
    experts_per_token: int = 1

    def window(self, layer_idx: int, /) -> int:
        """The sliding window of a layer in tokens: 0, none has one in these rows."""
        del layer_idx
        return 0


def _dense(layers: int, hidden: int, intermediate: int, *, heads: tuple[int, int], vocab: int) -> DenseModel:
    return DenseModel(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        vocab_size=vocab,
    )


MODELS = {
    "Llama-3-8B": _dense(32, 4096, 14336, heads=(32, 8), vocab=128256),
    "Llama-3-70B": _dense(80, 8192, 28672, heads=(64, 8), vocab=128256),
    "Llama-2-7b": _dense(32, 4096, 11008, heads=(32, 32), vocab=32000),
    "Llama-2-13b": _dense(40, 5120, 13824, heads=(40, 40), vocab=32000),
    "Llama-2-70b": _dense(80, 8192, 28672, heads=(64, 8), vocab=32000),
    "Mistral-7B-Instruct-v0.2": _dense(32, 4096, 14336, heads=(32, 8), vocab=32000),
    "CodeLlama-13b-hf": _dense(40, 5120, 13824, heads=(40, 40), vocab=32016),
}
