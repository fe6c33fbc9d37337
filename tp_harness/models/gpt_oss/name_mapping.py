"""Other names and layouts in which gpt-oss checkpoints are published, and how each public tensor is made of theirs.

Known are Hugging Face's (model.layers.N.self_attn.q_proj ...; expert matrices transposed) and packed MXFP4 experts,
under either naming. What is made is a copy, written once for all ranks; a checkpoint in plain public names is mapped.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.mxfp4 import unpack
from ...checkpoint.translation import Recipe, Shape, Translation
from ...config.divisibility import MXFP4_BLOCK
from ...errors import UsageError

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
