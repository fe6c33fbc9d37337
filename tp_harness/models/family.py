"""All that the harness may ask of a model family. No torch: a family imports it inside the methods that need it.

This stands below every room that asks, so what is theirs is named in words: a Case (case/case.py), a Fault
(faults/fault.py), Knowledge (diagnosis/signature.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Family(Protocol):
    """Models of one architecture. A family is a subclass; what has a default here may be left out.

    `name` is the family's folder, `title` what people call it, `model_type` what a config.json says. A model is a
    `config`: a frozen dataclass with num_hidden_layers, hidden_size and fields of its own; `presets` are some by name.
    `components` are what can be verified alone, and what is sharded in each; `whole` is the one that has all layers,
    and `also_whole` are others with its parameters; `layered` are those that --layer is for. `router` ends the names of
    a router's weight and bias. `intervals` and
    `gains` go by the last part of a parameter's name: its random values lie between these two numbers, or are so many
    times as large as others'. `requirements` (config/divisibility.py) say what must divide, `work` (trn1/work.py) what
    components do on Trn1.
    """

    name: str
    title: str
    model_type: str
    config: type[Any]
    presets: Mapping[str, Any]
    components: Mapping[str, str]
    whole: str
    also_whole: tuple[str, ...] = ()
    layered: tuple[str, ...] = ()
    router: tuple[str, ...] = ()
    intervals: Mapping[str, tuple[float, float]] = {}
    gains: Mapping[str, float] = {}
    requirements: tuple[Any, ...] = ()
    work: Mapping[str, Callable[[Any, int], Any]] = {}

    def read_config(self, values: Mapping[str, Any]) -> Any:
        """The model of a config.json, given its JSON values; raises UsageError for another kind of model."""

    def at(self, model: Any, *, batch: int, seq: int, dtype: str, tp: int) -> Any:
        """The model run with `batch` rows of `seq` tokens in `dtype` on `tp` ranks: what `case` and faults take."""

    def case(self, component: str, config: Any, layer: int) -> Any:
        """The Case of a component, at the layer of index `layer`; `config` is what `at` returns."""

    def has_all_layers(self, component: str) -> bool:
        """Whether a component is the whole model, so that --depth is for it."""
        return component == self.whole or component in self.also_whole

    @property
    def run_by_default(self) -> tuple[str, ...]:
        """The components that are run where none is named: not those that are the whole model once more."""
        return tuple(name for name in self.components if name not in self.also_whole)

    def layers_of(self, component: str, *, small: bool) -> tuple[int, ...]:
        """Indices of the layers that a component is run at by default; `small`: a model that exists to be verified."""
        return (0,)

    def layer_of(self, parameter: str) -> int:
        """The index of the layer that a parameter of the whole model is in; 0 for what is in none."""
        return 0

    def layer_weights(self, model: Any) -> int:
        """How many weights a layer has, about."""
        return 12 * int(model.hidden_size) ** 2

    def weight_notes(self, model: Any, degrees: tuple[int, ...]) -> tuple[str, ...]:
        """What a reader should know of the model's published weights at these degrees."""
        return ()

    def working_bytes(self, model: Any, component: str, tokens: tuple[int, int], tp: int, width: int) -> int:
        """Most bytes a rank holds in a forward of (batch, seq) tokens, without weights; `width`: bytes of a number."""
        return width * (16 * tokens[0] * tokens[1] * model.hidden_size + self.layer_weights(model) // tp)

    def output_bytes(self, model: Any, component: str, tokens: tuple[int, int], width: int) -> int:
        """Bytes of the whole output of a component for (batch, seq) tokens; `width`: bytes of a number."""
        return int(width * tokens[0] * tokens[1] * model.hidden_size)

    def tapped_numbers(self, model: Any, tokens: int, tp: int) -> int:
        """How many numbers a rank's intermediate tensors of one layer hold for so many tokens."""
        return int(16 * tokens * model.hidden_size)

    def translation(self, checkpoint: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """A Translation (of checkpoint/) to the model's tensors (name -> full shape); None: the same names."""
        return None

    def faults(self) -> tuple[Any, ...]:
        """Mistakes in its components, in the order of the data."""
        return ()

    def graph_faults(self) -> tuple[Any, ...]:
        """Mistakes of the compiled path."""
        return ()

    def served_faults(self) -> tuple[Any, ...]:
        """Mistakes in components of several calls, which take longer to try."""
        return ()

    def knowledge(self) -> Any:
        """What diagnosis knows of the modules of its reference; None: nothing."""
        return None

    def use_kernels(self, module: Any) -> bool:
        """Have each part of an nn.Module that has a kernel run by it, in place; whether there was any."""
        return False
