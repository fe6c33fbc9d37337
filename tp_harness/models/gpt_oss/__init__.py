"""gpt-oss: attention with sinks and sliding windows, and a mixture of experts with a clamped SwiGLU. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...config.model import NeuronConfig
from ..family import Family
from . import cost
from .config import COMPONENTS, PRESETS, InferenceConfig, ModelConfig
from .config.divisibility import REQUIREMENTS, mxfp4_note
from .config.huggingface import read_config

if TYPE_CHECKING:
    from torch import nn

    from ...case.case import Case
    from ...checkpoint.checkpoint import Checkpoint
    from ...checkpoint.translation import Translation
    from ...diagnosis.signature import Knowledge
    from ...faults.fault import Fault


class GptOss(Family):
    """What the harness may ask of gpt-oss; models/family.py says what each member is."""

    name = "gpt_oss"
    title = "gpt-oss"
    model_type = "gpt_oss"
    config = ModelConfig
    presets = PRESETS
    components = COMPONENTS
    whole = "transformer"
    also_whole = ("decode",)
    layered = ("attention", "mlp", "transformer_block")
    router = ("gate.weight", "gate.bias")
    # sinks and the experts' first matrices are larger, so that a sink matters, and gates and ups pass the clamp
    intervals: Mapping[str, tuple[float, float]] = {"sinks": (-2.0, 3.0), "mlp1_bias": (-1.0, 1.0)}
    gains: Mapping[str, float] = {"mlp1_weight": 3.5}
    requirements = REQUIREMENTS
    work = cost.WORK
    read_config = staticmethod(read_config)
    layer_weights = staticmethod(cost.layer_weights)
    working_bytes = staticmethod(cost.working_bytes)
    output_bytes = staticmethod(cost.output_bytes)
    tapped_numbers = staticmethod(cost.tapped_numbers)
    layer_of = staticmethod(cost.layer_of)

    def layers_of(self, component: str, *, small: bool) -> tuple[int, ...]:
        """Layer indices: even layers have a sliding window and odd ones not, so attention is run on one of each."""
        return (0, 1) if component == "attention" or (component == "transformer_block" and small) else (0,)

    def weight_notes(self, model: Any, degrees: tuple[int, ...]) -> tuple[str, ...]:
        """At which degrees packed weights cannot be cut."""
        note = mxfp4_note(model, degrees)
        return (note,) if note else ()

    def at(self, model: Any, *, batch: int, seq: int, dtype: str, tp: int) -> InferenceConfig:
        """The model run with `batch` rows of `seq` tokens in `dtype` on `tp` ranks."""
        run = NeuronConfig(batch_size=batch, seq_len=seq, torch_dtype=dtype, tp_degree=tp)
        return InferenceConfig.of(model, run)

    def case(self, component: str, config: Any, layer: int) -> Case:
        """The Case of a component at the layer of index `layer`; raises UnknownNameError where there is none."""
        from .components import component_case  # noqa: PLC0415

        return component_case(component, config, layer)

    def translation(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Translation | None:
        """From Hugging Face's names, and from packed experts."""
        from .name_mapping import translation  # noqa: PLC0415

        return translation(checkpoint, shapes)

    def faults(self) -> tuple[Fault, ...]:
        """Mistakes in its components."""
        from .faults import FAULTS  # noqa: PLC0415

        return FAULTS

    def served_faults(self) -> tuple[Fault, ...]:
        """Mistakes of decode."""
        from .faults import SERVED  # noqa: PLC0415

        return SERVED

    def graph_faults(self) -> tuple[Fault, ...]:
        """Mistakes of the compiled path."""
        from .faults import GRAPH  # noqa: PLC0415

        return GRAPH

    def knowledge(self) -> Knowledge:
        """Signatures, and what the reference's taps mean."""
        from . import signatures  # noqa: PLC0415

        return signatures

    def use_kernels(self, module: nn.Module) -> bool:
        """Run what has an NKI kernel by it."""
        from .modules.nki import use_kernels  # noqa: PLC0415

        return use_kernels(module)


FAMILY = GptOss()
