"""Other names and layouts in which gpt-oss checkpoints are published, and how each public tensor is made of theirs.

Known are Hugging Face's (model.layers.N.self_attn.q_proj ...; expert matrices transposed) and packed MXFP4 experts,
under either naming. What is made is a copy, written once for all ranks; a checkpoint in plain public names is mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ..config.divisibility import MXFP4_BLOCK
from ..errors import UsageError
from .checkpoint import FLOATS, Checkpoint, TensorSpec
from .mxfp4 import unpack

Shape = tuple[int, ...]
Tensors = tuple[torch.Tensor, ...]
PUBLIC, HUGGING_FACE = "public gpt-oss names", "Hugging Face names"
_HF_STARTS = ("model.", "lm_head.")
# in a layer: public name -> Hugging Face's, whose tensors are stacked by rows where there are several
_HF_LAYER = {
    "attn.norm.scale": ("input_layernorm.weight",),
    "attn.sinks": ("self_attn.sinks",),
    "attn.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn.out.weight": ("self_attn.o_proj.weight",),
    "attn.out.bias": ("self_attn.o_proj.bias",),
    "mlp.norm.scale": ("post_attention_layernorm.weight",),
    "mlp.gate.weight": ("mlp.router.weight",),
    "mlp.gate.bias": ("mlp.router.bias",),
    "mlp.mlp1_weight": ("mlp.experts.gate_up_proj",),
    "mlp.mlp1_bias": ("mlp.experts.gate_up_proj_bias",),
    "mlp.mlp2_weight": ("mlp.experts.down_proj",),
    "mlp.mlp2_bias": ("mlp.experts.down_proj_bias",),
}
_HF_WHOLE = {
    "embedding.weight": ("model.embed_tokens.weight",),
    "norm.scale": ("model.norm.weight",),
    "unembedding.weight": ("lm_head.weight",),
}
_EXPERTS = ("mlp1_weight", "mlp2_weight")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a public tensor is made of: names and shapes in the file, and its pieces along dimension 0, in order."""

    sources: Mapping[str, Shape]
    pieces: Callable[[Tensors], Iterable[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A checkpoint under other names; `recipes` has every tensor of the model by public name."""

    checkpoint: Checkpoint
    convention: str
    recipes: Mapping[str, Recipe]

    @property
    def note(self) -> str:
        """What was done, for the record."""
        return f"the checkpoint has {self.convention}; the run used a copy under public names, in bfloat16"

    def pieces(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """The tensor `spec.name`, piece by piece along dimension 0."""
        recipe = self.recipes[spec.name]
        yield from recipe.pieces(tuple(map(self.checkpoint.tensor, recipe.sources)))

    def check(self, needed: Iterable[TensorSpec]) -> None:
        """Refuse what cannot be translated.

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


def translation(checkpoint: Checkpoint, model: Mapping[str, Shape]) -> Translation | None:
    """How to read a checkpoint of another naming than `model` (public name -> shape); None for plain public names.

    Raises:
        UsageError: packed experts whose columns are no whole blocks.
    """
    hugging_face = any(name.startswith(_HF_STARTS) for name in checkpoint.names)
    packed = any(name.endswith(("_blocks", "_scales", ".blocks", ".scales")) for name in checkpoint.names)
    if not hugging_face and not packed:
        return None
    join = "_" if hugging_face else "."
    recipes = {}
    for name, shape in model.items():
        sources = _hf_names(name) if hugging_face else (name,)
        is_packed = name.endswith(_EXPERTS) and sources[0] not in checkpoint.names and packed
        if is_packed:
            recipes[name] = _packed(sources[0] + join, shape)
        elif hugging_face:
            recipes[name] = _renamed(sources, name, shape, model)
        else:
            recipes[name] = Recipe(sources={name: shape}, pieces=iter)
    convention = (HUGGING_FACE if hugging_face else PUBLIC) + (", experts packed as MXFP4" if packed else "")
    return Translation(checkpoint=checkpoint, convention=convention, recipes=recipes)


def _hf_names(name: str) -> tuple[str, ...]:
    if name in _HF_WHOLE:
        return _HF_WHOLE[name]
    _, layer, rest = name.split(".", 2)  # block.N.rest
    return tuple(f"model.layers.{layer}.{theirs}" for theirs in _HF_LAYER[rest])


def _packed(prefix: str, shape: Shape) -> Recipe:
    """Blocks along the last dimension, expert by expert."""
    experts, rows, columns = shape
    if columns % MXFP4_BLOCK:
        raise UsageError(f"{prefix}blocks cannot hold {columns} columns: MXFP4 packs blocks of {MXFP4_BLOCK}.")
    grouped = (experts, rows, columns // MXFP4_BLOCK)
    return Recipe(
        sources={f"{prefix}blocks": (*grouped, MXFP4_BLOCK // 2), f"{prefix}scales": grouped},
        pieces=lambda tensors: (unpack(*expert) for expert in zip(*tensors, strict=True)),
    )


def _renamed(sources: tuple[str, ...], name: str, shape: Shape, model: Mapping[str, Shape]) -> Recipe:
    """Hugging Face's tensor as it is, with its matrices transposed, or several stacked."""
    if name.endswith(_EXPERTS):
        experts, rows, columns = shape
        return Recipe(sources={sources[0]: (experts, columns, rows)}, pieces=lambda t: (expert.mT for expert in t[0]))
    if len(sources) == 1:
        return Recipe(sources={sources[0]: shape}, pieces=iter)
    layer = name.rpartition(".qkv.")[0]
    queries = model[f"{layer}.out.weight"][1]
    keys = (shape[0] - queries) // 2
    return Recipe(
        sources={s: (n, *shape[1:]) for s, n in zip(sources, (queries, keys, keys), strict=True)}, pieces=iter
    )
