"""Mistakes of the vocabulary-parallel embedding and unembedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....faults.fault import Fault, always, sharded
from ....faults.ways import computes, gathers, loads_from, reduces, runs, sets
from ..config import InferenceConfig

BORDERS = 64  # tokens on the borders of 1/32 shards, which sampling.tokens gives first


def _looks_up(held: Callable[[torch.Tensor, int], torch.Tensor]) -> Callable[..., object]:
    """The embedding's forward, with another rule for which tokens a rank holds."""

    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        local, count = tokens - self.vocab_start, len(self.weight)
        rows = self.weight[local.clamp(0, count - 1)] * held(local, count)[..., None]
        return self.total(
            self.group.all_reduce(self.partial(rows).to(torch.promote_types(self.dtype, torch.float32)))
        ).to(self.dtype)

    return forward


def _on_borders(config: InferenceConfig, tp: int) -> bool:
    """Tokens on every border of shards: where a range that is off by one shows."""
    return tp > 1 and config.neuron_config.batch_size * config.neuron_config.seq_len >= BORDERS


FAULTS = (
    Fault(
        name="mask-missing",
        number=1,
        component="embedding",
        cause="Each rank looks up the tokens of other ranks too, and their rows are added.",
        apply=runs("", "forward", _looks_up(lambda i, n: torch.ones_like(i, dtype=torch.bool))),
        active=sharded,
        flags=("partial", "total", "output.0"),
        signature="vocabulary not masked",
    ),
    Fault(
        name="mask-one-too-many",
        number=2,
        component="embedding",
        cause="A rank takes the first token of the next rank's range for its own.",
        apply=runs("", "forward", _looks_up(lambda i, n: (i >= 0) & (i <= n))),
        active=_on_borders,
        flags=("partial", "total", "output.0"),
        signature="vocabulary off by one",
    ),
    Fault(
        name="mask-one-too-few",
        number=2,
        component="embedding",
        cause="A rank leaves out the first token of its own range.",
        apply=runs("", "forward", _looks_up(lambda i, n: (i > 0) & (i < n))),
        active=lambda config, tp: _on_borders(config, max(tp, 2)),
        flags=("partial", "total", "output.0"),
        signature="vocabulary off by one",
    ),
    Fault(
        name="embedding-not-reduced",
        number=3,
        component="embedding",
        cause="The all-reduce after the embedding is missing.",
        apply=reduces("", lambda group, x: x),
        active=sharded,
        flags=("total", "output.0"),
        signature="all-reduce missing",
    ),
    Fault(
        name="bounds-of-rank-0",
        number=4,
        component="embedding",
        cause="Every rank uses the vocabulary range of rank 0, as when the rank is folded into a traced graph.",
        apply=sets("", vocab_start=lambda module, group: 0 * module.vocab_start),
        active=sharded,
        flags=("partial", "total", "output.0"),
        signature="vocabulary bounds of rank 0",
    ),
    Fault(
        name="rows-of-next-rank",
        number=0,
        component="embedding",
        cause="Each rank loads the next rank's rows of the embedding.",
        apply=loads_from("weight", lambda rank, size: (rank + 1) % size),
        active=sharded,
        flags=("partial", "total", "output.0"),
        loads=True,
        signature="vocabulary rows of other rank",
    ),
    Fault(
        name="vocabulary-tail-dropped",
        number=5,
        component="unembedding",
        cause="The last row of the vocabulary is treated as padding.",
        apply=computes("weight", lambda x, rank, size: torch.cat((x[:-1], x[-1:] * (rank < size - 1)))),
        active=always,
        flags=("logits", "output.0"),
        signature="zeros",
    ),
    Fault(
        name="logits-of-next-rank",
        number=6,
        component="unembedding",
        cause="Each rank loads the next rank's rows of the unembedding.",
        apply=loads_from("weight", lambda rank, size: (rank + 1) % size),
        active=sharded,
        flags=("logits", "output.0"),
        loads=True,
        signature="blocks permuted",
    ),
    Fault(
        name="logits-gathered-backwards",
        number=6,
        component="transformer",
        cause="The ranks' logits are gathered in reverse order.",
        apply=gathers(
            "unembedding", lambda group, x, dim: torch.cat(group.all_gather(x, dim).chunk(group.size, dim)[::-1], dim)
        ),
        active=sharded,
        flags=("output.0",),
        signature="blocks permuted",
    ),
    Fault(
        name="logits-not-gathered",
        number=7,
        component="transformer",
        cause="A rank's share of the logits is taken for the whole.",
        apply=gathers("unembedding", lambda group, x, dim: x),
        active=sharded,
        flags=("output.0",),
    ),
)
