"""A checkpoint under other names than the model's: what each of the model's tensors is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ..errors import UsageError
from .checkpoint import FLOATS, Checkpoint, TensorSpec

Shape = tuple[int, ...]
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a tensor of the model is made: `sources` are names and shapes in the file.

    `pieces`, a function of these tensors, gives the parts of the model's tensor along dimension 0, in order.
    """

    sources: Mapping[str, Shape]
    pieces: Callable[[Tensors], Iterable[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A checkpoint under other names, `convention` in words; `recipes` has every tensor of the model by public name."""

    checkpoint: Checkpoint
    convention: str
    recipes: Mapping[str, Recipe]

    @property
    def note(self) -> str:
        """A sentence for run.json: the checkpoint was copied under other names."""
        return f"the checkpoint has {self.convention}; the run used a copy under public names, in bfloat16"

    def pieces(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """The tensor `spec.name`, in pieces that joined along dimension 0 have the shape of `spec`."""
        recipe = self.recipes[spec.name]
        yield from recipe.pieces(tuple(map(self.checkpoint.tensor, recipe.sources)))

    def check(self, needed: Iterable[TensorSpec]) -> None:
        """Refuse a checkpoint that cannot be translated.

        Raises:
            UsageError: a tensor that is missing, unknown, misshapen, or of an odd dtype; the message says which naming
                was found.
        """
        known = {name: shape for recipe in self.recipes.values() for name, shape in recipe.sources.items()}
        where = f"the checkpoint {', '.join(map(str, self.checkpoint.paths))} ({self.convention})"
        for spec in needed:
            for name, shape in self.recipes[spec.name].sources.items():
                if name not in self.checkpoint.names:
                    raise UsageError(
                        f"{where} lacks the tensor {name} of shape {list(shape)}, which makes {spec.name}."
                    )
        for name in sorted(self.checkpoint.names):
            shape, stored = self.checkpoint.shape(name), self.checkpoint.stored_as(name)
            if name not in known:
                raise UsageError(f"{where} has a tensor {name} {list(shape)} that the model has not.")
            if shape != known[name]:
                raise UsageError(f"{where}: {name} has shape {list(shape)}; the model needs {list(known[name])}.")
            right = ("U8",) if name.endswith(("blocks", "scales")) else FLOATS
            if stored not in right:
                raise UsageError(f"{where}: {name} is stored as {stored}; one of {', '.join(right)} is needed.")
